#!/usr/bin/env python3
"""Weak scaling by a model: what part of n times one GPU's speed n GPUs have, from the bytes that a step exchanges. Nothing here is measured, except
that the bytes are those that `run.py` counts: 2 (n - 1) / n values per trained parameter, sent and received by each rank.

    step(n) = compute + max(0, exchange(n) - overlap) + write back
    exchange(n) = bytes sent by a host / its network's rate, or by a rank / memory's rate where all ranks are in one host
    overlap = the last micro-batch's backward pass, 2/3 of a micro-batch without recomputation
    write back = gradients over PCIe, from the device and back, beyond what hides behind the exchange: the last section alone

usage: model.py"""

RANKS = (1, 2, 4, 8, 16, 32, 64)
GPUS_PER_HOST = 4
MEMORY_RATE = 5e9  # bytes/s that ranks of one host pass each other through its memory, sums included
PCIE_RATE = 12e9  # bytes/s, PCIe 4.0 x8 less its overhead
NETWORKS = (("1 Gbit/s", 0.117e9), ("10 Gbit/s", 1.17e9), ("100 Gbit/s", 11.7e9))

# What is trained: parameters that are exchanged, seconds of one micro-batch on an RX 7900 XTX, and micro-batches per step. The seconds are
# operations over the share of the card's peak that a step may reach: 6 (full) or 4 (adapter: no gradients of frozen weights) x parameters x tokens.
PEAK, SHARE = 61e12, 0.5
TOKENS = 4096
WORKLOADS = (
    ("LoRA r 16 of 8B", 41.9e6, 4 * 8.0e9 * TOKENS / (PEAK * SHARE), 4),
    ("all of 1.7B", 1.7e9, 6 * 1.7e9 * TOKENS / (PEAK * SHARE), 1),
    ("all of 1.7B", 1.7e9, 6 * 1.7e9 * TOKENS / (PEAK * SHARE), 16),
)


def efficiency(n, parameters, micro_batch, accumulated, rate, width):
    compute = micro_batch * accumulated
    if n == 1:
        return 1.0
    sent = 2 * (n - 1) / n * parameters * width
    in_host = min(n, GPUS_PER_HOST)
    # A rank sends an equal part to each other rank: those to its own host stay in memory.
    within, beyond = sent * (in_host - 1) / (n - 1), sent * (n - in_host) / (n - 1)
    exchange = in_host * within / MEMORY_RATE + in_host * beyond / rate
    transfer = 2 * parameters * 4 / PCIE_RATE
    hidden = 2 / 3 * micro_batch
    return compute / (compute + max(0.0, max(exchange, transfer) - hidden))


def main():
    head = ["what is trained", "micro-batches a step", "network", "gradients", *map(str, RANKS)]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name, parameters, micro_batch, accumulated in WORKLOADS:
        for network, rate in NETWORKS:
            for dtype, width in (("f32", 4), ("bf16", 2)):
                parts = [f"{100 * efficiency(n, parameters, micro_batch, accumulated, rate, width):.0f} %" for n in RANKS]
                print("| " + " | ".join([name, str(accumulated), network, dtype, *parts]) + " |")


main()

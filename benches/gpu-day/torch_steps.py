#!/usr/bin/env python3
"""Optimiser steps of JPO in eager PyTorch, for `run` to put beside the program's: the shapes, rows and adapter of `jointwise bench --step`.

usage: torch_steps.py SHAPE full|lora TOKENS SECONDS [cuda|cpu]
A line per precision, with tabs between: shape, step, precision, first step s, step s (median), tokens, peak MiB, notes.
The loss is TRL's DPOTrainer's: logits of all tokens, `selective_log_softmax`, sums, `-logsigmoid(beta * margin)`. TRL's own function is
taken where trl can be imported, and its formula else; the model is plain PyTorch with `scaled_dot_product_attention`, not compiled."""
import os, sys, time

import torch
import torch.nn.functional as F

# D, H, K, E, F, V, L, norms of queries and keys; all tied. As in src/kernels/shapes.rs.
SHAPES = {
    "llama-7m": (288, 6, 6, 48, 768, 4096, 6, False),
    "smollm2-135m": (576, 9, 3, 64, 1536, 49152, 30, False),
    "qwen3-0.6b": (1024, 16, 8, 128, 3072, 151936, 28, True),
}
SEQUENCE, RANK, SCALE, STD, BETA = 256, 8, 2.0, 0.02, 0.1

try:
    from trl.trainer.utils import selective_log_softmax
    LOSS = "TRL's selective_log_softmax"
except Exception:
    LOSS = "TRL's formula"

    def selective_log_softmax(logits, index):
        """As trl.trainer.utils has it: a row at a time, so that the log-softmax of all logits is never held."""
        if logits.dtype in (torch.float32, torch.float64):
            selected = torch.gather(logits, -1, index.unsqueeze(-1)).squeeze(-1)
            return selected - torch.stack([torch.logsumexp(row, -1) for row in logits])
        rows = [F.log_softmax(row, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1) for row, labels in zip(logits, index)]
        return torch.stack(rows)


class Linear(torch.nn.Module):
    def __init__(self, n_in, n_out, full, dtype):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(n_out, n_in).mul_(STD).to(dtype), requires_grad=full)
        if not full:
            self.a = torch.nn.Parameter(torch.randn(RANK, n_in) * STD)
            self.b = torch.nn.Parameter(torch.randn(n_out, RANK) * STD)
        self.full = full

    def forward(self, x):
        y = F.linear(x, self.weight)
        return y if self.full else y + SCALE * F.linear(F.linear(x, self.a), self.b)


class Norm(torch.nn.Module):
    def __init__(self, n, full):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(n), requires_grad=full)

    def forward(self, x):
        # As transformers' LlamaRMSNorm: in f32.
        y = x.float()
        return (self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5))).to(x.dtype)


class Layer(torch.nn.Module):
    def __init__(self, shape, full, dtype):
        super().__init__()
        d, h, k, e, f, _, _, norms = shape
        self.heads, self.groups, self.size = h, k, e
        linear = lambda n_in, n_out: Linear(n_in, n_out, full, dtype)
        self.q, self.k, self.v, self.o = linear(d, h * e), linear(d, k * e), linear(d, k * e), linear(h * e, d)
        self.gate, self.up, self.down = linear(d, f), linear(d, f), linear(f, d)
        self.before, self.after = Norm(d, full), Norm(d, full)
        self.q_norm, self.k_norm = (Norm(e, full), Norm(e, full)) if norms else (None, None)

    def forward(self, x, cos, sin):
        n, t, _ = x.shape
        y = self.before(x)
        q, k, v = (p(y).view(n, t, -1, self.size) for p in (self.q, self.k, self.v))
        if self.q_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        turn = lambda z: z * cos + torch.cat([-z[..., self.size // 2:], z[..., :self.size // 2]], -1) * sin
        q, k, v = turn(q.transpose(1, 2)).to(v.dtype), turn(k.transpose(1, 2)).to(v.dtype), v.transpose(1, 2)
        repeat = self.heads // self.groups
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(o.transpose(1, 2).reshape(n, t, -1))
        y = self.after(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(torch.nn.Module):
    def __init__(self, shape, full, dtype):
        super().__init__()
        d, _, _, e, _, v, n_layers, _ = shape
        self.embedding = torch.nn.Parameter(torch.randn(v, d).mul_(STD).to(dtype), requires_grad=full)
        self.layers = torch.nn.ModuleList(Layer(shape, full, dtype) for _ in range(n_layers))
        self.norm = Norm(d, full)
        angle = torch.arange(SEQUENCE)[:, None] / 1e4 ** (torch.arange(0, e, 2) / e)
        self.register_buffer("cos", torch.cat([angle.cos()] * 2, -1))
        self.register_buffer("sin", torch.cat([angle.sin()] * 2, -1))

    def forward(self, ids):
        x = F.embedding(ids, self.embedding)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return F.linear(self.norm(x), self.embedding)


def steps(shape, full, precision, pairs, seconds, device):
    """First step and median of the others in seconds."""
    autocast = precision == "bf16 autocast"
    torch.set_float32_matmul_precision("highest" if autocast else precision)
    torch.manual_seed(0)
    # TRL and PEFT keep a frozen base in bf16 under autocast; f32 products need it in f32.
    dtype = torch.bfloat16 if autocast and not full else torch.float32
    with torch.device(device):
        model = Model(shape, full, dtype)
        ids = torch.randint(shape[5], (2 * pairs, SEQUENCE))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0, fused=device == "cuda")
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times, started = [], None
    while len(times) < 4 or (time.time() - started < seconds and len(times) < 50):
        wait()
        begin = time.time()
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = model(ids)
            logps = selective_log_softmax(logits[:, :-1], ids[:, 1:]).sum(-1)
        margin = logps[:pairs] - logps[pairs:]  # The reference's scores are 0, as in `jointwise bench --step`.
        loss = -F.logsigmoid(BETA * margin.float()).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        loss.item()
        wait()
        times.append(time.time() - begin)
        # The second step is the first with an optimiser's state.
        started = started or (time.time() if len(times) == 2 else None)
    later = sorted(times[2:])
    return times[0], later[len(later) // 2]


def main():
    name, kind, tokens, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    device = sys.argv[5] if len(sys.argv) > 5 else "cuda" if torch.cuda.is_available() else "cpu"
    pairs = -(-tokens // (2 * SEQUENCE))
    torch.set_num_threads(os.cpu_count())
    version = f"PyTorch {torch.__version__} on {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, {LOSS}"
    for precision in ("highest", "high", "medium", "bf16 autocast"):
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            first, step = steps(SHAPES[name], kind == "full", precision, pairs, seconds, device)
            memory = f"{torch.cuda.max_memory_allocated() / 2**20:.0f}" if device == "cuda" else "-"
            row = [name, kind, precision, f"{first:.3f}", f"{step:.4f}", str(pairs * 2 * SEQUENCE), memory, version]
        except Exception as error:
            row = [name, kind, precision, "-", "-", str(pairs * 2 * SEQUENCE), "-", f"failed: {' '.join(str(error).split())[:200]}"]
        print("\t".join(row), flush=True)


main()

"""bitsandbytes' answers for tests/optim.rs: steps of AdamW8bit on one tensor, with its state after each. Runs on the CPU.

    pip install torch bitsandbytes safetensors   # made with torch 2.9.1, bitsandbytes 0.50.2
    python make.py
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from bitsandbytes.backends.cpu import ops
from bitsandbytes.optim import AdamW8bit
from safetensors.torch import save_file

STEPS = 6


def nearest(values, code, absmax_out, out, blocksize):
    # In f64, which takes bitsandbytes' PyTorch code instead of its CPU library: the nearest value of the map. The library is coarser.
    codes, absmax = torch.ops.bitsandbytes.quantize_blockwise.default(values.double(), code, blocksize)
    out.copy_(codes)
    absmax_out.copy_(absmax)


ops._quant_blockwise_fp32_direct = nearest
torch.manual_seed(0)
# Three blocks of 256 and a part of a fourth; gradients over three orders of magnitude, and a block without any at first.
n = 900
weight = torch.nn.Parameter(torch.randn(n) * 0.1)
size = 10 ** torch.empty(n).uniform_(-3, 0)
optimiser = AdamW8bit([weight], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, min_8bit_size=0)
tensors = {"signed": bnb.create_dynamic_map(signed=True), "unsigned": bnb.create_dynamic_map(signed=False)}
tensors["p0"] = weight.detach().clone()
for step in range(1, STEPS + 1):
    weight.grad = torch.randn(n) * size
    if step == 1:
        weight.grad[256:512] = 0
    tensors[f"g{step}"] = weight.grad.clone()
    optimiser.step()
    state = optimiser.state[weight]
    tensors[f"p{step}"] = weight.detach().clone()
    for name, key in [("m", "state1"), ("v", "state2"), ("m_absmax", "absmax1"), ("v_absmax", "absmax2")]:
        tensors[f"{name}{step}"] = state[key].clone()
assert state["state1"].dtype == torch.uint8
save_file({name: t.contiguous() for name, t in tensors.items()}, Path(__file__).parent / "bitsandbytes.safetensors")

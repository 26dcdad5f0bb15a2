"""bitsandbytes' answers for tests/quantised.rs: a weight, and what its 4-bit and 8-bit layers hold of it. Runs on the CPU.

    pip install torch bitsandbytes safetensors   # made with torch 2.9.1, bitsandbytes 0.50.2
    python make.py
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file

torch.manual_seed(0)
# 270 blocks of 64: one group of 256 block maxima, and a part of another. Rows of different sizes, outliers, a block of zeros.
weight = torch.randn(90, 192) * 0.02 * torch.logspace(-1, 0.5, 90)[:, None]
weight[3, 7], weight[80, 100] = 1.0, -2.0
weight[5, :64] = 0
weight = weight.to(torch.bfloat16)
codes, state = bnb.quantize_4bit(weight.float(), blocksize=64, compress_statistics=True, quant_type="nf4")
# The block maxima's codes again, in f64, which takes bitsandbytes' PyTorch code instead of its CPU library: the nearest value, as its
# CUDA kernel takes. The library is coarser, and takes the second nearest for one block of these 270.
absmax = bnb.quantize_4bit(weight.float(), blocksize=64, quant_type="nf4")[1].absmax
centred = (absmax - state.offset).double()
nested, groups = torch.ops.bitsandbytes.quantize_blockwise.default(centred, state.state2.code, 256)
assert torch.equal(state.offset, absmax.mean()) and torch.equal(groups, state.state2.absmax)
assert (nested != state.absmax).sum() == 1 and (nested.int() - state.absmax.int()).abs().max() == 1
state.absmax = nested
rows = weight[::6].float().contiguous()
int8, absmax, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(rows)
tensors = {
    "weight": weight,
    "nf4": bnb.dequantize_4bit(codes, state),
    "dynamic_map": bnb.create_dynamic_map(),
    "rows": rows.to(torch.bfloat16),
    # As MatMul8bitLt's backward pass dequantises.
    "int8": int8.float() * absmax.mul(1.0 / 127.0)[:, None],
}
save_file({name: t.contiguous() for name, t in tensors.items()}, Path(__file__).parent / "bitsandbytes.safetensors")

#!/usr/bin/env python3
"""Makes the checkpoints of tests/quantised.rs: a small Llama whose linear weights are quantised in the files, and what they stand for
(expected.safetensors), by other programs: NF4 by bitsandbytes 0.50, saved by transformers; FP8 by PyTorch's float8_e4m3fn, with DeepSeek's
scales of blocks, compressed-tensors' scales of rows, or Mistral's scale of a tensor. And a small gpt-oss whose experts are in MXFP4: what they stand
for is what transformers reads, and what the standard says.

needs torch, transformers, bitsandbytes and safetensors; runs on a CPU: make.py [mxfp4]; mxfp4 alone needs no bitsandbytes"""
import json, shutil, sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
BLOCK = 128
# 160 is no multiple of NF4's 64, and leaves a part of a block of 128.
CONFIG = dict(hidden_size=64, intermediate_size=160, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
              vocab_size=398, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0)


def is_linear(name):
    return "proj.weight" in name


def write(folder, tensors, expected, quantization):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")
    config = LlamaConfig(**CONFIG, architectures=["LlamaForCausalLM"], dtype="bfloat16").to_dict()
    config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def to_fp8(weight, scale):
    return (weight.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)


def fp8(model, scales_of, suffix, quantization, folder):
    """`scales_of` gives scales that broadcast to the weight, and scales as stored."""
    tensors, expected = {}, {}
    for name, weight in model.items():
        if not is_linear(name):
            tensors[name] = expected[name] = weight
            continue
        broadcast, stored = scales_of(weight.float())
        tensors[name] = to_fp8(weight, broadcast)
        tensors[name + suffix] = stored
        tensors[name.replace("weight", "activation_scale")] = torch.tensor(0.5)
        expected[name] = (tensors[name].float() * broadcast).bfloat16()
    write(folder, tensors, expected, quantization)


def blocks(weight):
    rows, columns = weight.shape
    grid = torch.empty(-(-rows // BLOCK), -(-columns // BLOCK))
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            grid[i, j] = weight[i * BLOCK:(i + 1) * BLOCK, j * BLOCK:(j + 1) * BLOCK].abs().max() / 448
    return grid.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns], grid


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def to_mxfp4(weight):
    """Codes and scales of the last dimension's blocks of 32: OCP Microscaling formats 1.0, section 6.3. The first of two codes is in the low half."""
    blocks = weight.reshape(*weight.shape[:-1], -1, 32)
    largest = np.abs(blocks).max(-1, keepdims=True)
    exponents = np.floor(np.log2(np.maximum(largest, 2.0**-120))) - 2
    codes = np.abs((blocks / 2.0**exponents)[..., None] - E2M1).argmin(-1).astype(np.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, (exponents[..., 0] + 127).astype(np.uint8)


def from_mxfp4(codes, scales):
    """Values by the standard, of which experts' matrices are the transpose."""
    both = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], 32)
    values = E2M1[both] * 2.0 ** (scales[..., None].astype(np.float64) - 127)
    return values.reshape(*codes.shape[:-2], -1).swapaxes(-1, -2)


def mxfp4():
    """A gpt-oss with names and layouts of the hub. Of three experts, one has arbitrary codes, and scales from the smallest on."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(12)
    rng = np.random.Generator(np.random.PCG64(12))
    config = GptOssConfig(hidden_size=96, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=24, num_local_experts=3,
                          num_experts_per_tok=2, vocab_size=398, sliding_window=24, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
                          tie_word_embeddings=False, architectures=["GptOssForCausalLM"], dtype="bfloat16",
                          rope_parameters=dict(rope_type="yarn", rope_theta=150000.0, factor=4.0, original_max_position_embeddings=64, beta_fast=32.0, beta_slow=1.0, truncate=False))
    tensors, expected = {}, {}
    for name, value in GptOssForCausalLM(config).bfloat16().state_dict().items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = expected[name] = torch.from_numpy(rng.standard_normal(value.shape) * 0.1 + ("norm" in name)).bfloat16()
            continue
        codes, scales = to_mxfp4(rng.standard_normal((value.shape[0], value.shape[2], value.shape[1])) * 0.1)
        codes[1], scales[1] = rng.integers(0, 256, codes[1].shape), rng.choice([0, 1, 110, 127, 140, 252], scales[1].shape)
        tensors[name + "_blocks"], tensors[name + "_scales"] = torch.from_numpy(codes), torch.from_numpy(scales)
        expected[name] = convert_moe_packed_tensors(*(tensors[name + end] for end in ("_blocks", "_scales")), dtype=torch.bfloat16)
        assert expected[name].shape == value.shape
        assert torch.equal(expected[name].double(), torch.from_numpy(from_mxfp4(codes, scales)))
        assert len(np.unique(codes[1])) == 256
    folder = HERE / "mxfp4"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(expected, folder / "expected.safetensors")
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config = dict(config.to_dict(), quantization_config={"modules_to_not_convert": kept, "quant_method": "mxfp4"})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def main():
    mxfp4()
    if sys.argv[1:] == ["mxfp4"]:
        return
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    torch.manual_seed(11)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).bfloat16()
    model = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    fp8(model, blocks, "_scale_inv", {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]},
        HERE / "fp8-blocks")
    row = lambda w: (lambda s: (s, s.bfloat16()))((w.abs().amax(1, keepdim=True) / 448).bfloat16().float())
    group = {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
    fp8(model, row, "_scale", {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}},
        HERE / "fp8-rows")
    one = lambda w: (lambda s: (s, s))(w.abs().max() / 448)
    fp8(model, one, "_scale_inv", {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}, HERE / "fp8-tensor")

    base = HERE / "base"
    plain = LlamaForCausalLM(LlamaConfig(**CONFIG)).bfloat16()
    plain.load_state_dict(model | {"lm_head.weight": model["model.embed_tokens.weight"]})
    plain.save_pretrained(base)
    for name, nested in (("nf4-nested", True), ("nf4-plain", False)):
        folder = HERE / name
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested,
                                    bnb_4bit_compute_dtype=torch.bfloat16)
        loaded = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, dtype=torch.bfloat16, device_map="cpu")
        loaded.save_pretrained(folder)
        expected = {k: v for k, v in model.items() if not is_linear(k)}
        for module_name, module in loaded.named_modules():
            if hasattr(module, "weight") and hasattr(module.weight, "quant_state"):
                expected[module_name + ".weight"] = dequantize_4bit(module.weight.data, module.weight.quant_state).to(torch.bfloat16)
        save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")
        for extra in ("generation_config.json",):
            (folder / extra).unlink(missing_ok=True)
    shutil.rmtree(base)


main()

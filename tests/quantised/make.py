#!/usr/bin/env python3
"""Makes the checkpoints of tests/quantised.rs: a small Llama whose linear weights are quantised in the files, and what they stand for
(expected.safetensors), by other programs: NF4 by bitsandbytes 0.50, saved by transformers; FP8 by PyTorch's float8_e4m3fn, with DeepSeek's
scales of blocks, compressed-tensors' scales of rows, or Mistral's scale of a tensor.

needs torch, transformers, bitsandbytes and safetensors; runs on a CPU: make.py"""
import json, shutil
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

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


def main():
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

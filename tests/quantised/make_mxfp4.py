#!/usr/bin/env python3
"""Makes tests/quantised/mxfp4: a small gpt-oss whose experts are in MXFP4, and what they stand for (expected.safetensors), by a port to numpy of
`_convert_moe_packed_tensors` in transformers 5.24.0, integrations/mxfp4.py.

needs numpy: make_mxfp4.py"""
import json, struct
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent / "mxfp4"
D, F, X, H, K, E, V = 64, 32, 3, 2, 1, 32, 398
FP4_VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def convert(blocks, scales):
    exponents = scales.astype(np.int32) - 127
    table = np.array(FP4_VALUES, dtype=np.float32)
    *prefix, groups, n = blocks.shape
    out = np.empty((*prefix, groups, 2 * n), dtype=np.float32)
    out[..., 0::2], out[..., 1::2] = table[blocks & 15], table[blocks >> 4]
    out = np.ldexp(out, exponents[..., None]).reshape(*prefix, groups * 2 * n)
    return np.ascontiguousarray(out.transpose(0, 2, 1))


def bf16(x):
    """Rounds to bf16, exactly where x is one."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def save(path, tensors):
    header, data = {}, b""
    for name, (dtype, array) in tensors.items():
        raw = array.tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def main():
    rng = np.random.default_rng(12)
    normal = lambda *shape: ("BF16", bf16(rng.standard_normal(shape) * 0.1))
    at = "model.layers.0."
    plain = {"model.embed_tokens.weight": normal(V, D), "lm_head.weight": normal(V, D), "model.norm.weight": normal(D)}
    for name in ("input_layernorm", "post_attention_layernorm"):
        plain[f"{at}{name}.weight"] = normal(D)
    for name, n_out, n_in in (("q", H * E, D), ("k", K * E, D), ("v", K * E, D), ("o", D, H * E)):
        plain[f"{at}self_attn.{name}_proj.weight"] = normal(n_out, n_in)
        plain[f"{at}self_attn.{name}_proj.bias"] = normal(n_out)
    plain.update({f"{at}self_attn.sinks": normal(H), f"{at}mlp.router.weight": normal(X, D), f"{at}mlp.router.bias": normal(X)})
    stored, expected = dict(plain), dict(plain)
    for name, n_out, n_in in (("gate_up_proj", 2 * F, D), ("down_proj", D, F)):
        bias = normal(X, n_out)
        blocks = rng.integers(0, 256, (X, n_out, n_in // 32, 16), dtype=np.uint8)
        scales = rng.integers(110, 128, (X, n_out, n_in // 32), dtype=np.uint8)
        at_name = f"{at}mlp.experts.{name}"
        stored.update({f"{at_name}_bias": bias, f"{at_name}_blocks": ("U8", blocks), f"{at_name}_scales": ("U8", scales)})
        expected.update({f"{at_name}_bias": bias, at_name: ("BF16", bf16(convert(blocks, scales)))})
    HERE.mkdir(exist_ok=True)
    save(HERE / "model.safetensors", stored)
    save(HERE / "expected.safetensors", expected)
    config = dict(
        architectures=["GptOssForCausalLM"], model_type="gpt_oss", attention_bias=True, dtype="bfloat16", eos_token_id=2, head_dim=E, hidden_act="silu",
        hidden_size=D, intermediate_size=F, layer_types=["sliding_attention"], max_position_embeddings=256, num_attention_heads=H, num_experts_per_tok=2,
        num_hidden_layers=1, num_key_value_heads=K, num_local_experts=X, pad_token_id=0, rms_norm_eps=1e-5, rope_theta=150000,
        rope_scaling=dict(rope_type="yarn", factor=4.0, beta_fast=32.0, beta_slow=1.0, original_max_position_embeddings=64, truncate=False),
        sliding_window=16, swiglu_limit=7.0, tie_word_embeddings=False, vocab_size=V,
        quantization_config=dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]))
    (HERE / "config.json").write_text(json.dumps(config, indent=1) + "\n")


main()

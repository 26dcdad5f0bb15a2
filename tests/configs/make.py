"""Writes the fixtures beside it: what transformers 4.57.3 makes of config.json files like those on the hub (written by hand:
sizes are theirs). Each fixture holds the config, the names and shapes of the state dict (tied heads left out), and what the
model resolved: windows, attention scale, rotary tables. Run: python3 make.py"""

import json
import pathlib

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA = dict(hidden_act="silu", attention_bias=False, attention_dropout=0.0, initializer_range=0.02, use_cache=True)
CONFIGS = {
    "smollm2-135m": dict(
        LLAMA, architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=576, intermediate_size=1536,
        num_attention_heads=9, num_hidden_layers=30, num_key_value_heads=3, max_position_embeddings=8192,
        rms_norm_eps=1e-5, rope_theta=100000, rope_scaling=None, rope_interleaved=False, is_llama_config=True,
        pretraining_tp=1, tie_word_embeddings=True, vocab_size=49152, torch_dtype="bfloat16", mlp_bias=False),
    "llama-3.2-1b": dict(
        LLAMA, architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=2048, intermediate_size=8192,
        head_dim=64, num_attention_heads=32, num_hidden_layers=16, num_key_value_heads=8,
        max_position_embeddings=131072, mlp_bias=False, pretraining_tp=1, rms_norm_eps=1e-5, rope_theta=500000.0,
        rope_scaling=dict(factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0,
                          original_max_position_embeddings=8192, rope_type="llama3"),
        tie_word_embeddings=True, vocab_size=128256, torch_dtype="bfloat16"),
    "mistral-7b-v0.1": dict(
        architectures=["MistralForCausalLM"], model_type="mistral", hidden_act="silu", hidden_size=4096,
        intermediate_size=14336, num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8,
        max_position_embeddings=32768, rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=4096,
        tie_word_embeddings=False, vocab_size=32000, torch_dtype="bfloat16"),
    "qwen2.5-0.5b": dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_act="silu", hidden_size=896,
        intermediate_size=4864, max_position_embeddings=32768, max_window_layers=24, num_attention_heads=14,
        num_hidden_layers=24, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1000000.0, sliding_window=32768,
        tie_word_embeddings=True, use_mrope=False, use_sliding_window=False, vocab_size=151936,
        torch_dtype="bfloat16"),
    "qwen2-windowed": dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_act="silu", hidden_size=64,
        intermediate_size=96, max_position_embeddings=512, max_window_layers=2, num_attention_heads=4,
        num_hidden_layers=5, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1000000.0, sliding_window=128,
        tie_word_embeddings=False, use_sliding_window=True, vocab_size=320, torch_dtype="float32"),
    "qwen3-0.6b": dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", attention_bias=False, head_dim=128, hidden_act="silu",
        hidden_size=1024, intermediate_size=3072, max_position_embeddings=40960, max_window_layers=28,
        num_attention_heads=16, num_hidden_layers=28, num_key_value_heads=8, rms_norm_eps=1e-6, rope_scaling=None,
        rope_theta=1000000, sliding_window=None, tie_word_embeddings=True, use_sliding_window=False,
        vocab_size=151936, torch_dtype="bfloat16"),
    "gemma-2-2b": dict(
        architectures=["Gemma2ForCausalLM"], model_type="gemma2", attention_bias=False, attn_logit_softcapping=50.0,
        cache_implementation="hybrid", final_logit_softcapping=30.0, head_dim=256, hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh", hidden_size=2304, intermediate_size=9216,
        max_position_embeddings=8192, num_attention_heads=8, num_hidden_layers=26, num_key_value_heads=4,
        query_pre_attn_scalar=256, rms_norm_eps=1e-6, rope_theta=10000.0, sliding_window=4096, vocab_size=256000,
        torch_dtype="float32"),
    "gemma-3-270m": dict(
        _sliding_window_pattern=6, architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", attention_bias=False,
        attn_logit_softcapping=None, final_logit_softcapping=None, head_dim=256,
        hidden_activation="gelu_pytorch_tanh", hidden_size=640, intermediate_size=2048,
        layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 3, max_position_embeddings=32768,
        num_attention_heads=4, num_hidden_layers=18, num_key_value_heads=1, query_pre_attn_scalar=256,
        rms_norm_eps=1e-6, rope_local_base_freq=10000.0, rope_scaling=None, rope_theta=1000000.0, sliding_window=512,
        use_bidirectional_attention=False, vocab_size=262144, torch_dtype="bfloat16"),
    "gemma-3-1b": dict(
        architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", attention_bias=False,
        attn_logit_softcapping=None, cache_implementation="hybrid", final_logit_softcapping=None, head_dim=256,
        hidden_activation="gelu_pytorch_tanh", hidden_size=1152, intermediate_size=6912,
        max_position_embeddings=32768, num_attention_heads=4, num_hidden_layers=26, num_key_value_heads=1,
        query_pre_attn_scalar=256, rms_norm_eps=1e-6, rope_local_base_freq=10000, rope_scaling=None,
        rope_theta=1000000, sliding_window=512, sliding_window_pattern=6, vocab_size=262144,
        torch_dtype="bfloat16"),
    "phi-3-mini-4k": dict(
        architectures=["Phi3ForCausalLM"], model_type="phi3", attention_bias=False, attention_dropout=0.0,
        auto_map=dict(AutoConfig="configuration_phi3.Phi3Config"), embd_pdrop=0.0, hidden_act="silu",
        hidden_size=3072, intermediate_size=8192, max_position_embeddings=4096, num_attention_heads=32,
        num_hidden_layers=32, num_key_value_heads=32, original_max_position_embeddings=4096, resid_pdrop=0.0,
        rms_norm_eps=1e-5, rope_scaling=None, rope_theta=10000.0, sliding_window=2047, tie_word_embeddings=False,
        vocab_size=32064, torch_dtype="bfloat16"),
    "gpt2": dict(
        activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1, embd_pdrop=0.1,
        initializer_range=0.02, layer_norm_epsilon=1e-5, model_type="gpt2", n_ctx=1024, n_embd=768, n_head=12,
        n_layer=12, n_positions=1024, resid_pdrop=0.1, summary_type="cls_index",
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}, vocab_size=50257),
}


def rope(module):
    config = module.config
    theta = config.rope_theta
    return dict(theta=theta, rotary_dim=2 * len(module.inv_freq), kind=module.rope_type)


def main():
    here = pathlib.Path(__file__).parent
    assert transformers.__version__ == "4.57.3"
    for name, fields in CONFIGS.items():
        config = AutoConfig.for_model(**json.loads(json.dumps(fields)))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        tied = model.config.tie_word_embeddings
        tensors = {k: list(v.shape) for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
        base = model.transformer if config.model_type == "gpt2" else model.model
        resolved = dict(tied=tied)
        if config.model_type == "gpt2":
            resolved.update(scale=base.h[0].attn.head_dim ** -0.5, windows=[None] * config.n_layer, ropes=[],
                            eps=base.ln_f.eps)
        else:
            whole = config.sliding_window if config.model_type in ("mistral", "phi3") else None
            attn = [layer.self_attn for layer in base.layers]
            windows = [getattr(a, "sliding_window", None) or whole for a in attn]
            norm = base.norm
            ropes = [rope(base.rotary_emb)]
            if config.model_type == "gemma3_text":
                ropes.append(rope(base.rotary_emb_local))
            resolved.update(
                scale=attn[0].scaling, head_dim=attn[0].head_dim, windows=windows, ropes=ropes,
                eps=getattr(norm, "variance_epsilon", None) or norm.eps,
                activation=type(getattr(base.layers[0].mlp, "act_fn", None) or base.layers[0].mlp.activation_fn).__name__)
        fixture = dict(config=fields, resolved=resolved, tensors=tensors)
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in tensors.items())
        head = json.dumps({k: v for k, v in fixture.items() if k != "tensors"})[:-1]
        (here / f"{name}.json").write_text(f'{head}, "tensors": {{\n{lines}\n}}}}\n')
        print(name, len(tensors), resolved)


main()

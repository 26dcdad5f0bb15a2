"""Writes the fixtures beside it: what transformers 4.57.3 makes of config.json files like those on the hub (written by hand:
sizes are theirs). Each fixture holds the config, the names and shapes of the state dict (tied heads left out), and what the
model resolved: windows, attention scale, rotary tables. Run: python3 make.py [NAME ...]. With transformers 5.24 it makes those of NEWER instead, with the
number of parameters of the language model."""

import json
import pathlib
import sys

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


LONG_FACTORS = [
    1, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898, 2.735880826,
    3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424, 6.693110555, 7.485043894,
    8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283, 20.47818807,
    22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97,
    33.28, 33.49, 33.5, 44.16, 47.77]
GRANITE = dict(
    hidden_act="silu", attention_bias=False, attention_dropout=0.0, initializer_range=0.02, rms_norm_eps=1e-5, use_cache=True,
    embedding_multiplier=12, attention_multiplier=0.015625, residual_multiplier=0.22, rope_scaling=None,
    max_position_embeddings=131072, tie_word_embeddings=True, torch_dtype="bfloat16")
PIXTRAL = dict(
    model_type="pixtral", attention_dropout=0.0, head_dim=64, hidden_act="silu", hidden_size=1024, image_size=1540,
    initializer_range=0.02, intermediate_size=4096, num_attention_heads=16, num_channels=3, num_hidden_layers=24,
    patch_size=14, rope_theta=10000.0)
# Sizes of Qwen3.5's model cards; the fields are those of its config.json on the hub.
def qwen3_5(d, layers, heads, kv_heads, f, value_heads, tied):
    return dict(
        architectures=["Qwen3_5ForConditionalGeneration"], model_type="qwen3_5", image_token_id=248056,
        video_token_id=248057, vision_start_token_id=248053, vision_end_token_id=248054, tie_word_embeddings=tied,
        text_config=dict(
            model_type="qwen3_5_text", attention_bias=False, attention_dropout=0.0, attn_output_gate=True,
            dtype="bfloat16", eos_token_id=248044, full_attention_interval=4, head_dim=256, hidden_act="silu",
            hidden_size=d, initializer_range=0.02, intermediate_size=f,
            layer_types=(["linear_attention"] * 3 + ["full_attention"]) * (layers // 4), linear_conv_kernel_dim=4,
            linear_key_head_dim=128, linear_num_key_heads=16, linear_num_value_heads=value_heads,
            linear_value_head_dim=128, max_position_embeddings=262144, mlp_only_layers=[], mtp_num_hidden_layers=1,
            mtp_use_dedicated_embeddings=False, num_attention_heads=heads, num_hidden_layers=layers,
            num_key_value_heads=kv_heads, rms_norm_eps=1e-6, tie_word_embeddings=tied, use_cache=True,
            vocab_size=248320, mamba_ssm_dtype="float32",
            rope_parameters=dict(mrope_interleaved=True, mrope_section=[11, 11, 10], rope_type="default",
                                 rope_theta=10000000, partial_rotary_factor=0.25)),
        vision_config=dict(
            model_type="qwen3_5_vision", deepstack_visual_indexes=[], depth=12, hidden_act="gelu_pytorch_tanh",
            hidden_size=768, in_channels=3, initializer_range=0.02, intermediate_size=3072, num_heads=12,
            num_position_embeddings=2304, out_hidden_size=d, patch_size=16, spatial_merge_size=2,
            temporal_patch_size=2))


def gemma4(unified, period, **sizes):
    """A Gemma 4 of the hub; vision and audio have the sizes of transformers' classes."""
    n = sizes["num_hidden_layers"]
    types = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(n)]
    text = dict(
        sizes, model_type="gemma4_unified_text" if unified else "gemma4_text", attention_bias=False, attention_dropout=0.0,
        bos_token_id=2, dtype="bfloat16", enable_moe_block=False, eos_token_id=1, final_logit_softcapping=30.0,
        global_head_dim=512, head_dim=256, hidden_activation="gelu_pytorch_tanh", initializer_range=0.02, layer_types=types,
        moe_intermediate_size=None, num_experts=None, pad_token_id=0, rms_norm_eps=1e-6,
        rope_parameters=dict(full_attention=dict(partial_rotary_factor=0.25, rope_theta=1000000.0, rope_type="proportional"),
                             sliding_attention=dict(rope_theta=10000.0, rope_type="default")),
        tie_word_embeddings=True, top_k_experts=None, use_bidirectional_attention="vision" if unified else None, use_cache=True,
        vocab_size=262144)
    if not unified:
        text["vocab_size_per_layer_input"] = 262144
    kind = "gemma4_unified" if unified else "gemma4"
    return dict(
        architectures=["Gemma4UnifiedForConditionalGeneration" if unified else "Gemma4ForConditionalGeneration"],
        model_type=kind, audio_config=dict(model_type=f"{kind}_audio"), audio_token_id=258881, boa_token_id=256000,
        boi_token_id=255999, dtype="bfloat16", eoa_token_index=258883, eoi_token_id=258882, eos_token_id=[1, 106],
        image_token_id=258880, initializer_range=0.02, text_config=text, tie_word_embeddings=True, video_token_id=258884,
        vision_config=dict(model_type=f"{kind}_vision"))


def lfm2(d, heads, block_ff_dim, **more):
    """An LFM2 of 16 layers."""
    return dict(
        more, architectures=["Lfm2ForCausalLM"], model_type="lfm2", block_auto_adjust_ff_dim=True, block_dim=d, block_ff_dim=block_ff_dim,
        block_ffn_dim_multiplier=1.0, block_mlp_init_scale=1.0, block_multiple_of=256, block_norm_eps=1e-5, block_out_init_scale=1.0,
        block_use_swiglu=True, block_use_xavier_init=True, bos_token_id=1, conv_L_cache=3, conv_bias=False, conv_dim=d,
        conv_use_xavier_init=True, eos_token_id=7, hidden_size=d, initializer_range=0.02, max_position_embeddings=128000,
        norm_eps=1e-5, num_attention_heads=heads, num_heads=heads, num_hidden_layers=16, num_key_value_heads=8, pad_token_id=0,
        use_cache=True, use_pos_enc=True, vocab_size=65536)


LFM2_ATTENTION = [2, 5, 8, 10, 12, 14]
NEWER = {
    # As published with transformers 4.54, and as transformers 5 writes it.
    "lfm2-350m": lfm2(1024, 16, 6656, full_attn_idxs=LFM2_ATTENTION, conv_dim_out=1024, rope_theta=1000000.0, torch_dtype="bfloat16"),
    "lfm2.5-1.2b": lfm2(
        2048, 32, 12288, dtype="bfloat16", intermediate_size=12288, tie_embedding=True,
        layer_types=["full_attention" if i in LFM2_ATTENTION else "conv" for i in range(16)],
        rope_parameters=dict(rope_theta=1000000.0, rope_type="default")),
    "gemma-4-12b": gemma4(
        True, 6, hidden_size=3840, intermediate_size=15360, num_hidden_layers=48, num_attention_heads=16, num_key_value_heads=8,
        num_global_key_value_heads=1, attention_k_eq_v=True, max_position_embeddings=262144, num_kv_shared_layers=0,
        sliding_window=1024, use_double_wide_mlp=False),
    "gemma-4-e2b": gemma4(
        False, 5, hidden_size=1536, intermediate_size=6144, num_hidden_layers=35, num_attention_heads=8, num_key_value_heads=1,
        num_global_key_value_heads=None, attention_k_eq_v=False, max_position_embeddings=131072, num_kv_shared_layers=20,
        hidden_size_per_layer_input=256, sliding_window=512, use_double_wide_mlp=True),
    "gemma-4-e4b": gemma4(
        False, 6, hidden_size=2560, intermediate_size=10240, num_hidden_layers=42, num_attention_heads=8, num_key_value_heads=2,
        num_global_key_value_heads=None, attention_k_eq_v=False, max_position_embeddings=131072, num_kv_shared_layers=18,
        hidden_size_per_layer_input=256, sliding_window=512, use_double_wide_mlp=False),
    # The hub's config.json; its checkpoint has a tensor per expert and projection, and transformers 5 fuses them in memory.
    "qwen3-30b-a3b": dict(
        architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", attention_bias=False, attention_dropout=0.0, bos_token_id=151643,
        decoder_sparse_step=1, eos_token_id=151645, head_dim=128, hidden_act="silu", hidden_size=2048, initializer_range=0.02,
        intermediate_size=6144, max_position_embeddings=40960, max_window_layers=48, mlp_only_layers=[], moe_intermediate_size=768,
        norm_topk_prob=True, num_attention_heads=32, num_experts=128, num_experts_per_tok=8, num_hidden_layers=48,
        num_key_value_heads=4, output_router_logits=False, rms_norm_eps=1e-6, rope_scaling=None, rope_theta=1000000.0,
        router_aux_loss_coef=0.001, sliding_window=None, tie_word_embeddings=False, use_cache=True, use_sliding_window=False,
        vocab_size=151936, torch_dtype="bfloat16"),
    "gpt-oss-20b": dict(
        architectures=["GptOssForCausalLM"], model_type="gpt_oss", attention_bias=True, attention_dropout=0.0, eos_token_id=200002,
        experts_per_token=4, head_dim=64, hidden_act="silu", hidden_size=2880, initial_context_length=4096, initializer_range=0.02,
        intermediate_size=2880, layer_types=["sliding_attention", "full_attention"] * 12, max_position_embeddings=131072,
        num_attention_heads=64, num_experts_per_tok=4, num_hidden_layers=24, num_key_value_heads=8, num_local_experts=32,
        output_router_logits=False, pad_token_id=199999, rms_norm_eps=1e-5, rope_theta=150000,
        rope_scaling=dict(beta_fast=32.0, beta_slow=1.0, factor=32.0, original_max_position_embeddings=4096, rope_type="yarn", truncate=False),
        router_aux_loss_coef=0.9, sliding_window=128, swiglu_limit=7.0, tie_word_embeddings=False, use_cache=True, vocab_size=201088),
    "qwen3.5-0.8b": qwen3_5(1024, 24, 8, 2, 3584, 16, True),
    "qwen3.5-27b": qwen3_5(5120, 64, 24, 4, 17408, 48, False),
    "smollm3-3b": dict(
        architectures=["SmolLM3ForCausalLM"], model_type="smollm3", attention_bias=False, attention_dropout=0.0,
        hidden_act="silu", hidden_size=2048, initializer_range=0.02, intermediate_size=11008,
        layer_types=["full_attention"] * 36, max_position_embeddings=65536, max_window_layers=28, mlp_bias=False,
        no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9, num_attention_heads=16, num_hidden_layers=36,
        num_key_value_heads=4, pretraining_tp=2, rms_norm_eps=1e-6, rope_scaling=None, rope_theta=5000000.0,
        sliding_window=None, use_cache=False, use_sliding_window=False, vocab_size=128256, torch_dtype="bfloat16"),
    "granite-3.3-2b": dict(
        GRANITE, architectures=["GraniteForCausalLM"], model_type="granite", hidden_size=2048, intermediate_size=8192,
        logits_scaling=8.0, mlp_bias=False, num_attention_heads=32, num_hidden_layers=40, num_key_value_heads=8,
        rope_theta=10000000.0, vocab_size=49159),
    "granite-4.0-micro": dict(
        GRANITE, architectures=["GraniteMoeHybridForCausalLM"], model_type="granitemoehybrid", hidden_size=2560,
        intermediate_size=8192, layer_types=["attention"] * 40, logits_scaling=10, mamba_chunk_size=256,
        mamba_conv_bias=True, mamba_d_conv=4, mamba_d_head=40, mamba_d_state=256, mamba_expand=2, mamba_n_groups=1,
        mamba_n_heads=128, mamba_proj_bias=False, normalization_function="rmsnorm", num_attention_heads=40,
        num_experts_per_tok=0, num_hidden_layers=40, num_key_value_heads=8, num_local_experts=0,
        output_router_logits=False, position_embedding_type="rope", rope_theta=10000000, router_aux_loss_coef=0.01,
        shared_intermediate_size=8192, vocab_size=100352),
    "ministral-3-3b": dict(
        architectures=["Mistral3ForConditionalGeneration"], model_type="mistral3", image_token_index=10,
        multimodal_projector_bias=False, projector_hidden_act="gelu", spatial_merge_size=2, vision_feature_layer=-1,
        dtype="bfloat16", vision_config=PIXTRAL, tie_word_embeddings=True,
        text_config=dict(
            model_type="ministral3", attention_dropout=0.0, head_dim=128, hidden_act="silu", hidden_size=3072,
            initializer_range=0.02, intermediate_size=9216, max_position_embeddings=262144, num_attention_heads=32,
            num_hidden_layers=26, num_key_value_heads=8, rms_norm_eps=1e-5, sliding_window=None,
            tie_word_embeddings=True, use_cache=True, vocab_size=131072,
            rope_parameters=dict(
                beta_fast=32.0, beta_slow=1.0, factor=16.0, llama_4_scaling_beta=0.1, mscale=1.0, mscale_all_dim=1.0,
                original_max_position_embeddings=16384, rope_theta=1000000.0, rope_type="yarn", type="yarn"))),
    # The hub's file lacks tie_word_embeddings, which is on by default in transformers 5; the checkpoint holds a head of its own.
    "mistral-small-3.1-24b": dict(
        architectures=["Mistral3ForConditionalGeneration"], model_type="mistral3", image_token_index=10,
        multimodal_projector_bias=False, projector_hidden_act="gelu", spatial_merge_size=2, vision_feature_layer=-1,
        torch_dtype="bfloat16", vision_config=PIXTRAL, tie_word_embeddings=False,
        text_config=dict(
            model_type="mistral", attention_dropout=0.0, head_dim=128, hidden_act="silu", hidden_size=5120,
            initializer_range=0.02, intermediate_size=32768, max_position_embeddings=131072, num_attention_heads=32,
            num_hidden_layers=40, num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=1000000000.0,
            sliding_window=None, use_cache=True, vocab_size=131072)),
    "gemma-3-4b": dict(
        architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", boi_token_index=255999,
        eoi_token_index=256000, eos_token_id=[1, 106], image_token_index=262144, initializer_range=0.02,
        mm_tokens_per_image=256, torch_dtype="bfloat16",
        text_config=dict(
            model_type="gemma3_text", hidden_size=2560, intermediate_size=10240, num_hidden_layers=34,
            rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=1024),
        vision_config=dict(
            model_type="siglip_vision_model", hidden_size=1152, image_size=896, intermediate_size=4304,
            num_attention_heads=16, num_hidden_layers=27, patch_size=14, vision_use_head=False)),
    "olmo-2-1b": dict(
        architectures=["Olmo2ForCausalLM"], model_type="olmo2", attention_bias=False, attention_dropout=0.0,
        hidden_act="silu", hidden_size=2048, initializer_range=0.02, intermediate_size=8192,
        max_position_embeddings=4096, num_attention_heads=16, num_hidden_layers=16, num_key_value_heads=16,
        rms_norm_eps=1e-6, rope_scaling=None, rope_theta=500000, tie_word_embeddings=False, use_cache=False,
        vocab_size=100352, torch_dtype="float32"),
    "olmo-3-7b": dict(
        architectures=["Olmo3ForCausalLM"], model_type="olmo3", attention_bias=False, attention_dropout=0.0,
        hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=11008,
        layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 8, max_position_embeddings=65536,
        num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, rms_norm_eps=1e-6, rope_theta=500000,
        rope_scaling=dict(attention_factor=1.2079441541679836, beta_fast=32.0, beta_slow=1.0, factor=8.0,
                          original_max_position_embeddings=8192, rope_type="yarn"),
        sliding_window=4096, tie_word_embeddings=False, use_cache=False, vocab_size=100278, torch_dtype="bfloat16"),
    "glm-4-9b-0414": dict(
        architectures=["Glm4ForCausalLM"], model_type="glm4", attention_bias=True, attention_dropout=0.0, head_dim=128,
        hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=13696,
        max_position_embeddings=32768, num_attention_heads=32, num_hidden_layers=40, num_key_value_heads=2,
        partial_rotary_factor=0.5, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False, use_cache=True,
        vocab_size=151552, torch_dtype="bfloat16"),
    "phi-4-mini": dict(
        architectures=["Phi3ForCausalLM"], model_type="phi3", attention_bias=False, attention_dropout=0.0,
        embd_pdrop=0.0, full_attn_mod=1, hidden_act="silu", hidden_size=3072, initializer_range=0.02,
        intermediate_size=8192, interpolate_factor=1, lm_head_bias=False, max_position_embeddings=131072,
        mlp_bias=False, num_attention_heads=24, num_hidden_layers=32, num_key_value_heads=8,
        original_max_position_embeddings=4096, partial_rotary_factor=0.75, resid_pdrop=0.0, rms_norm_eps=1e-5,
        rope_theta=10000.0, sliding_window=262144, tie_word_embeddings=True, use_cache=True, vocab_size=200064,
        rope_scaling=dict(long_factor=LONG_FACTORS, short_factor=[1.0] * 48, type="longrope"), torch_dtype="bfloat16"),
    "qwen2.5-7b-yarn": dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", attention_dropout=0.0, hidden_act="silu",
        hidden_size=3584, initializer_range=0.02, intermediate_size=18944, max_position_embeddings=32768,
        max_window_layers=28, num_attention_heads=28, num_hidden_layers=28, num_key_value_heads=4, rms_norm_eps=1e-6,
        rope_theta=1000000.0, rope_scaling=dict(factor=4.0, original_max_position_embeddings=32768, type="yarn"),
        sliding_window=131072, tie_word_embeddings=False, use_cache=True, use_sliding_window=False, vocab_size=152064,
        torch_dtype="bfloat16"),
}


def newer():
    """The fixtures of NEWER: names in memory of the language model, and of its head unless it is tied."""
    from transformers import AutoModelForImageTextToText

    here = pathlib.Path(__file__).parent
    assert transformers.__version__ == "5.24.0"
    for name, fields in NEWER.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        config = AutoConfig.for_model(**json.loads(json.dumps(fields)))
        wrapped = "text_config" in fields
        with torch.device("meta"):
            auto = AutoModelForImageTextToText if wrapped else AutoModelForCausalLM
            model = auto.from_config(config, attn_implementation="eager")
        text, tied = config.get_text_config(), config.tie_word_embeddings
        own = lambda k: ("language_model." in k or k == "lm_head.weight") and not k.endswith("layer_scalar") if wrapped else True
        tensors = {k: list(v.shape) for k, v in model.state_dict().items() if own(k) and not (tied and k == "lm_head.weight")}
        base = model.model.language_model if wrapped else model.model
        # Qwen3.5 and LFM2 have layers without attention.
        attn, rp = [layer.self_attn for layer in base.layers if hasattr(layer, "self_attn")], text.rope_parameters
        head_dim = attn[0].head_dim
        slides = [getattr(text, "layer_types", [None] * len(base.layers))[i] == "sliding_attention" or text.model_type in ("mistral", "phi3") for i in range(len(base.layers))]
        tables = [rp[k] for k in ("full_attention", "sliding_attention")] if "full_attention" in rp else [rp]
        norm = base.embedding_norm if text.model_type == "lfm2" else base.norm
        resolved = dict(
            tied=tied, scale=attn[0].scaling, head_dim=head_dim,
            windows=[text.sliding_window if s else None for s in slides], eps=getattr(norm, "variance_epsilon", None) or norm.eps,
            ropes=[rotary(t, base, head_dim) for t in tables],
            activation={"gpt_oss": "GptOssExperts", "lfm2": "SiLUActivation"}.get(text.model_type) or type(getattr(getattr(base.layers[0], "mlp", None), "act_fn", None) or getattr(getattr(getattr(base.layers[0], "mlp", None), "experts", None), "act_fn", None) or getattr(base.layers[0].mlp, "activation_fn", None)
                            if hasattr(base.layers[0], "mlp") else base.layers[0].shared_mlp.activation).__name__,
            parameters=sum(torch.Size(s).numel() for s in tensors.values()))
        write(here, name, fields, resolved, tensors)


def rotary(table, base, head_dim):
    """A rotary table. That of Gemma 4's full layers has all dimensions, of which only some rotate."""
    if table["rope_type"] == "proportional":
        dim = 2 * len(base.rotary_emb.full_attention_inv_freq)
    else:
        dim = int(head_dim * table.get("partial_rotary_factor", 1.0))
    return dict(theta=table["rope_theta"], rotary_dim=dim, kind=table["rope_type"])


def write(here, name, fields, resolved, tensors):
    fixture = dict(config=fields, resolved=resolved, tensors=tensors)
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in tensors.items())
    head = json.dumps({k: v for k, v in fixture.items() if k != "tensors"})[:-1]
    (here / f"{name}.json").write_text(f'{head}, "tensors": {{\n{lines}\n}}}}\n')
    print(name, len(tensors), resolved)


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
        write(here, name, fields, resolved, tensors)


newer() if transformers.__version__.startswith("5") else main()

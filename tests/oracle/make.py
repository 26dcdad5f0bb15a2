#!/usr/bin/env python3
"""Remakes every fixture of this folder (README.md) with PyTorch, in float64 with stock float32 beside it.

usage: make.py [FAMILY ...]              remake all families, or some
       make.py --sft                     remake the runs of supervised fine-tuning alone, from the families as they are
       make.py --f16 FAMILY [...]        a family's gradient where linear layers round their operands to float16: f16_products.safetensors
       make.py --verify DIR [...]        run this same code on existing families and compare with their expected values
Needs torch, transformers, peft, tokenizers, safetensors, numpy (versions in README.md). The families of NEWER are made with transformers 5."""
import contextlib, copy, json, os, re, shutil, sys, tempfile, warnings
from collections import Counter
from pathlib import Path

os.environ.update(TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
warnings.filterwarnings("ignore")
import numpy as np
import torch
from safetensors.numpy import load_file as np_load, save_file as np_save
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent
BETA, BATCH, DPO = 0.1, [0, 1, 12, 13], [0, 1, 2, 3]
TRAIN = [[2 * (i % 6), 2 * (i % 6) + 1, 12 + 2 * (i % 6), 13 + 2 * (i % 6)] for i in range(10)]
LR = [1e-3 * (s / 2 if s < 2 else 0.5 * (1 + np.cos(np.pi * (s - 2) / 8))) for s in range(10)]
VARIANTS = ["sigmoid", "sigmoid_ls0.1", "hinge", "ipo", "kto_pair", "sigmoid_reffree"]

# ---------------------------------------------------------------------------------------------------------------- texts
# (instruction, good response, bad response), written for these fixtures.
TEXTS = [
    ("Name three fruits that float.", "Apples, pears and oranges with the peel on.", "Stones, mostly."),
    ("How long should I boil an egg?", "Six minutes for a soft yolk, ten for a firm one.", "Until it hatches."),
    ("Why do leaves turn red in autumn?", "The green fades first; red pigments made late in the season then show.", "They are angry with the wind."),
    ("Translate 'good morning' into French.", "\"Bonjour\" is the usual greeting.", "Good morning, but louder."),
    ("Give me a rhyme for 'silver'.", "(None is perfect: 'pilfer' comes close.)", "Gold."),
    ("What does a compiler do?", "It turns source code into a program\nthat a machine can run.", "Compiles. It is a compiler. It compiles."),
    ("How many days has February?", "28, and 29 in a leap year.", "About 31, I think, or maybe 30."),
    ("Suggest a name for a grey cat.", "Pewter, Smoke or Ash.", "Dog."),
    ("Is it safe to look at the sun?", "No: it can burn the retina in seconds, even at sunset.", "Yes, if you blink a lot."),
    ("Write a haiku about snow.", "Slow flakes on the sill,\nthe street forgets its own name,\na lamp hums alone.", "snow snow snow snow snow"),
    ("Where do penguins live?", "South of the equator; most on the coasts of Antarctica.", "In the fridge, next to the milk."),
    ("Fix this: 'she go to school'.", "'She goes to school.' \u2713 (\u00e9l\u00e8ve \u2192 \u00e9cole, \u5b66\u6821)", "'she gone at school' \u2639"),
]


def prefs():
    rows = [dict(i_chosen=i, r_chosen=g, i_reject=i, r_reject=b) for i, g, b in TEXTS]
    for a in range(12):  # joint rows: good against bad, good against another good, bad against another bad
        c, r = TEXTS[a], TEXTS[(5 * a + 3) % 12 if (5 * a + 3) % 12 != a else (a + 1) % 12]
        rows.append(dict(i_chosen=c[0], r_chosen=c[1 if a % 3 < 2 else 2], i_reject=r[0], r_reject=r[1 if a % 3 == 1 else 2]))
    return rows


def template(i):
    return "### Instructions: " + i + "\n\n### Response:"


# ----------------------------------------------------------------------------------------------------------- tokenizers
CHAT = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CORPUS = [template(i) + r for i, g, b in TEXTS[:11] for r in (g, b)]  # the last text stays unseen: its letters need a fallback
QWEN_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_SPLIT = QWEN_SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def byte_bpe(size, split=None, nfc=False, specials=(), last=False):
    t = Tokenizer(models.BPE())
    if nfc:
        t.normalizer = normalizers.NFC()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    t.pre_tokenizer = level if split is None else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), level])
    t.decoder = decoders.ByteLevel()
    n = size - (len(specials) if last else 0)
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=n, special_tokens=[] if last else list(specials), show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    if last:  # Qwen and Llama 3 number them behind the vocabulary
        t.add_special_tokens(list(specials))
    assert t.get_vocab_size() == size, t.get_vocab_size()
    return t


def byte_fallback_bpe(size, specials, gemma):
    """SentencePiece's BPE as converted by transformers: no byte level, unknown characters as <0xXX>."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never" if gemma else "first")
    count = Counter("".join(CORPUS))
    rare = re.compile("[" + re.escape("".join(sorted(c for c in count if count[c] < 3))) + "]")  # these fall back to bytes (limit_alphabet breaks ties at random)
    t.train_from_iterator([x for c in CORPUS for x in rare.split(c)], trainers.BpeTrainer(vocab_size=size - len(specials) - 256, show_progress=False))
    m = json.loads(t.to_str())["model"]
    words = list(specials) + [f"<0x{b:02X}>" for b in range(256)] + [w for w, _ in sorted(m["vocab"].items(), key=lambda x: x[1])]
    assert len(words) == size, len(words)
    t = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[tuple(x) for x in m["merges"]], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if gemma:
        t.normalizer = normalizers.Replace(" ", "\u2581")
        t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.add_special_tokens(list(specials))
    return t


def unigram(size, specials):
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    t.decoder = decoders.Metaspace(prepend_scheme="always")
    t.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=size, special_tokens=list(specials), unk_token="<unk>", show_progress=False))
    assert t.get_vocab_size() == size, t.get_vocab_size()
    # The pieces are the same every time, their scores are not (EM sums in the order of a hash map): score by counts instead.
    j = json.loads(t.to_str())
    text = "".join("\u2581" + w for c in CORPUS for w in c.split(" "))
    pieces = sorted((p for p, _ in j["model"]["vocab"] if p not in specials), key=lambda p: (-text.count(p), p))
    j["model"]["vocab"] = [[p, 0.0] for p in specials] + [[p, round(float(np.log((text.count(p) + 0.1) / len(text))), 6)] for p in pieces]
    j["model"]["unk_id"] = specials.index("<unk>")
    return Tokenizer.from_str(json.dumps(j))


def with_bos(t, bos):
    """encode(..., add_special_tokens=True) adds BOS: a program that also adds its own must not end with two."""
    t.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, t.token_to_id(bos))])
    return t


TOKENIZERS = {  # name: (maker, bos, eos, pad); sizes are of the tokenizer, the model's vocabulary may be larger
    "qwen-bpe": (lambda: byte_bpe(380, QWEN_SPLIT, nfc=True, specials=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], last=True), None, "<|im_end|>", "<|endoftext|>"),
    "llama3-bpe": (lambda: with_bos(byte_bpe(384, LLAMA_SPLIT, specials=["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"], last=True), "<|begin_of_text|>"), "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"),
    "gpt2-bpe": (lambda: byte_bpe(384, specials=["<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]), "<|bos|>", "<|eos|>", "<|pad|>"),
    "llama2-bpe": (lambda: with_bos(byte_fallback_bpe(509, ["<unk>", "<s>", "</s>"], gemma=False), "<s>"), "<s>", "</s>", None),
    "gemma-bpe": (lambda: byte_fallback_bpe(420, ["<pad>", "<eos>", "<bos>", "<unk>"], gemma=True), "<bos>", "<eos>", "<pad>"),
    "unigram": (lambda: unigram(216, ["<pad>", "<eos>", "<bos>", "<unk>"]), "<bos>", "<eos>", "<pad>"),
}

# ------------------------------------------------------------------------------------------------------------- families
COMMON = dict(max_position_embeddings=256, attention_dropout=0.0, use_cache=True, initializer_range=0.02)
FAMILIES = {
    "qwen3": dict(
        seed=11, tokenizer="qwen-bpe", dtype="bfloat16",
        config=dict(model_type="qwen3", vocab_size=384, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
                    hidden_act="silu", rms_norm_eps=1e-6, rope_theta=10000.0, tie_word_embeddings=True, attention_bias=False, use_sliding_window=False, sliding_window=None)),
    "gemma2": dict(
        seed=12, tokenizer="unigram", reduced=True,
        config=dict(model_type="gemma2", vocab_size=216, hidden_size=40, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
                    hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, rope_theta=10000.0, query_pre_attn_scalar=20, sliding_window=8, attn_logit_softcapping=2.5,
                    final_logit_softcapping=4.0, attention_bias=False, tie_word_embeddings=True)),
    "gemma3": dict(
        seed=13, tokenizer="gemma-bpe",
        config=dict(model_type="gemma3_text", vocab_size=420, hidden_size=40, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, head_dim=12,
                    hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, rope_theta=100000.0, rope_local_base_freq=1000.0, rope_scaling={"rope_type": "linear", "factor": 4.0},
                    query_pre_attn_scalar=18, sliding_window=8, layer_types=["sliding_attention", "sliding_attention", "full_attention"], attention_bias=False, tie_word_embeddings=True)),
    "phi3": dict(
        seed=14, tokenizer="gpt2-bpe", reduced=True,
        config=dict(model_type="phi3", vocab_size=384, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_act="silu",
                    rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=13, partial_rotary_factor=0.75, resid_pdrop=0.0, embd_pdrop=0.0, tie_word_embeddings=False,
                    original_max_position_embeddings=256)),
    "llama3-scaling": dict(
        seed=15, tokenizer="llama3-bpe", dtype="bfloat16", reduced=True, shards=3,
        config=dict(model_type="llama", vocab_size=384, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                    hidden_act="silu", rms_norm_eps=1e-5, rope_theta=10000.0, attention_bias=False, mlp_bias=False, tie_word_embeddings=False,
                    rope_scaling={"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32})),
    "mistral-odd": dict(
        seed=16, tokenizer="llama2-bpe",
        config=dict(model_type="mistral", vocab_size=509, hidden_size=36, intermediate_size=50, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, head_dim=12,
                    hidden_act="silu", rms_norm_eps=1e-3, rope_theta=10000.0, sliding_window=7, tie_word_embeddings=False)),
    "gpt2-odd": dict(
        seed=18, tokenizer="gpt2-bpe",
        config=dict(model_type="gpt2", vocab_size=384, n_embd=36, n_head=3, n_layer=2, n_inner=50, activation_function="gelu_new", layer_norm_epsilon=1e-5, resid_pdrop=0.0,
                    embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=True)),
    "lora-mistral": dict(seed=17, base="mistral-odd", r=4, alpha=8,
                         targets=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
}


# Families that transformers 4.57 lacks or reads otherwise: made with transformers 5.24. No sequence is as short as `original_max_position_embeddings`
# of YaRN's tables; phi4-mini has sequences on both sides of it.
SMALL = dict(vocab_size=384, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_act="silu", rms_norm_eps=1e-5)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
MULTIPLIERS = dict(embedding_multiplier=3.0, residual_multiplier=0.6, attention_multiplier=0.4, logits_scaling=1.5)
NEWER = {
    "smollm3": dict(seed=21, tokenizer="llama3-bpe", config=dict(SMALL, model_type="smollm3", num_hidden_layers=3, no_rope_layers=[1, 0, 1], rope_theta=10000.0, tie_word_embeddings=True)),
    "granite": dict(seed=22, tokenizer="gpt2-bpe", config=dict(SMALL, **MULTIPLIERS, model_type="granite", rope_theta=10000.0, tie_word_embeddings=True)),
    "granitemoehybrid": dict(
        seed=23, tokenizer="gpt2-bpe",
        config=dict({k: v for k, v in SMALL.items() if k != "intermediate_size"}, **MULTIPLIERS, model_type="granitemoehybrid", num_local_experts=0, num_experts_per_tok=0, intermediate_size=40,
                    shared_intermediate_size=40, layer_types=["full_attention"] * 2, position_embedding_type="rope", rope_theta=10000.0, tie_word_embeddings=False, mamba_n_heads=4)),
    "ministral3": dict(
        seed=24, tokenizer="llama3-bpe", wrapper="Mistral3ForConditionalGeneration",
        config=dict(SMALL, model_type="ministral3", head_dim=12, sliding_window=None, tie_word_embeddings=True,
                    rope_parameters=dict(YARN, rope_theta=100.0, beta_fast=4.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=0.5, llama_4_scaling_beta=0.3))),
    "olmo2": dict(seed=25, tokenizer="gpt2-bpe", config=dict(SMALL, model_type="olmo2", rope_theta=10000.0, tie_word_embeddings=False)),
    "olmo3": dict(
        seed=26, tokenizer="gpt2-bpe",
        config=dict(SMALL, model_type="olmo3", num_hidden_layers=3, sliding_window=13, layer_types=["sliding_attention", "full_attention", "sliding_attention"], tie_word_embeddings=False,
                    rope_parameters={"full_attention": dict(YARN, rope_theta=500000.0), "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0}})),
    "glm4": dict(
        seed=27, tokenizer="gpt2-bpe",
        config=dict(SMALL, model_type="glm4", head_dim=12, attention_bias=True, tie_word_embeddings=False,
                    rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5})),
    "phi4-mini": dict(
        seed=28, tokenizer="gpt2-bpe",
        config=dict(SMALL, model_type="phi3", original_max_position_embeddings=45, sliding_window=None, resid_pdrop=0.0, embd_pdrop=0.0, tie_word_embeddings=True,
                    rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, "short_factor": [1.0, 1.2, 1.5], "long_factor": [1.5, 4.0, 7.0]})),
}
QWEN3_5 = dict(SMALL, model_type="qwen3_5_text", hidden_size=36, num_attention_heads=2, num_key_value_heads=1, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
               linear_key_head_dim=6, linear_value_head_dim=8, linear_conv_kernel_dim=4, tie_word_embeddings=True,
               rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25, "mrope_interleaved": True, "mrope_section": [1, 1, 0]})
NEWER.update({
    "qwen3_5": dict(seed=29, tokenizer="qwen-bpe", config=dict(QWEN3_5, num_hidden_layers=3, layer_types=["linear_attention", "full_attention", "linear_attention"])),
    "qwen3_5-wrapper": dict(
        seed=30, tokenizer="qwen-bpe", wrapper="Qwen3_5ForConditionalGeneration",
        config=dict(QWEN3_5, linear_num_value_heads=2, layer_types=["linear_attention", "full_attention"])),
})
# Full layers have heads of another width, and 12b's have one key head. Windows are shorter than every sequence.
GEMMA4_ROPE = {"full_attention": {"rope_type": "proportional", "rope_theta": 1000.0, "partial_rotary_factor": 0.5}, "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}
GEMMA4 = dict(hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, sliding_window=13, final_logit_softcapping=4.0, rope_parameters=GEMMA4_ROPE, tie_word_embeddings=True)
NEWER.update({
    "gemma4-12b": dict(
        seed=31, tokenizer="gemma-bpe", wrapper="Gemma4UnifiedForConditionalGeneration",
        config=dict(GEMMA4, model_type="gemma4_unified_text", vocab_size=420, hidden_size=40, intermediate_size=28, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                    layer_types=["sliding_attention", "sliding_attention", "full_attention"], attention_k_eq_v=True, use_bidirectional_attention="vision",
                    per_layer_config={2: {"head_dim": 12, "num_key_value_heads": 1}})),
    "gemma4-e2b": dict(
        seed=32, tokenizer="gpt2-bpe", wrapper="Gemma4ForConditionalGeneration",
        config=dict(GEMMA4, model_type="gemma4_text", vocab_size=384, vocab_size_per_layer_input=384, hidden_size=36, intermediate_size=14, num_hidden_layers=5, num_attention_heads=2,
                    num_key_value_heads=1, head_dim=10, layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"], num_kv_shared_layers=3,
                    use_double_wide_mlp=True, hidden_size_per_layer_input=9, per_layer_config={1: {"head_dim": 14}, 4: {"head_dim": 14}})),
})
# Two kinds of layers, and router weights that add up to less than 1; the fixture of ../shared has those that add up to 1.
NEWER.update({
    "qwen3_moe": dict(
        seed=33, tokenizer="qwen-bpe",
        config=dict(SMALL, model_type="qwen3_moe", hidden_size=36, num_hidden_layers=3, head_dim=8, moe_intermediate_size=12, num_experts=5, num_experts_per_tok=2, norm_topk_prob=False,
                    mlp_only_layers=[1], rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=False)),
# The convolution has a bias and four taps. The MLP's width of 40 is 30 (two thirds of 45) times 1.2, rounded up to a multiple of 8.
NEWER.update({
    "lfm2": dict(
        seed=33, tokenizer="gpt2-bpe",
        config=dict(model_type="lfm2", vocab_size=384, hidden_size=36, intermediate_size=45, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, norm_eps=1e-5,
                    layer_types=["conv", "full_attention", "conv", "conv"], conv_bias=True, conv_L_cache=4, block_multiple_of=8, block_ffn_dim_multiplier=1.2, max_position_embeddings=256,
                    rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=True)),
})
for f in NEWER.values():
    f.update(newer=True, reduced=f["config"]["model_type"] != "granite")
FAMILIES.update(NEWER)


def initial_weight(name, shape, family, rng, tied):
    gemma, x = family.startswith(("gemma2", "gemma3")), rng.standard_normal(shape)
    if family.startswith("gpt2") and not name.endswith("ln_f.weight"):
        if len(shape) == 1:
            return x * 0.3 + (1 if re.search(r"ln_\w+\.weight", name) else 0)
        if re.search(r"wte|wpe", name):
            return x * 0.3
        return x * (1.5 if "c_attn" in name else 1.0) / np.sqrt(shape[0])  # Conv1D: (in, out)
    if tied and name.endswith(("model.norm.weight", "ln_f.weight", "embedding_norm.weight")):  # of both signs, or a tied model only repeats its last token
        return np.sign(rng.standard_normal(shape)) * (1 + 0.3 * x) - (1 if gemma or family.startswith("qwen3_5") else 0)
    if name.endswith(".bias"):
        return x * 0.3
    if name.endswith("A_log"):  # with dt_bias: states last from a few tokens to all
        return x - 2
    if name.endswith("dt_bias"):
        return x * 0.5 - 1
    if name.endswith(("conv1d.weight", "conv.conv.weight")):
        return x / np.sqrt(shape[-1])
    if family.startswith("gemma4") and re.search(r"\.[qk]_norm\.", name):  # scores are not divided by anything
        return x * 0.15 + 0.5
    if len(shape) == 1:
        zero_centred = gemma or family.startswith("qwen3_5") and not name.endswith("linear_attn.norm.weight")
        return x * 0.3 + (0 if zero_centred else 1)
    if "embed_tokens" in name:
        return x * (0.3 if tied else 0.5)
    if name.startswith("lm_head"):
        return x * 0.3
    gain = 1.5 if re.search("q_proj|k_proj|qkv_proj", name) else 1.0
    return x * gain / np.sqrt(shape[-1])


# -------------------------------------------------------------------------------------------------------------- float64
class Widen(TorchFunctionMode):
    """Every request for float32 becomes one for float64: HF's float32 islands (norms, softmax, rope) disappear."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        w = lambda x: torch.float64 if x is torch.float32 else x
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(w, args), **{k: w(v) for k, v in (kwargs or {}).items()})


class NoFloat32(TorchDispatchMode):
    """Proof that the float64 run is one: no operator may return a narrower float."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor) and t.is_floating_point() and t.dtype != torch.float64:
                raise AssertionError(f"{func} returned {t.dtype} in the float64 run")
        return out


class Precision:
    """`with Precision(dtype):` stock HF code in float32, or all of it in float64."""

    def __init__(self, dtype, strict=True):
        self.dtype, self.strict = dtype, strict

    def __enter__(self):
        self.old = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        self.modes = [Widen()] + ([NoFloat32()] if self.strict else []) if self.dtype == torch.float64 else []
        for m in self.modes:
            m.__enter__()

    def __exit__(self, *e):
        for m in reversed(self.modes):
            m.__exit__(*e)
        torch.set_default_dtype(self.old)


def split_experts(tensors):
    """Names and tensors of a checkpoint, which has one tensor per expert and projection; transformers 5 fuses them in memory."""
    out = {}
    for k, v in tensors.items():
        at, _, what = k.rpartition(".mlp.experts.")
        if not at or what not in ("gate_up_proj", "down_proj"):
            out[k] = v
            continue
        for e in range(v.shape[0]):
            half = v.shape[1] // 2
            parts = [("down_proj", v[e])] if what == "down_proj" else [("gate_proj", v[e, :half]), ("up_proj", v[e, half:])]
            out.update({f"{at}.mlp.experts.{e}.{name}.weight": part for name, part in parts})
    return out


def fuse_experts(tensors):
    """The opposite of split_experts, for arrays."""
    out, experts = {}, {}
    for k, v in tensors.items():
        found = re.fullmatch(r"(.*\.mlp\.experts)\.(\d+)\.(\w+)\.weight", k)
        if found:
            experts.setdefault(found[1], {}).setdefault(found[3], {})[int(found[2])] = v
        else:
            out[k] = v
    for at, of in experts.items():
        each = range(len(of["down_proj"]))
        out[at + ".gate_up_proj"] = np.stack([np.concatenate([of["gate_proj"][e], of["up_proj"][e]]) for e in each])
        out[at + ".down_proj"] = np.stack([of["down_proj"][e] for e in each])
    return out


def build(config, weights, dtype):
    """weights: name -> float32 array. Call inside Precision(dtype)."""
    config, weights = copy.deepcopy(config), fuse_experts(weights)
    # The default for experts has no float64.
    plain = dict(experts_implementation="eager") if config.model_type == "qwen3_moe" else {}
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager", **plain).eval()
    own, seen, stored = dict(model.named_parameters()), set(), model.state_dict()
    own.update((k, b) for k, b in model.named_buffers() if k in stored)  # layer_scalar of Gemma 4
    with torch.no_grad():
        for k, v in weights.items():
            p = own.get(k, own.get("transformer." + k))
            if p is None:
                raise KeyError(k)
            p.copy_(torch.from_numpy(np.asarray(v, np.float64)).to(dtype))
            seen.add(id(p))
    assert all(id(p) in seen for p in own.values()), [k for k, p in own.items() if id(p) not in seen]
    return model


def trainable(model):
    return {k: p for k, p in model.named_parameters() if p.requires_grad}


# ------------------------------------------------------------------------------------------------------------ sequences
def sequences(tok, rows, bos, eos, pad):
    enc = lambda s: tok.encode(s, add_special_tokens=False)
    ids, plen, merged = [], [], []
    for r in rows:
        for i, a in ((r["i_chosen"], r["r_chosen"]), (r["i_reject"], r["r_reject"])):
            p, e = enc(template(i)).ids, enc(template(i) + a)
            n = len(p) if e.ids[: len(p)] == p else len(p) - 1
            assert e.ids[:n] == p[:n], "prompt and full text part ways earlier than one token before the boundary"
            # the same boundary by offsets: the first token that ends behind the prompt's text
            cut = len(template(i))
            assert n == next(t for t, (_, b) in enumerate(e.offsets) if b > cut), "rules of the boundary disagree"
            merged.append(n != len(p))
            ids.append(([] if bos is None else [bos]) + e.ids + [eos])
            plen.append(n + (bos is not None))
    S, T = len(ids), max(map(len, ids))
    out = {k: np.full((S, T), v, np.int32) for k, v in (("input_ids", pad), ("attention_mask", 0), ("labels_joint", -100), ("labels_cond", -100))}
    for s, x in enumerate(ids):
        out["input_ids"][s, : len(x)] = x
        out["attention_mask"][s, : len(x)] = 1
        out["labels_joint"][s, : len(x)] = x
        out["labels_cond"][s, plen[s] : len(x)] = x[plen[s] :]
    out["prompt_len"], out["seq_len"] = np.array(plen, np.int32), np.array([len(x) for x in ids], np.int32)
    return out, merged


def logits_of(model, seqs, which=None):
    ids = torch.from_numpy(seqs["input_ids"].astype(np.int64))
    if (getattr(model.config, "rope_parameters", None) or {}).get("rope_type") == "longrope":  # the length of the padded batch would decide
        which = range(len(ids)) if which is None else which
        alone = [model(input_ids=ids[s : s + 1, : seqs["seq_len"][s]], use_cache=False).logits[0] for s in which]
        return torch.stack([torch.cat([x, x.new_zeros(ids.shape[1] - len(x), x.shape[1])]) for x in alone])
    ids = ids if which is None else ids[which]
    return model(input_ids=ids, use_cache=False).logits  # right padding and causal attention: no mask is needed


def token_logps(model, seqs, which=None):
    ids = torch.from_numpy(seqs["input_ids"].astype(np.int64))
    mask = torch.from_numpy(seqs["attention_mask"].astype(bool))
    if which is not None:
        ids, mask = ids[which], mask[which]
    lp = logits_of(model, seqs, which)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return lp * mask[:, 1:]


def score(tok_lp, labels, average=False):
    m = torch.from_numpy(labels[:, 1:] != -100)
    s = (tok_lp * m).sum(1)
    return s / m.sum(1) if average else s


def losses(variant, pc, pr, rc, rr):
    ls = torch.nn.functional.logsigmoid
    if variant == "sigmoid_reffree":
        rc, rr = rc * 0, rr * 0
    h = (pc - pr) - (rc - rr)
    if variant in ("sigmoid", "sigmoid_reffree"):
        return -ls(BETA * h)
    if variant == "sigmoid_ls0.1":
        return -0.9 * ls(BETA * h) - 0.1 * ls(-BETA * h)
    if variant == "hinge":
        return torch.relu(1 - BETA * h)
    if variant == "ipo":
        return (h - 1 / (2 * BETA)) ** 2
    assert variant == "kto_pair"
    kc, kr = (pc - rc).mean().clamp(min=0), (pr - rr).mean().clamp(min=0)
    return torch.cat([1 - torch.sigmoid(BETA * ((pc - rc) - kr)), 1 - torch.sigmoid(BETA * (kc - (pr - rr)))])


# ------------------------------------------------------------------------------------------------------------ evaluation
def sides(rows):
    return [2 * r for r in rows], [2 * r + 1 for r in rows]


def pair_loss(model, ref, seqs, rows, mode):
    c, r = sides(rows)
    which = c + r
    s = score(token_logps(model, seqs, which), seqs[f"labels_{mode}"][which])
    n = len(rows)
    return losses("sigmoid", s[:n], s[n:], ref[c], ref[r])


def sft_loss(model, seqs, rows):
    c = sides(rows)[0]
    lab = seqs["labels_cond"][c]
    return -score(token_logps(model, seqs, c), lab).sum() / int((lab[:, 1:] != -100).sum())


def gradient(params, loss):
    g = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    return {k: (torch.zeros_like(p) if x is None else x) for (k, p), x in zip(params.items(), g)}


def norm_of(g):
    return float(torch.sqrt(sum((x.double() ** 2).sum() for x in g.values())))


def train(model, params, ref, seqs, decay_all):
    groups = [dict(params=[p for p in params.values() if decay_all or p.ndim > 1], weight_decay=0.05)]
    if not decay_all:
        groups.append(dict(params=[p for p in params.values() if p.ndim == 1], weight_decay=0.0))
    opt = torch.optim.AdamW([g for g in groups if g["params"]], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, foreach=False)
    log, after2 = dict(loss=[], grad_norm=[], lr=[], accuracy=[]), None
    start = {k: p.detach().clone() for k, p in params.items()}
    for step, rows in enumerate(TRAIN):
        l = pair_loss(model, ref, seqs, rows, "joint")
        for k, g in gradient(params, l.mean()).items():
            params[k].grad = g
        log["loss"].append(float(l.detach().mean()))
        log["grad_norm"].append(float(torch.nn.utils.clip_grad_norm_(list(params.values()), 1.0)))
        log["lr"].append(float(LR[step]))
        log["accuracy"].append(float((l.detach() < np.log(2)).double().mean()))  # h > 0
        for g in opt.param_groups:
            g["lr"] = LR[step]
        opt.step()
        if step == 0:
            assert all(torch.equal(params[k], start[k]) for k in params), "step 0 has lr 0"
        if step == 1:
            after2 = {k: p.detach().clone() for k, p in params.items()}
    opt.zero_grad()
    return log, after2, {k: p.detach().clone() for k, p in params.items()}


def generate(model, prompts, n=32):
    out, margin = [], float("inf")
    for p in prompts:
        ids = list(p)
        for _ in range(n):
            top = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
            margin = min(margin, float(top.values[0] - top.values[1]))
            ids.append(int(top.indices[0]))
        out.append(ids[len(p) :])
    return out, margin


def evaluate(dtype, make, seqs, meta, rename=lambda k: k, final_free=True):
    """Everything at one precision. make() -> (policy model, reference scores' model context, its trainable parameters, initial-weights model)."""
    T, S = {}, {}
    with Precision(dtype):
        policy, reference, initial = make()
        params = trainable(policy)
        with torch.no_grad():
            lp = {"policy": token_logps(policy, seqs)}
            logits = {"policy": logits_of(policy, seqs, [meta["logits"]["sequence"]])[0, meta["logits"]["positions"]]}
            with reference() as m:
                lp["ref"], logits["ref"] = token_logps(m, seqs), logits_of(m, seqs, [meta["logits"]["sequence"]])[0, meta["logits"]["positions"]]
        sc = {}
        for who in ("ref", "policy"):
            T[f"{who}/token_logps"], T[f"{who}/logits"] = lp[who], logits[who]
            for mode in ("joint", "cond"):
                for avg in ("", "_avg"):
                    sc[who, mode, avg] = T[f"{who}/seq_logps_{mode}{avg}"] = score(lp[who], seqs[f"labels_{mode}"], bool(avg))
        c, r = sides(BATCH)
        for mode in ("joint", "cond"):
            for v in VARIANTS:
                a = "_avg" if v == "ipo" else ""
                pc, pr = (sc["policy", mode, a][x].clone().requires_grad_() for x in (c, r))
                l = losses(v, pc, pr, sc["ref", mode, a][c], sc["ref", mode, a][r])
                dc, dr = torch.autograd.grad(l.mean(), [pc, pr])
                k = f"loss/{mode}/{v}"
                S[k] = float(l.detach().mean())
                T[k + "/losses"], T[k + "/dloss_dchosen"], T[k + "/dloss_drejected"] = l.detach(), dc, dr
        for name, mode, rows in (("jpo", "joint", BATCH), ("dpo", "cond", DPO)):
            c, r = sides(rows)
            p, q = sc["policy", mode, ""], sc["ref", mode, ""]
            l = losses("sigmoid", p[c], p[r], q[c], q[r])
            wc, wr = BETA * (p[c] - q[c]), BETA * (p[r] - q[r])
            T.update({f"{name}/losses": l, f"{name}/rewards_chosen": wc, f"{name}/rewards_rejected": wr, f"{name}/margins": wc - wr})
            S.update({f"{name}/loss": float(l.mean()), f"{name}/accuracy": float((wc > wr).double().mean()), f"{name}/reward_margin_mean": float((wc - wr).mean())})
        full = {}  # stored whole or by rows
        goals = [("grad_jpo", lambda: pair_loss(policy, sc["ref", "joint", ""], seqs, BATCH, "joint").mean())]
        if not meta.get("reduced"):
            goals.append(("grad_dpo", lambda: pair_loss(policy, sc["ref", "cond", ""], seqs, DPO, "cond").mean()))
            if "base" not in meta:
                goals.append(("grad_sft", lambda: sft_loss(policy, seqs, BATCH)))
        for name, f in goals:
            loss = f()
            g = gradient(params, loss)
            S[f"{name}/norm"] = norm_of(g)
            if name == "grad_sft":
                S["sft/loss"], S["sft/n_tokens"] = float(loss.detach()), int((seqs["labels_cond"][sides(BATCH)[0]][:, 1:] != -100).sum())
            full.update({f"{name}/{rename(k)}": x for k, x in split_experts(g).items()})
        start = {k: p.detach().clone() for k, p in params.items()}
        if not meta.get("reduced"):
            runs = [("train", True)] + ([("train_hf_groups", False)] if "base" not in meta else [])
            for name, decay_all in runs:
                with torch.no_grad():
                    for k in params:
                        params[k].copy_(start[k])
                log, a2, a10 = train(policy, params, sc["ref", "joint", ""], seqs, decay_all)
                S.update({f"{name}/{k}": v for k, v in log.items()})
                with torch.no_grad():
                    T[f"{name}/final_seq_logps_joint"] = score(token_logps(policy, seqs), seqs["labels_joint"])
                if name == "train":
                    late = re.compile(r"(layers|\.h)\.[1-9]")
                    full.update({f"after2/{rename(k)}": x for k, x in a2.items() if "base" in meta or not late.search(k)})
                    full.update({f"after10/{rename(k)}": x for k, x in a10.items()})
            with torch.no_grad():
                for k in params:
                    params[k].copy_(start[k])
        with torch.no_grad():
            tokens, margin = generate(initial, meta["generation"]["prompts"])
    T = {k: v.detach().double().numpy() for k, v in T.items()}
    full = {k: v.detach().double().numpy() for k, v in full.items()}
    return dict(T=T, full=full, S=S, start={rename(k): v.double().numpy() for k, v in split_experts(start).items()}, tokens=tokens, margin=margin)


class use:
    """reference() for a full model: another one; for LoRA: the adapter switched off."""

    def __init__(self, m, ctx=None):
        self.m, self.ctx = m, ctx

    def __call__(self):
        return self

    def __enter__(self):
        if self.ctx:
            self.c = self.ctx()
            self.c.__enter__()
        return self.m

    def __exit__(self, *e):
        if self.ctx:
            self.c.__exit__(*e)


def read_weights(d):
    idx = d / "model.safetensors.index.json"
    files = sorted(set(json.load(open(idx))["weight_map"].values())) if idx.exists() else ["model.safetensors"]
    from safetensors.torch import load_file

    out = {}
    for f in files:
        out.update({k: v.float().numpy() for k, v in load_file(d / f).items() if not k.endswith(".attn.bias")})
    return out


def add_delta(w, delta):
    out = {}
    for k, v in w.items():
        d = delta.get(k, delta.get("transformer." + k))
        out[k] = v if d is None else (v.astype(np.float32) + d.astype(np.float32))
    return out


def full_maker(config, w0, w1, dtype):
    def make():
        policy, ref = build(config, w1, dtype), build(config, w0, dtype)
        ref.requires_grad_(False)
        return policy, use(ref), ref

    return make


def lora_maker(config, w0, adapter, lora, dtype):
    def make():
        from peft import LoraConfig, get_peft_model

        base = build(config, w0, dtype)
        cfg = LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], lora_dropout=0.0, target_modules=lora["target_modules"], bias="none", task_type="CAUSAL_LM")
        m = get_peft_model(base, cfg, autocast_adapter_dtype=False).eval()
        own = dict(m.named_parameters())
        with torch.no_grad():
            for k, v in adapter.items():
                p = own[k.replace(".weight", ".default.weight")]
                p.copy_(torch.from_numpy(v.astype(np.float64)).to(p.dtype))
        assert {k.replace(".default.", ".") for k in trainable(m)} == set(adapter)
        return m, use(m, m.disable_adapter), m

    return make


# -------------------------------------------------------------------------------------------------------------- storage
def error(a, b, start=None):
    """a: stock float32, b: float64"""
    e = dict(max_abs=float(np.abs(a - b).max()), rel_l2=float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300)), amax=float(np.abs(b).max()))
    if start is not None:
        e["rel_l2_of_update"] = float(np.linalg.norm(a - b) / max(np.linalg.norm(b - start), 1e-300))
    return {k: float(f"{v:.3g}") for k, v in e.items()}


def assemble(f64, f32, seqs, meta):
    """-> (tensors for expected.safetensors, expected.json)"""
    out = dict(seqs) if "base" not in meta else {}
    rows = meta.get("vocab_rows")
    if rows is not None:
        out["vocab_rows"] = np.array(rows, np.int32)
    out.update({k: v.astype(np.float32) for k, v in f64["T"].items()})
    V = meta["vocab_size"]
    for k, v in f64["full"].items():
        if rows is not None and v.ndim == 2 and v.shape[0] == V and not k.startswith("grad_jpo/"):
            a, b = k.split("/", 1)
            out[f"{a}_rows/{b}"] = v[rows].astype(np.float32)
        else:
            out[k] = v.astype(np.float32)
    js = dict(meta)
    js.pop("vocab_rows", None)
    js["scalars"] = {k: dict(f64=v, f32=f32["S"][k]) for k, v in f64["S"].items()}
    js["generation"] = dict(meta["generation"], tokens=f64["tokens"], f32_equal=f64["tokens"] == f32["tokens"], min_top2_logit_margin=f64["margin"], stop_at_eos=False)
    js["l2_norms"] = {k: float(np.linalg.norm(v)) for k, v in f64["full"].items()}
    js["error_f32_vs_f64"] = {k: error(f32["T"][k], v) for k, v in f64["T"].items()}
    for k, v in f64["full"].items():
        js["error_f32_vs_f64"][k] = error(f32["full"][k], v, f64["start"][k.split("/", 1)[1]] if k.startswith("after") else None)
    return {k: np.ascontiguousarray(v) for k, v in out.items()}, js


OPTIMIZER = dict(name="torch.optim.AdamW", lr=1e-3, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.05, clip_global_norm=1.0, schedule="cosine with warmup", warmup_steps=2, total_steps=10,
                 decay="all parameters")


def dump(path, obj):
    path.write_text(json.dumps(obj, ensure_ascii=False, separators=(",", ":")) + "\n")


def v5(c):
    """The configuration as transformers 5 writes it: rotary settings in rope_parameters."""
    c = dict(c)
    theta, scaling, part = c.pop("rope_theta"), c.pop("rope_scaling", None), c.get("partial_rotary_factor")
    rope = dict(scaling or {"rope_type": "default"}, rope_theta=theta)
    if part is not None:
        rope["partial_rotary_factor"] = part
    if "rope_local_base_freq" in c:
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": c.pop("rope_local_base_freq")}}
    c["rope_parameters"], c["transformers_version"] = rope, "5.23.0"
    c.setdefault("tie_word_embeddings", True)
    return dict(sorted(c.items()))


def hub(c):
    """Gemma as first published: the pattern instead of its list of layers (Gemma 2: nothing, alternation is implied)."""
    c = {k: v for k, v in c.items() if k not in ("layer_types", "_sliding_window_pattern", "use_bidirectional_attention", "dtype")}
    if c["model_type"] == "gemma3_text":
        c["sliding_window_pattern"] = 3
    c["torch_dtype"], c["transformers_version"] = "float32", "4.50.0"
    return dict(sorted(c.items()))


def older(c):
    """The configuration of a newer family as checkpoints of transformers 4 have it; None where there are none."""
    c, rope = dict(c), c.get("rope_parameters")
    if c["model_type"] == "ministral3":
        return None
    if c["model_type"] == "qwen3_5_text":  # transformers 5 was its first
        del c["layer_types"]
        return dict(sorted(dict(c, full_attention_interval=2).items()))
    c.pop("rope_parameters")
    full = dict(rope.get("full_attention", rope))
    c["rope_theta"] = full.pop("rope_theta")
    if "partial_rotary_factor" in full:
        c["partial_rotary_factor"] = full.pop("partial_rotary_factor")
    kind = full.pop("rope_type")
    if c["model_type"] == "lfm2":
        c["full_attn_idxs"] = [i for i, t in enumerate(c.pop("layer_types")) if t == "full_attention"]
        c["block_ff_dim"], c["tie_embedding"] = c.pop("intermediate_size"), c.pop("tie_word_embeddings")
    if c["model_type"] == "phi3":
        full.pop("original_max_position_embeddings")
    c["rope_scaling"] = None if kind == "default" else dict(full, type=kind)
    if c["model_type"] == "qwen3_moe":
        c["num_experts"] = c.pop("num_local_experts")
    if c["model_type"] == "granitemoehybrid":
        c["layer_types"] = ["attention"] * len(c["layer_types"])
    return dict(sorted(c.items()))


def older_gemma4(c):
    """The configuration of a wrapped Gemma 4 as the hub has it: heads of full layers in fields of their own."""
    text = dict(c["text_config"])
    of_full = list(text.pop("per_layer_config").values())[0]
    text["global_head_dim"], text["num_global_key_value_heads"] = of_full["head_dim"], of_full.get("num_key_value_heads")
    return dict(c, text_config=dict(sorted(text.items())))


def wrap(d, f, w0, seqs):
    """Puts the language model of a folder into the architecture around it, with a small vision tower, and renames what is expected."""
    import transformers

    text = AutoConfig.from_pretrained(d / "model")
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    if f["wrapper"].startswith("Qwen3_5"):
        vision = dict(model_type="qwen3_5_vision", depth=1, hidden_size=8, intermediate_size=8, num_heads=2, num_position_embeddings=4, out_hidden_size=text.hidden_size, patch_size=2,
                      spatial_merge_size=1, temporal_patch_size=2)
        config = transformers.Qwen3_5Config(text_config=text.to_dict(), vision_config=vision, image_token_id=3, video_token_id=4, vision_start_token_id=3, vision_end_token_id=4,
                                            tie_word_embeddings=text.tie_word_embeddings)
        return put_in_wrapper(d, f, w0, seqs, text, config, tokens)
    if f["wrapper"].startswith("Gemma4"):
        unified = "Unified" in f["wrapper"]
        vision = dict(mm_embed_dim=8, mm_posemb_size=4, output_proj_dims=8, patch_size=2, pooling_kernel_size=1) if unified else dict(
            head_dim=4, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1, num_key_value_heads=2, patch_size=2, pooling_kernel_size=1, position_embedding_size=8)
        special = dict(image_token_id=3, boi_token_id=3, boa_token_id=3, audio_token_id=4, video_token_id=4, eoi_token_id=4, eoa_token_index=4)
        config = (transformers.Gemma4UnifiedConfig if unified else transformers.Gemma4Config)(
            text_config=text.to_dict(), vision_config=vision, audio_config=dict(audio_embed_dim=8) if unified else None, tie_word_embeddings=True, **special)
        put_in_wrapper(d, f, w0, seqs, text, config, tokens)
        (d / "model/config_hub.json").write_text(json.dumps(older_gemma4(json.load(open(d / "model/config.json"))), indent=2) + "\n")
        return
    vision = dict(model_type="pixtral", hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, head_dim=4, image_size=8, patch_size=4, num_channels=3)
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=3, tie_word_embeddings=text.tie_word_embeddings)
    put_in_wrapper(d, f, w0, seqs, text, config, tokens)


def put_in_wrapper(d, f, w0, seqs, text, config, tokens):
    import transformers

    for k in tokens:
        setattr(config, k, getattr(text, k))
    model = getattr(transformers, f["wrapper"])(config).eval()
    rng, own, stored = np.random.Generator(np.random.PCG64(f["seed"] + 1000)), dict(model.named_parameters()), model.state_dict()
    own.update((k, b) for k, b in model.named_buffers() if k in stored)
    with torch.no_grad():
        for k, p in sorted(own.items()):
            p.copy_(torch.from_numpy(w0["model." + k.split("language_model.")[1]] if "language_model." in k else rng.standard_normal(tuple(p.shape)) * 0.1))
        ids = torch.from_numpy(seqs["input_ids"].astype(np.int64))
        alone = build(text, w0, torch.float32)(input_ids=ids, use_cache=False).logits
        assert float((model(input_ids=ids, use_cache=False).logits - alone).abs().max()) < 1e-4
    for p in (d / "model").glob("*.safetensors"):
        p.unlink()
    model.save_pretrained(d / "model")
    names = np_load(d / "model/model.safetensors")
    forms = lambda k: ("language_model." + k, "language_model." + k.removeprefix("model."))
    stored = lambda k: next(n for n in names if n.endswith(forms(k)))
    rename = lambda k: "/".join([*k.split("/")[:-1], stored(k.split("/")[-1])]) if k.split("/")[-1].startswith("model.") else k
    for file in ("delta.safetensors", "expected.safetensors"):
        np_save({rename(k): v for k, v in np_load(d / file).items()}, d / file)
    js = json.load(open(d / "expected.json"))
    js["l2_norms"] = {rename(k): v for k, v in js["l2_norms"].items()}
    js["error_f32_vs_f64"] = {rename(k): v for k, v in js["error_f32_vs_f64"].items()}
    js["untouched"] = sorted(n for n in names if "language_model." not in n or n.endswith("layer_scalar"))
    dump(d / "expected.json", js)
    for p in d.rglob("*.safetensors"):
        p.chmod(0o644)


def make_full(name):
    f, d = FAMILIES[name], HERE / name
    shutil.rmtree(d, ignore_errors=True)
    (d / "model").mkdir(parents=True)
    maker, bos, eos, pad = TOKENIZERS[f["tokenizer"]]
    tok = maker()
    tid = lambda s: None if s is None else tok.token_to_id(s)
    dtype = getattr(torch, f.get("dtype", "float32"))
    conf = dict(f["config"], bos_token_id=tid(bos), eos_token_id=tid(eos), pad_token_id=tid(pad), **COMMON)
    config = AutoConfig.for_model(conf.pop("model_type"), **conf)
    if config.model_type == "gemma3_text":
        config._sliding_window_pattern = 3
    # weights and delta, in the order of the names
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    rng = np.random.Generator(np.random.PCG64(f["seed"]))
    delta = {}
    with torch.no_grad():
        for k, p in sorted(model.named_parameters()):
            p.copy_(torch.from_numpy(initial_weight(k, tuple(p.shape), name, rng, config.tie_word_embeddings)))
            delta[k] = (rng.standard_normal(tuple(p.shape)) * 0.03).astype(np.float16)
        for k, b in sorted(model.named_buffers()):
            if k.endswith("layer_scalar"):
                b.copy_(torch.from_numpy(1 + 0.3 * rng.standard_normal(tuple(b.shape))))
    model = model.to(dtype)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    shard = int(size * 1.2 / f["shards"]) if "shards" in f else 10**9
    model.save_pretrained(d / "model", max_shard_size=shard)
    if "shards" in f:
        n = len(list((d / "model").glob("*.safetensors")))
        assert n == f["shards"], f"{n} shards"
    delta = {k: np.ascontiguousarray(v) for k, v in split_experts(delta).items()}
    np_save(delta, d / "delta.safetensors")
    PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=bos, eos_token=eos, pad_token=pad, unk_token="<unk>" if tok.token_to_id("<unk>") is not None else None,
                            clean_up_tokenization_spaces=False, model_max_length=256, chat_template=CHAT).save_pretrained(d / "model", save_jinja_files=False)
    c = json.load(open(d / "model/config.json"))
    if "rope_theta" in c:
        (d / "model/config_v5.json").write_text(json.dumps(v5(c), indent=2) + "\n")
    if name.startswith(("gemma2", "gemma3")):
        (d / "model/config_hub.json").write_text(json.dumps(hub(c), indent=2) + "\n")
        assert AutoConfig.for_model(**hub(c)).layer_types == config.layer_types
    if f.get("newer") and "wrapper" not in f and older(c):
        (d / "model/config_hub.json").write_text(json.dumps(older(c), indent=2) + "\n")
    rows = prefs()
    (d / "prefs.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    seqs, merged = sequences(tok, rows, tid(bos), tid(eos), tid(pad) or 0)
    V, T = config.vocab_size, seqs["input_ids"].shape[1]
    seen = np.bincount(seqs["input_ids"][seqs["attention_mask"] > 0], minlength=V)
    vocab_rows = sorted({*range(0, V, 29), V - 1, tid(eos), *np.argsort(-seen, kind="stable")[:16].tolist()} | ({tid(bos)} if bos else set()))
    last = int(seqs["seq_len"][4]) - 2
    meta = dict(family=name, model_type=config.model_type, beta=BETA, tokenizer=f["tokenizer"], bos=tid(bos), eos=tid(eos), pad=tid(pad), vocab_size=V, n_pairs=len(rows), batch_rows=BATCH,
                dpo_rows=DPO, train_rows=TRAIN, optimizer=OPTIMIZER, n_parameters=sum(p.numel() for p in model.parameters()), reduced=bool(f.get("reduced")), boundary_merged=int(sum(merged)),
                vocab_rows=vocab_rows, logits=dict(sequence=4, positions=sorted({0, 1, 6, 7, 8, 13, 14, last // 2, last})))
    w0 = read_weights(d / "model")
    w1 = add_delta(w0, delta)
    meta["generation"] = pick_prompts(config, w0, seqs, merged)
    f64, f32 = (evaluate(t, full_maker(config, w0, w1, t), seqs, meta) for t in (torch.float64, torch.float32))
    finish(d, f64, f32, seqs, meta)
    if "wrapper" in f:
        wrap(d, f, w0, seqs)
    return config, w0, w1, seqs


def pick_prompts(config, w0, seqs, merged, adapter=None):
    """Three prompts whose greedy path keeps clear of ties."""
    found = []
    with Precision(torch.float64), torch.no_grad():
        m = build(config, w0, torch.float64) if adapter is None else adapter()[2]
        for s in range(24):
            p = seqs["input_ids"][s][: seqs["prompt_len"][s]].tolist()
            if merged[s] or len(found) == 3 or p in found:
                continue
            out, margin = generate(m, [p])
            if margin > 4e-3 and len(set(out[0])) >= 10:
                found.append(p)
    assert len(found) == 3
    return dict(prompts=found)


def finish(d, f64, f32, seqs, meta):
    out, js = assemble(f64, f32, seqs, meta)
    np_save(out, d / "expected.safetensors")
    for p in d.rglob("*.safetensors"):
        p.chmod(0o644)
    dump(d / "expected.json", js)
    g = js["generation"]
    assert g["f32_equal"], "float32 generates something else: choose other prompts"
    err = js["error_f32_vs_f64"]
    worst = lambda p, key: max([v[key] for k, v in err.items() if k.startswith(p) and key in v] or [0])
    print(f"{d.name}: T {seqs['input_ids'].shape[1]}, merged boundaries {meta.get('boundary_merged', '-')}, loss {js['scalars']['jpo/loss']['f64']:.4f}, |g| {js['scalars']['grad_jpo/norm']['f64']:.3f}, "
          f"margin {g['min_top2_logit_margin']:.4f}; f32: logps {worst('policy/token', 'max_abs'):.1e}, grad_jpo {worst('grad_jpo', 'rel_l2'):.1e}, update {worst('after10', 'rel_l2_of_update'):.1e}", flush=True)


def make_lora(name):
    f, d = FAMILIES[name], HERE / name
    base = HERE / f["base"]
    shutil.rmtree(d, ignore_errors=True)
    d.mkdir()
    config, w0 = AutoConfig.from_pretrained(base / "model"), read_weights(base / "model")
    bm, bx = json.load(open(base / "expected.json")), np_load(base / "expected.safetensors")
    rows = [json.loads(l) for l in open(base / "prefs.jsonl")]
    seqs, merged_at = sequences(Tokenizer.from_file(str(base / "model/tokenizer.json")), rows, bm["bos"], bm["eos"], bm["pad"] or 0)
    assert all(np.array_equal(v, bx[k]) for k, v in seqs.items())
    lora = dict(r=f["r"], alpha=f["alpha"], dropout=0.0, scaling=f["alpha"] / f["r"], target_modules=sorted(f["targets"]))
    from peft import LoraConfig, get_peft_model

    def peft_dir(path, tensors):
        m = get_peft_model(build(config, w0, torch.float32), LoraConfig(r=f["r"], lora_alpha=f["alpha"], lora_dropout=0.0, target_modules=lora["target_modules"], bias="none", task_type="CAUSAL_LM"))
        m.peft_config["default"].base_model_name_or_path = f"../{f['base']}/model"
        own = trainable(m)
        with torch.no_grad():
            for k, p in own.items():
                p.copy_(torch.from_numpy(tensors[k.replace(".default.", ".")] if tensors else initial[k.replace(".default.", ".")]))
        m.save_pretrained(path)
        (path / "README.md").unlink(missing_ok=True)
        cfg = json.load(open(path / "adapter_config.json"))
        cfg["target_modules"] = sorted(cfg["target_modules"])  # PEFT writes a set in any order
        (path / "adapter_config.json").write_text(json.dumps(cfg, indent=2, sort_keys=True) + "\n")

    rng = np.random.Generator(np.random.PCG64(f["seed"]))
    initial = {}
    for k, v in sorted(w0.items()):
        if k.rsplit(".", 2)[-2] in lora["target_modules"]:
            n = "base_model.model." + k.removesuffix(".weight")
            initial[n + ".lora_A.weight"] = (rng.standard_normal((f["r"], v.shape[1])) * 0.15).astype(np.float32)
            initial[n + ".lora_B.weight"] = (rng.standard_normal((v.shape[0], f["r"])) * 0.15).astype(np.float32)
    peft_dir(d / "adapter", initial)
    meta = dict(family=name, base=f"../{f['base']}/model", beta=BETA, lora=lora, bos=bm["bos"], eos=bm["eos"], pad=bm["pad"], vocab_size=bm["vocab_size"], n_pairs=bm["n_pairs"], batch_rows=BATCH,
                dpo_rows=DPO, train_rows=TRAIN, sequences=f"same as ../{f['base']}/expected.safetensors input_ids", optimizer=OPTIMIZER, logits=bm["logits"])
    maker = lambda t: lora_maker(config, w0, initial, lora, t)
    meta["generation"] = pick_prompts(config, w0, seqs, merged_at, maker(torch.float64))
    rename = lambda k: k.replace(".default.", ".")
    f64, f32 = (evaluate(t, maker(t), seqs, meta, rename) for t in (torch.float64, torch.float32))
    peft_dir(d / "adapter_after10", {k[8:]: v.astype(np.float32) for k, v in f64["full"].items() if k.startswith("after10/")})
    merged, worst = {}, 0.0
    for k, v in w0.items():
        n = "base_model.model." + k.removesuffix(".weight")
        if n + ".lora_A.weight" in initial:
            A, B = (initial[f"{n}.lora_{x}.weight"] for x in "AB")
            m = v.astype(np.float64) + lora["scaling"] * (B.astype(np.float64) @ A.astype(np.float64))
            merged[k] = m.astype(np.float32)
            worst = max(worst, float(np.abs(v + np.float32(lora["scaling"]) * (B @ A) - m).max()))
    np_save(merged, d / "merged.safetensors")
    meta["merged_f32_vs_f64_max_abs"] = worst
    finish(d, f64, f32, seqs, meta)
    return config, w0, initial, seqs, lora


# ----------------------------------------------------------------------------------------------------------- sensitivity
def patched_repeat_kv(x, n):
    return x.repeat(1, n, 1, 1)  # tiled instead of interleaved


def features(name, config):
    """label -> (changes of the configuration, change of the built model or None)"""
    def norms(m, pick, f):
        for k, mod in m.named_modules():
            if type(mod).__name__.endswith("RMSNorm") and re.search(pick, k):
                f(mod)

    ident = lambda mod: setattr(mod, "forward", lambda x: x)
    minus = lambda mod: mod.weight.data.sub_(1)
    out = {}
    if name in ("qwen3", "gemma3"):
        out["q/k norms"] = ({}, lambda m: norms(m, r"\.[qk]_norm", ident))
    if name.startswith(("gemma2", "gemma3")):
        out["post norms"] = ({}, lambda m: norms(m, "post_attention|post_feedforward", ident))
        out["+1 of the norms' weights"] = ({}, lambda m: norms(m, "", minus))
        out["query_pre_attn_scalar (head_dim instead)"] = (dict(query_pre_attn_scalar=config.head_dim), None)
        out["tanh GELU (erf form instead)"] = (dict(hidden_activation="gelu"), None)
        scale = config.hidden_size**0.5
        def rescale(to):
            def f(m):
                e = m.model.embed_tokens
                e.forward = lambda ids, e=e: torch.nn.functional.embedding(ids, e.weight) * to / (scale if name == "gemma2" else 1)
            return f
        out["embedding scale"] = ({}, rescale(1.0))
        out["embedding scale (rounded to bf16)"] = ({}, rescale(float(torch.tensor(scale, dtype=torch.bfloat16))))
        flip = ["full_attention" if t == "sliding_attention" else "sliding_attention" for t in config.layer_types]
        out["windows on the other layers"] = (dict(layer_types=flip), None) if name == "gemma2" else (dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"]), None)
    if name == "gemma2":
        out["attention soft-cap"] = (dict(attn_logit_softcapping=None), None)
        out["final soft-cap"] = (dict(final_logit_softcapping=None), None)
    if name == "gemma3":
        out["local rope base (global instead)"] = (dict(rope_local_base_freq=config.rope_theta), None)
        out["rope scaling (linear)"] = (dict(rope_scaling=None), None)
        out["rope scaling also on local layers"] = ({}, lambda m: m.model.rotary_emb_local.inv_freq.div_(4.0))
    if name == "llama3-scaling":
        out["rope scaling (llama3)"] = (dict(rope_scaling=None), None)
        out["rope scaling (linear instead)"] = (dict(rope_scaling={"rope_type": "linear", "factor": 4.0}), None)
        out["rope scaling (smooth band instead cut)"] = ({}, lambda m: m.model.rotary_emb.inv_freq.copy_(torch.where(torch.arange(8) < 1, 1.0, 0.25) * 10000.0 ** (-torch.arange(8) / 8)))
    if name == "phi3":
        out["partial rotary (all dimensions instead)"] = (dict(partial_rotary_factor=1.0), None)
        def swap(m):
            for l in m.model.layers:
                w = l.mlp.gate_up_proj.weight.data
                w.copy_(torch.cat(w.chunk(2)[::-1]))
        out["order of gate and up"] = ({}, swap)
        def kv(m):
            for l in m.model.layers:
                w = l.self_attn.qkv_proj.weight.data
                a = w.split([32, 16, 16])
                w.copy_(torch.cat([a[0], a[2], a[1]]))
        out["order of k and v"] = ({}, kv)
    if getattr(config, "sliding_window", None):
        full = dict(layer_types=["full_attention"] * config.num_hidden_layers) if name.startswith("gemma") else dict(sliding_window=None)
        if name.startswith("gemma4"):  # types decide about heads, too
            full = dict(sliding_window=1000)
        out[f"window {config.sliding_window} (none)"] = (full, None)
        out[f"window {config.sliding_window} (one wider)"] = (dict(sliding_window=config.sliding_window + 1), None)
    if name == "mistral-odd":
        out["rms_norm_eps (1e-5 instead)"] = (dict(rms_norm_eps=1e-5), None)
    if name.startswith("gpt2"):
        conv = lambda m, pick: [p.data for k, p in m.named_parameters() if re.search(pick, k)]
        out["Conv1D of the square c_proj (transposed)"] = ({}, lambda m: [w.copy_(w.T.clone()) for w in conv(m, r"attn\.c_proj\.weight")])
        for what in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            out[f"bias of {what}"] = ({}, lambda m, what=what: [b.zero_() for b in conv(m, re.escape(what) + r"\.bias")])
        out["positions"] = ({}, lambda m: m.transformer.wpe.weight.data.zero_())
    if name != "gemma4-e2b" and (name == "gemma4-12b" or getattr(config, "num_key_value_heads", 1) > 1):  # Gemma 4's differ by layer
        out["grouped heads (tiled instead of interleaved)"] = ({}, "kv")
    if config.tie_word_embeddings:
        out["tied head (a random one instead)"] = ({}, "untie")
    if FAMILIES[name].get("newer"):
        rope = lambda **changes: dict(rope_parameters={**config.rope_parameters, **changes})
        plain = {"rope_type": "default", "rope_theta": 500000.0}
        if name == "smollm3":
            out["layer without rotation (rotated too)"] = (dict(no_rope_layers=[1, 1, 1]), None)
        for field in MULTIPLIERS if name.startswith("granite") else ():
            out[f"{field} (1 instead)"] = ({field: 1.0}, None)
        if name == "granitemoehybrid":
            out["position_embedding_type rope (none)"] = (dict(position_embedding_type=None), None)
        if name == "ministral3":
            out["llama_4_scaling_beta"] = (rope(llama_4_scaling_beta=0.0), None)
            out["YaRN (default instead)"] = (rope(rope_type="default"), None)
            out["YaRN's mscale (attention factor 1)"] = (rope(attention_factor=1.0), None)
        if name.startswith("olmo"):
            out["q/k norms"] = ({}, lambda m: norms(m, r"\.[qk]_norm", ident))
            out["post norms"] = ({}, lambda m: norms(m, "post_attention|post_feedforward", ident))
        if name == "olmo3":
            out["YaRN (default instead)"] = (dict(rope_parameters={"full_attention": plain, "sliding_attention": plain}), None)
            out["YaRN on sliding layers too"] = (dict(rope_parameters={k: config.rope_parameters["full_attention"] for k in ("full_attention", "sliding_attention")}), None)
        if name.startswith("qwen3_5"):
            pick = lambda m, end: [p.data for k, p in m.named_parameters() if k.endswith(end)]
            out["+1 of the norms' weights"] = ({}, lambda m: norms(m, r"layernorm|[qk]_norm|model\.norm$", lambda mod: mod.weight.data.sub_(1)))
            out["decay (none)"] = ({}, lambda m: [p.fill_(-30) for p in pick(m, "A_log")])
            out["dt_bias (none)"] = ({}, lambda m: [p.zero_() for p in pick(m, "dt_bias")])
            out["convolution (its last tap alone)"] = ({}, lambda m: [p[..., :-1].zero_() for p in pick(m, "conv1d.weight")])
            out["partial rotary (all dimensions instead)"] = (rope(partial_rotary_factor=1.0), None)
        if name == "qwen3_moe":
            out["weights of the chosen experts add up to 1"] = (dict(norm_topk_prob=True), None)
            out["second expert of a token (none)"] = (dict(num_experts_per_tok=1), None)
            out["q/k norms"] = ({}, lambda m: norms(m, r"\.[qk]_norm", ident))
        if name.startswith("gemma4"):
            table = lambda kind, **changes: dict(rope_parameters={**config.rope_parameters, kind: {**config.rope_parameters[kind], **changes}})
            out["q/k norms"] = ({}, lambda m: norms(m, r"\.[qk]_norm", ident))
            out["norm of values"] = ({}, lambda m: norms(m, r"\.v_norm", ident))
            out["post norms"] = ({}, lambda m: norms(m, "post_attention|post_feedforward", ident))
            out["weights of norms (1 +)"] = ({}, lambda m: norms(m, r"layernorm|[qk]_norm|model\.norm$", lambda mod: mod.weight.data.add_(1)))
            out["scores / sqrt(head_dim)"] = ({}, lambda m: [setattr(l.self_attn, "scaling", l.self_attn.head_dim**-0.5) for l in m.model.layers])
            out["layer_scalar (1 instead)"] = ({}, lambda m: [l.layer_scalar.fill_(1) for l in m.model.layers])
            out["final soft-cap"] = (dict(final_logit_softcapping=None), None)
            out["proportional rotary (all pairs)"] = (table("full_attention", partial_rotary_factor=1.0), None)
            out["rope base of full layers on sliding ones"] = (table("sliding_attention", rope_theta=1000.0), None)
            out["embedding scale (1 instead)"] = ({}, lambda m: m.model.embed_tokens.embed_scale.fill_(1))
        if name == "gemma4-e2b":
            out["table of per-layer inputs (zeros)"] = ({}, lambda m: m.model.embed_tokens_per_layer.weight.data.zero_())
            out["projection to per-layer inputs (zeros)"] = ({}, lambda m: m.model.per_layer_model_projection.weight.data.zero_())
            out["norm of per-layer inputs"] = ({}, lambda m: norms(m, "per_layer_projection_norm", ident))
            out["norm behind per-layer inputs"] = ({}, lambda m: norms(m, "post_per_layer_input_norm", ident))
            out["scale of per-layer inputs (1 instead of 1/sqrt 2)"] = ({}, lambda m: setattr(m.model, "per_layer_input_scale", 1.0))
        if name == "lfm2":
            of_conv = lambda m: [layer.conv for layer in m.model.layers if hasattr(layer, "conv")]
            bias = lambda pick: lambda m: [pick(conv).bias.data.zero_() for conv in of_conv(m)]
            thirds = lambda conv, order: [w.copy_(torch.cat([w.chunk(3)[i] for i in order])) for w in (conv.in_proj.weight.data, conv.in_proj.bias.data)]
            out["q/k norms"] = ({}, lambda m: norms(m, r"\.[qk]_layernorm", ident))
            out["convolution (its last tap alone)"] = ({}, lambda m: [conv.conv.weight.data[..., :-1].zero_() for conv in of_conv(m)])
            out["convolution (its taps reversed)"] = ({}, lambda m: [conv.conv.weight.data.copy_(conv.conv.weight.data.flip(-1)) for conv in of_conv(m)])
            out["bias of the convolution"] = ({}, bias(lambda conv: conv.conv))
            out["bias of in_proj"] = ({}, bias(lambda conv: conv.in_proj))
            out["bias of out_proj"] = ({}, bias(lambda conv: conv.out_proj))
            out["order of the gates (C first)"] = ({}, lambda m: [thirds(conv, (1, 0, 2)) for conv in of_conv(m)])
            out["order of gate and up (w3 first)"] = ({}, lambda m: [w.copy_(v) for f in [layer.feed_forward for layer in m.model.layers]
                                                                     for w, v in zip((f.w1.weight.data, f.w3.weight.data), (f.w3.weight.data.clone(), f.w1.weight.data.clone()))])
            out["rope (base 500 instead)"] = (rope(rope_theta=500.0), None)
        if name == "glm4":
            out["post norms"] = ({}, lambda m: norms(m, "post_self_attn|post_mlp", ident))
            out["partial rotary (all dimensions instead)"] = (rope(partial_rotary_factor=1.0), None)
            out["biases of q, k, v"] = ({}, lambda m: [p.data.zero_() for k, p in m.named_parameters() if k.endswith("_proj.bias")])
        if name == "phi4-mini":
            out["LongRoPE's long factors (short instead)"] = (rope(long_factor=[1.0, 1.2, 1.5]), None)
            out["LongRoPE's attention factor (1)"] = (rope(attention_factor=1.0), None)
            out["partial rotary (smaller part)"] = (rope(partial_rotary_factor=0.5, short_factor=[1.0, 1.2], long_factor=[1.5, 4.0]), None)
        if getattr(config, "sliding_window", None) and name == "olmo3":
            out["window 13 (none)"] = (dict(layer_types=["full_attention"] * 3), None)
            out["window 13 (one wider)"] = (dict(sliding_window=14), None)
        if not name.startswith("gemma4") and getattr(config, "num_key_value_heads", 1) > 1:
            out["grouped heads (tiled instead of interleaved)"] = ({}, "kv")
        if config.tie_word_embeddings:
            out["tied head (a random one instead)"] = ({}, "untie")
        return out
    if config.model_type != "phi3" and getattr(config, "rms_norm_eps", None) and not name.startswith("gemma"):
        out["rope (base 1e6 instead)"] = (dict(rope_theta=1e6), None)
    return out


def sensitivity(name, config, w0, w1, seqs):
    import importlib

    mod = importlib.import_module(type(AutoModelForCausalLM.from_config(config)).__module__)

    def run(changes=None, patch=None):
        c = copy.deepcopy(config)
        for k, v in (changes or {}).items():
            setattr(c, k, v)
        old = getattr(mod, "repeat_kv", None)
        out = []
        try:
            if patch == "kv":
                mod.repeat_kv = patched_repeat_kv
            with Precision(torch.float64, strict=False), torch.no_grad():
                for w in (w1, w0):
                    m = build(c, w, torch.float64)
                    if callable(patch):
                        patch(m)
                    if patch == "untie":
                        e = m.get_input_embeddings().weight
                        g = torch.Generator().manual_seed(0)
                        m.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(e.shape, generator=g, dtype=torch.float64))
                    t = token_logps(m, seqs)
                    tok = t if w is w1 else tok
                    out.append(score(t, seqs["labels_joint"]))
        finally:
            if old is not None:
                mod.repeat_kv = old
        p, q = out
        return tok, p, q

    first = run()
    return [row(name, label, first, run(*x)) for label, x in features(name, config).items()]


def row(name, label, a, b):
    c, r = sides(BATCH)
    la, lb = (float(losses("sigmoid", p[c], p[r], q[c], q[r]).mean()) for _, p, q in (a, b))
    return name, label, abs(lb - la), float(((b[1] - a[1]) / a[1]).abs().max()), float((b[0] - a[0]).abs().max())


def sensitivity_lora(name, config, w0, adapter, seqs, lora):
    def run(adapter, lora):
        with Precision(torch.float64, strict=False), torch.no_grad():
            m, ref, _ = lora_maker(config, w0, adapter, lora, torch.float64)()
            t = token_logps(m, seqs)
            with ref() as q:
                q = score(token_logps(q, seqs), seqs["labels_joint"])
        return t, score(t, seqs["labels_joint"]), q

    first = run(adapter, lora)
    cases = {"scaling alpha/r (1 instead)": (adapter, dict(lora, alpha=lora["r"]))}
    for t in FAMILIES[name]["targets"]:
        cases[f"adapter of {t}"] = ({k: v * (0 if f".{t}.lora_B" in k else 1) for k, v in adapter.items()}, lora)
    return [row(name, label, first, run(*x)) for label, x in cases.items()]


def readme(table):
    path = HERE / "README.md"
    if not path.exists():
        return
    text = path.read_text()
    head, rest = text.split("<!-- sensitivity -->\n", 1)
    old, tail = rest.split("<!-- /sensitivity -->", 1)
    new = {t[0] for t in table}
    keep = [l for l in old.splitlines() if l.startswith("| ") and l.split("|")[1].strip() not in new | {"family"}]
    lines = keep + [f"| {n} | {f} | {a:.2g} | {r:.1e} | {t:.1e} |" for n, f, a, r, t in table]
    lines.sort(key=lambda l: list(FAMILIES).index(l.split("|")[1].strip()))
    path.write_text(head + "<!-- sensitivity -->\n| family | feature switched off | change of the JPO loss | of a sequence's log-prob, relative | of a token's log-prob |\n|---|---|---|---|---|\n" + "\n".join(lines) + "\n<!-- /sensitivity -->" + tail)


# ------------------------------------------------------------------------------------------- supervised fine-tuning
# Ten steps of six rows in micro-batches of three, whose numbers of response tokens differ; the last step has four rows: micro-batches of three and
# one. The mean is over a step's tokens. The clip threshold lies between the steps' norms: some are clipped, some are not.
SFT = dict(family="mistral-odd", rows=[(5 * i + i // 24) % 24 for i in range(58)], rows_per_step=6, batch_size=3, gradient_accumulation_steps=2, max_grad_norm=3.5)


def make_sft():
    d = HERE / SFT["family"]
    config, w0 = AutoConfig.from_pretrained(d / "model"), read_weights(d / "model")
    w1, seqs = add_delta(w0, np_load(d / "delta.safetensors")), np_load(d / "expected.safetensors")
    steps = [SFT["rows"][i : i + SFT["rows_per_step"]] for i in range(0, len(SFT["rows"]), SFT["rows_per_step"])]
    assert len(steps) == len(LR) and len(steps[-1]) == 4
    lengths = seqs["seq_len"] - seqs["prompt_len"]
    tokens = [[int(sum(lengths[2 * r] for r in rows[i : i + 3])) for i in range(0, len(rows), 3)] for rows in steps]
    assert all(a != b for a, b in tokens), tokens

    def run(dtype, of_means=False):
        with Precision(dtype):
            model = build(config, w1, dtype)
            params = trainable(model)
            opt = torch.optim.AdamW(list(params.values()), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, foreach=False)
            log = dict(loss=[], grad_norm=[], lr=LR)
            for step, rows in enumerate(steps):
                if of_means:  # what a mean of the micro-batches' means would be
                    loss = torch.stack([sft_loss(model, seqs, rows[i : i + 3]) for i in range(0, len(rows), 3)]).mean()
                else:
                    loss = sft_loss(model, seqs, rows)
                for k, g in gradient(params, loss).items():
                    params[k].grad = g
                log["loss"].append(float(loss.detach()))
                log["grad_norm"].append(float(torch.nn.utils.clip_grad_norm_(list(params.values()), SFT["max_grad_norm"])))
                for g in opt.param_groups:
                    g["lr"] = float(LR[step])
                opt.step()
            with torch.no_grad():
                final = score(token_logps(model, seqs), seqs["labels_cond"])
        return {k: [float(x) for x in v] for k, v in log.items()}, {k: p.detach().double().numpy() for k, p in params.items()}, final.double().numpy()

    log, after, final = run(torch.float64)
    log32, after32, final32 = run(torch.float32)
    clipped = [n > SFT["max_grad_norm"] for n in log["grad_norm"]]
    assert any(clipped[1:]) and not all(clipped[1:]), log["grad_norm"]
    other, _, _ = run(torch.float64, of_means=True)
    rows = seqs["vocab_rows"]
    out = {"final_seq_logps_cond": final.astype(np.float32)}
    for k, v in after.items():
        by_rows = v.ndim == 2 and v.shape[0] == config.vocab_size
        out[("after10_rows/" if by_rows else "after10/") + k] = (v[rows] if by_rows else v).astype(np.float32)
    np_save(out, d / "sft.safetensors")
    (d / "sft.safetensors").chmod(0o644)
    worst = max(float(np.linalg.norm(after32[k] - v) / np.linalg.norm(v - w1[k])) for k, v in after.items())
    dump(d / "sft.json", dict(SFT, scalars={f"sft/{k}": dict(f64=v, f32=log32[k]) for k, v in log.items()}, loss_of_means=other["loss"]))
    print(f"{SFT['family']}: sft: losses {log['loss'][0]:.4f} .. {log['loss'][-1]:.4f}, norms {min(log['grad_norm']):.2f} .. {max(log['grad_norm']):.2f}, clipped {sum(clipped)} of 10; "
          f"f32: update {worst:.1e}, log-probs {float(np.abs(final32 - final).max()):.1e}; a mean of means moves a loss by up to {max(abs(a - b) for a, b in zip(log['loss'], other['loss'])):.2g}")


# ---------------------------------------------------------------------------------------------------------------- verify
class RoundedProduct(torch.autograd.Function):
    """x W^T whose operands are rounded to float16, in the backward pass, too. A gradient is scaled by a power of two, so that none of it is lost below float16's range."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return RoundedProduct.f16(x) @ RoundedProduct.f16(w).T

    @staticmethod
    def backward(ctx, d_y):
        x, w = ctx.saved_tensors
        largest = d_y.abs().max()
        scale = 2.0 ** -torch.floor(torch.log2(largest)) if largest > 0 else 1.0
        d_y = RoundedProduct.f16(d_y * scale) / scale
        return d_y @ RoundedProduct.f16(w), d_y.flatten(0, -2).T @ RoundedProduct.f16(x).flatten(0, -2)

    @staticmethod
    def f16(x):
        return x.to(torch.float16).to(x.dtype)


class RoundedLinears(TorchFunctionMode):
    """Rounds the operands of the linear layers that `--matmul-precision medium` rounds: those of at least 32 inputs and outputs."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.linear and min(args[1].shape) >= 32:
            x, w, *bias = args
            y = RoundedProduct.apply(x, w)
            return y if not bias or bias[0] is None else y + bias[0]
        return func(*args, **(kwargs or {}))


def f16_products(name):
    """Writes the JPO gradient of a batch in float64, where linear layers round their operands to float16: what `--matmul-precision medium` is compared
    with where a family amplifies that rounding. Says how far it is from the exact gradient."""
    d = HERE / name
    js = json.load(open(d / "expected.json"))
    base, rows = d / "model", [json.loads(l) for l in open(d / "prefs.jsonl")]
    config, w0 = AutoConfig.from_pretrained(base), read_weights(base)
    seqs, _ = sequences(Tokenizer.from_file(str(base / "tokenizer.json")), rows, js["bos"], js["eos"], js["pad"] or 0)
    found = {}
    for rounded in (False, True):
        with Precision(torch.float64, strict=not rounded):
            policy, reference, _ = full_maker(config, w0, add_delta(w0, np_load(d / "delta.safetensors")), torch.float64)()
            with RoundedLinears() if rounded else contextlib.nullcontext():
                with torch.no_grad(), reference() as m:
                    ref = score(token_logps(m, seqs), seqs["labels_joint"])
                loss = pair_loss(policy, ref, seqs, BATCH, "joint").mean()
                found[rounded] = {k: g.numpy() for k, g in gradient(trainable(policy), loss).items()}
    np_save({f"grad_jpo/{k}": np.ascontiguousarray(g.astype(np.float32)) for k, g in found[True].items()}, d / "f16_products.safetensors")
    moved = sorted(((error(found[True][k], g)["rel_l2"], k) for k, g in found[False].items()), reverse=True)[:3]
    print(f"{name}: operands in float16 move the gradient by up to " + ", ".join(f"{v:.1e} ({k})" for v, k in moved))


def verify(d):
    """The same code on fixtures that someone else made: every tensor and every scalar must come out."""
    d = Path(d).resolve()
    js, x = json.load(open(d / "expected.json")), np_load(d / "expected.safetensors")
    js["vocab_rows"] = x["vocab_rows"] if "vocab_rows" in x else None
    base = (d / js["base"]).resolve() if "base" in js else d / "model"
    config, w0 = AutoConfig.from_pretrained(base), read_weights(base)
    bx = np_load(base.parent / "expected.safetensors")
    names = ("input_ids", "attention_mask", "labels_joint", "labels_cond", "prompt_len", "seq_len")
    rows = [json.loads(l) for l in open(base.parent / "prefs.jsonl")]
    seqs, _ = sequences(Tokenizer.from_file(str(base / "tokenizer.json")), rows, js["bos"], js["eos"], js["pad"] or 0)
    for k in names:
        assert np.array_equal(seqs[k], bx[k]), k
    if "base" in js:
        a = np_load(d / "adapter/adapter_model.safetensors")
        got = evaluate(torch.float64, lora_maker(config, w0, a, js["lora"], torch.float64), seqs, js, lambda k: k.replace(".default.", "."))
    else:
        got = evaluate(torch.float64, full_maker(config, w0, add_delta(w0, np_load(d / "delta.safetensors")), torch.float64), seqs, js)
    mine = dict(seqs, **got["T"], **got["full"])
    worst, n = {}, 0
    for k, e in x.items():
        if k == "vocab_rows":
            continue
        a, b = k.split("/", 1) if "/" in k else (k, "")
        g = mine[k] if not a.endswith("_rows") else mine[f"{a[:-5]}/{b}"][js["vocab_rows"]]
        e64 = e.astype(np.float64)
        err = float(np.abs(g - e64).max() / max(np.abs(e64).max(), 1e-30))
        if np.abs(e64).max() < 1e-9:
            err = float(np.abs(g - e64).max())
        kind = a if "/" in k else "ids"
        worst[kind] = max(worst.get(kind, 0), err)
        n += 1
    sw = 0.0
    for k, v in js["scalars"].items():
        e, g = np.array(v["f64"], np.float64), np.array(got["S"][k], np.float64)
        sw = max(sw, float(np.max(np.abs(e - g) / np.maximum(np.abs(e), 1e-12))))
    same = got["tokens"] == js["generation"]["tokens"]
    print(f"{d.name}: {n} tensors, worst max-abs error relative to the tensor's largest entry (float32 storage rounds at 6e-8): " + ", ".join(f"{k} {v:.1e}" for k, v in sorted(worst.items())))
    print(f"{d.name}: {len(js['scalars'])} scalars in double precision, worst relative difference {sw:.1e}; generation equal: {same}, margin {got['margin']:.6f} (theirs {js['generation']['min_top2_logit_margin']:.6f})")
    assert max(worst.values()) < 2e-7 and sw < 1e-9 and same


def main():
    args = sys.argv[1:]
    if args[:1] == ["--verify"]:
        for d in args[1:]:
            verify(d)
        return
    if args[:1] == ["--f16"]:
        for name in args[1:]:
            f16_products(name)
        return
    if args[:1] == ["--sft"]:
        return make_sft()
    table = []
    import transformers

    newer = int(transformers.__version__.split(".")[0]) >= 5
    for name in args or [n for n, f in FAMILIES.items() if f.get("newer", False) == newer]:
        if "base" in FAMILIES[name]:
            config, w0, initial, seqs, lora = make_lora(name)
            table += sensitivity_lora(name, config, w0, initial, seqs, lora)
        else:
            table += sensitivity(name, *make_full(name))
    for n, f, a, r, t in table:
        print(f"{n:15} without {f:46} loss moves by {a:8.2g}, a sequence's log-prob by up to {r:.1e} relative, a token's by {t:.1e}")
    if SFT["family"] in args or not (args or newer):
        make_sft()
    readme(table)
    dull = [(n, f) for n, f, a, r, t in table if t < 8e-4]  # eight times parity.py's tolerance
    assert not dull, f"does not matter: {dull}"


if __name__ == "__main__":
    main()

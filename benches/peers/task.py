"""What every peer does: steps of JPO over all parameters of one small Llama, f32; the same checkpoint, rows and optimiser."""
import json, random

import torch
from safetensors.torch import save_file

D, L, H, F, V = 288, 6, 6, 768, 4096  # `llama-7m` of src/kernels/shapes.rs
PAIRS, LENGTH, INSTRUCTION = 4, 256, 85
OPTIMISER = {"learning_rate": 1e-4, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0.0,
             "max_grad_norm": 1.0}
BETA = 0.1
EOS = 0
PRODUCT = 1024  # M = N = K of the matrix product that is timed alone
TOKENS = PAIRS * 2 * LENGTH
TITLE = f"JPO step, all parameters, f32: Llama D {D}, L {L}, H {H}, F {F}, V {V}, tied; {PAIRS} pairs of 2 × {LENGTH} tokens"


def write(folder, steps):
    """`model/`, `rows.jsonl` and `task.json`, which has the same rows as ids."""
    write_model(folder / "model")
    rng = random.Random(0)
    # Each ends in the tokenizer's EOS: no peer adds another.
    rows = [[[rng.randrange(V) for _ in range(LENGTH - 1)] + [EOS] for _ in range(2)] for _ in range(PAIRS * steps)]
    text = lambda ids: "".join(f" w{i}" for i in ids)
    line = lambda c, r: json.dumps({"i_chosen": text(c[:INSTRUCTION]), "r_chosen": text(c[INSTRUCTION:]),
                                    "i_reject": text(r[:INSTRUCTION]), "r_reject": text(r[INSTRUCTION:])})
    (folder / "rows.jsonl").write_text("\n".join(line(*pair) for pair in rows) + "\n")
    task = {"model": str(folder / "model"), "pairs": PAIRS, "rows": rows, "beta": BETA, **OPTIMISER}
    (folder / "task.json").write_text(json.dumps(task))


def write_model(folder):
    """A Llama with random weights, and a tokenizer whose words are its ids: w0 .. w4095."""
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": D, "num_attention_heads": H,
              "num_key_value_heads": H, "intermediate_size": F, "vocab_size": V, "num_hidden_layers": L, "tie_word_embeddings": True,
              "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu"}
    generator = torch.Generator().manual_seed(0)
    weight = lambda *shape: torch.randn(*shape, generator=generator) * 0.02
    w = {"model.embed_tokens.weight": weight(V, D), "model.norm.weight": torch.ones(D)}
    for i in range(L):
        for name, shape in [("self_attn.q_proj", (D, D)), ("self_attn.k_proj", (D, D)), ("self_attn.v_proj", (D, D)), ("self_attn.o_proj", (D, D)),
                            ("mlp.gate_proj", (F, D)), ("mlp.up_proj", (F, D)), ("mlp.down_proj", (D, F))]:
            w[f"model.layers.{i}.{name}.weight"] = weight(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            w[f"model.layers.{i}.{name}.weight"] = torch.ones(D)
    save_file(w, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
                 "model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(V)}, "unk_token": "w0"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None,
                                                                "eos_token": f"w{EOS}", "pad_token": f"w{EOS}"}))

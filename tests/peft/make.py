#!/usr/bin/env python3
"""Makes the adapters of this folder with PEFT, and expected.json: which modules PEFT gives an adapter, with which rank and scale, and the
token log-probs of the adapted model in float64. The base is ../oracle/mistral-odd/model. dropout.safetensors has the gradients of the mean
loss in float64 where PEFT's dropout has the mask that src/kernels/dropout.rs draws. tied and untied are adapters with modules_to_save on
the models tiny-tied and tiny-untied, tokens-tied and tokens-untied with trainable_token_indices, with the gradients of everything that is trained.

usage: make.py        needs torch, transformers, peft 0.21 (versions in ../oracle/README.md)"""
import json, os, shutil, warnings
from pathlib import Path

os.environ.update(TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1")
warnings.filterwarnings("ignore")
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent
BASE = "../oracle/mistral-odd/model"
IDS = [1, 17, 402, 33, 250, 508, 7, 91, 91, 130, 12, 300, 44, 5, 499, 260, 18, 2]
QVD = ["q_proj", "v_proj", "down_proj"]

# Fields of a LoraConfig by name of the case; r is 2 and lora_alpha 4 where nothing else is said.
CASES = {
    "patterns": dict(target_modules=QVD, rank_pattern={"v_proj": 4, "layers.1.self_attn.q_proj": 1}, alpha_pattern={r".*\.1\..*": 6, "down_proj": 3}),
    # PEFT writes patterns in the order of their names.
    "first-pattern-wins": dict(target_modules=["q_proj"], rank_pattern={"[qv]_proj": 3, "q_proj": 1}, alpha_pattern={"[q]_pro": 7, "[qk]_proj": 5, "q_proj": 9}),
    "rslora": dict(target_modules=["o_proj", "up_proj"], r=3, use_rslora=True, rank_pattern={"up_proj": 2}, alpha_pattern={"o_proj": 8}),
    "layers": dict(target_modules=QVD, layers_to_transform=[1]),
    "layer-zero": dict(target_modules=["k_proj", "gate_proj"], layers_to_transform=0, layers_pattern="layers"),
    "listed-by-whole-name": dict(target_modules=["model.layers.0.self_attn.q_proj", "v_proj"], layers_to_transform=[1]),
    "excluded": dict(target_modules="all-linear", exclude_modules=["q_proj", "1.mlp.down_proj", "mlp.up_proj"]),
    "excluded-by-pattern": dict(target_modules=QVD, exclude_modules=r".*\.0\.(?:self_attn|x).*"),
    "excluded-though-listed": dict(target_modules=["model.layers.0.self_attn.q_proj", "o_proj"], exclude_modules=["layers.0.self_attn.q_proj"]),
    "pattern-of-targets": dict(target_modules=r".*layers\.1\.(?:self_attn\.(?:q|k)_proj|mlp\.\w+_proj)"),
    "pattern-with-lookahead": dict(target_modules=r"model\.layers\.(?P<layer>\d+)\.(?!mlp)\w+\.[qo]_proj"),
    "dropout": dict(target_modules="all-linear", lora_dropout=0.3),
}
SEED = 7  # of the masks
# Fields that PEFT refuses together, with the field that must be named.
REFUSED = {
    "layers_to_transform": dict(target_modules="all-linear", layers_to_transform=[1]),
    "layers_pattern": dict(target_modules=["q_proj"], layers_pattern="layers"),
}


TINY = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=60, max_position_embeddings=64)
WHOLE = {
    "tied": dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "untied": dict(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]),
    "tokens-tied": dict(target_modules=["q_proj"], trainable_token_indices=[33, 7, 2]),
    "tokens-untied": dict(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 17]}),
}


def logps(model, ids=IDS):
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return [found[i, ids[i + 1]].item() for i in range(len(ids) - 1)]


def base(dtype=torch.float64, name=BASE):
    return AutoModelForCausalLM.from_pretrained(HERE / name, dtype=dtype, attn_implementation="eager").eval()


def save(model, folder, name=BASE):
    model.peft_config["default"].base_model_name_or_path = name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.load(open(folder / "adapter_config.json"))
    for field in ("target_modules", "exclude_modules"):
        if isinstance(config[field], list):  # PEFT writes a set in any order
            config[field].sort()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")  # the order of patterns counts


def make(name, fields):
    model = get_peft_model(base(torch.float32), LoraConfig(**{"r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM", **fields}))
    rng = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if ".lora_" in n):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=rng))
    save(model, HERE / name)
    model = PeftModel.from_pretrained(base(torch.float32), HERE / name)
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    found = {n: [m.r["default"], m.scaling["default"]] for n, m in layers.items()}
    return dict(modules=found, logps=logps(model.double()))


def hash64(data):
    """src/rng.rs: FNV-1a, mixed as in SplitMix64."""
    h, most = 0xCBF29CE484222325, 2**64 - 1
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & most
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & most
    h = (h ^ h >> 27) * 0x94D049BB133111EB & most
    return h ^ h >> 31


def philox(counter, stream, key):
    """Philox2x32-10, over an array of counters."""
    a, b, k, low = counter.astype(np.uint64), np.full(len(counter), stream, np.uint64), key, np.uint64(2**32 - 1)
    for _ in range(10):
        product = a * np.uint64(0xD256D193)
        a, b, k = (product >> np.uint64(32)) ^ np.uint64(k) ^ b, product & low, (k + 0x9E3779B9) % 2**32
    return a, b


class Masked(torch.nn.Module):
    def __init__(self, p, module):
        super().__init__()
        self.p, self.hash = p, hash64(hash64(b"".join(n.to_bytes(8, "little") for n in (SEED, 0, 0))).to_bytes(8, "little") + module.encode())

    def forward(self, x):
        n = x.numel()
        words = np.stack(philox(np.arange((n + 1) // 2), self.hash % 2**32, self.hash >> 32), 1).reshape(-1)[:n]
        kept = torch.from_numpy(words >= int(self.p * 2**32)).reshape(x.shape)
        return torch.where(kept, x * float(np.float32(1 / (1 - self.p))), 0.0)


def masked_gradients(name, p):
    model = PeftModel.from_pretrained(base(), HERE / name, is_trainable=True, autocast_adapter_dtype=False).double()
    for module, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            layer.lora_dropout["default"] = Masked(p, module.removeprefix("base_model.model."))
    return gradients(model, IDS)


def gradients(model, ids):
    """-> mean loss of the next token, gradients by PEFT's names in files"""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]))
    loss.backward()
    short = lambda k: k.replace(".modules_to_save.default.", ".").replace(".trainable_tokens_delta.default", ".trainable_tokens_delta").replace(".default.", ".")
    return loss.item(), {short(k): p.grad.float() for k, p in model.named_parameters() if p.requires_grad}


def whole(name, fields):
    torch.manual_seed(5)
    ids, tiny = [i % TINY["vocab_size"] for i in IDS], "tiny-" + name.removeprefix("tokens-")
    LlamaForCausalLM(LlamaConfig(**TINY, initializer_range=0.3, tie_word_embeddings=tiny == "tiny-tied")).save_pretrained(HERE / tiny)
    model = get_peft_model(base(torch.float32, tiny), LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", **fields))
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape))
    save(model, HERE / name, tiny)
    model = PeftModel.from_pretrained(base(name=tiny), HERE / name, is_trainable=True, autocast_adapter_dtype=False).double()
    found = logps(model, ids)
    loss, all = gradients(model, ids)
    save_file(all, HERE / f"{name}.safetensors")
    return dict(model=tiny, ids=ids, base=logps(base(name=tiny), ids), logps=found, loss=loss)


def main():
    # kat_vectors of Random123.
    assert [int(x[0]) for x in philox(np.array([0x243F6A88]), 0x85A308D3, 0x13198A2E)] == [0xDD7CE038, 0xF62A4C12]
    for field, fields in REFUSED.items():
        try:
            LoraConfig(r=2, **fields)
        except ValueError as error:
            assert field in str(error), error
        else:
            raise AssertionError(field)
    expected = dict(ids=IDS, base=logps(base()), adapters={name: make(name, fields) for name, fields in CASES.items()}, refused=REFUSED)
    expected["dropout_loss"], found = masked_gradients("dropout", 0.3)
    save_file(found, HERE / "dropout.safetensors")
    expected["whole"] = {name: whole(name, fields) for name, fields in WHOLE.items()}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(sum(f.stat().st_size for f in HERE.rglob("*") if f.suffix in (".json", ".safetensors")), "bytes")


if __name__ == "__main__":
    main()

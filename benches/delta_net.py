#!/usr/bin/env python3
"""Seconds per token of LoRA steps of a Qwen3.5-0.8B-shaped model (gated delta nets in three of four layers) and of a Llama of the same size, one pair of
2 × 2048 tokens a step; device memory as planned and as used. Both have four of the real model's 24 layers and a sixth of its vocabulary, so that layers
and LM head keep their shares. Weights are random.

usage: .ci/with-driver python3 benches/delta_net.py target/release/jointwise [--tokens 2048] [--steps 3] [--out FILE.md]"""
import argparse, json, math, random, re, statistics, struct, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = 4  # One full period: three delta nets, one attention.
SIGNS = bytes.maketrans(bytes(range(256)), bytes(0x3C if b & 1 else 0xBC for b in range(256)))  # High bytes of bf16: ±(2^-7 to 2^-5).
HEADS = dict(num_attention_heads=16, num_key_value_heads=16, head_dim=128)  # The Llama's: as wide as a delta net's.


def qwen():
    """Config and tensors of the real model, cut to its first layers."""
    real = json.loads((ROOT / "tests/configs/qwen3.5-0.8b.json").read_text())
    text = real["config"]["text_config"]
    vocab = text["vocab_size"] * LAYERS // text["num_hidden_layers"]
    config = dict(text, architectures=["Qwen3_5ForCausalLM"], num_hidden_layers=LAYERS, layer_types=text["layer_types"][:LAYERS],
                  vocab_size=vocab, tie_word_embeddings=True, eos_token_id=0)
    tensors = {}
    for name, shape in real["tensors"].items():
        layer = re.search(r"\.layers\.(\d+)\.", name)
        if ".language_model." not in name or layer and int(layer[1]) >= LAYERS:
            continue
        tensors[name.replace(".language_model.", ".")] = [vocab, *shape[1:]] if "embed_tokens" in name else shape
    return config, tensors


def llama(config, size):
    """A Llama with as many parameters."""
    d, wide, vocab = config["hidden_size"], HEADS["num_attention_heads"] * HEADS["head_dim"], config["vocab_size"]
    inner = ((size - vocab * d) // LAYERS - 4 * d * wide) // (3 * d) // 16 * 16
    shapes = {"self_attn.q_proj": [wide, d], "self_attn.k_proj": [wide, d], "self_attn.v_proj": [wide, d], "self_attn.o_proj": [d, wide],
              "mlp.gate_proj": [inner, d], "mlp.up_proj": [inner, d], "mlp.down_proj": [d, inner], "input_layernorm": [d], "post_attention_layernorm": [d]}
    tensors = {f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in shapes.items()}
    tensors |= {"model.embed_tokens.weight": [vocab, d], "model.norm.weight": [d]}
    return dict(HEADS, architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=d, intermediate_size=inner, num_hidden_layers=LAYERS,
                vocab_size=vocab, tie_word_embeddings=True, rms_norm_eps=1e-6, rope_theta=1e4, max_position_embeddings=8192, hidden_act="silu", eos_token_id=0), tensors


def write(folder, config, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((ROOT / "tests/oracle/qwen3_5/model" / name).read_text())
    header, end = {}, 0
    for name, shape in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * math.prod(shape)]}
        end += 2 * math.prod(shape)
    text, rng = json.dumps(header).encode(), random.Random(0)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in tensors.values():
            values = bytearray(rng.randbytes(2 * math.prod(shape)))
            values[1::2] = bytes(values[1::2]).translate(SIGNS)
            file.write(values)


def pair(path, tokens):
    """One pair, longer than the limit: the end is cut."""
    rng = random.Random(1)
    text = lambda: "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(4 * tokens))
    path.write_text("".join(json.dumps({"prompt": "Go on.", "chosen": text(), "rejected": text()}) + "\n" for _ in range(2)))


def output(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout, done.stderr


def measure(program, folder, model, args):
    """Seconds of each step, tokens per step, MiB used and planned."""
    flags = ["--model", model, "--batch-size", 1, "--max-length", args.tokens, "--lora-r", 8, "--lora-alpha", 16]
    plan = json.loads(output([program, "plan", *flags, "--json"])[0])
    run = folder / "runs" / model.name
    done, _ = output([program, "train", *flags, "--data", folder / "pairs.jsonl", "--on-overflow", "truncate-response",
                      "--max-steps", args.steps, "--output-dir", run, "--json"])
    steps = [json.loads(line) for line in open(run / "metrics.jsonl")]
    steps = [s for s in steps if "grad_norm" in s]
    assert all(2 * args.tokens - 64 < s["tokens"] <= 2 * args.tokens for s in steps), "the prompt alone is shared"
    used = json.loads(done.splitlines()[-1])["peak_bytes"]
    return [s["seconds"] for s in steps], steps[0]["tokens"], used / 2**20, plan["peak_bytes"] / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args()
    lines = ["| model | parameters | first step, s | later steps, s (median) | ms per token | MiB used | MiB planned |", "|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        folder, per_token = Path(folder), {}
        pair(folder / "pairs.jsonl", args.tokens)
        config, tensors = qwen()
        size = lambda tensors: sum(math.prod(shape) for shape in tensors.values())
        models = {"Qwen3.5": (config, tensors), "Llama": llama(config, size(tensors))}
        for name, (config, tensors) in models.items():
            write(folder / name, config, tensors)
            seconds, tokens, used, planned = measure(args.program, folder, folder / name, args)
            later = statistics.median(seconds[1:] or seconds)
            per_token[name] = later / tokens
            lines.append(f"| {name} | {size(tensors) / 1e6:.1f} M | {seconds[0]:.1f} | {later:.1f} | {1e3 * later / tokens:.2f} | {used:.0f} | {planned:.0f} |")
            print(lines[-1], flush=True)
    lines.append(f"\nQwen3.5 takes {per_token['Qwen3.5'] / per_token['Llama']:.2f} times as long per token.")
    print(lines[-1])
    if args.out:
        Path(args.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Trains with TRL and with jointwise, on the same rows and weights, and prints "same" or the first difference of each method: of tokens, of a step's loss,
of the trained weights. Needs trl 1.16, transformers 5.24, peft and PyTorch; everything runs on the CPU.

    python compare.py ../../target/release/jointwise [--model ../../models/demo] [--methods kto,sft-messages]
"""
import argparse, json, os, shutil, subprocess, sys, tempfile, warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import datasets, torch, transformers, trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("ignore")
ROOT = Path(__file__).resolve().parents[2]
STEPS, RATE = 4, 1e-3
# Losses are of f32, gradients too: what TRL computes differs from itself by as much between numbers of threads.
MOST_OF_LOSS, MOST_OF_UPDATE = 1e-4, 5e-3

COLOURS = ["red", "blue", "green", "white", "black", "yellow", "brown", "grey"]
texts = [{"prompt": f"Say {c}, and nothing else.", "chosen": f" {c.capitalize()}.", "rejected": f" I do not say {c} " + "at all " * (i % 3)}
         for i, c in enumerate(COLOURS)]
said = lambda role, text: [{"role": role, "content": text}]
chats = [{"prompt": said("user", t["prompt"]), "chosen": said("assistant", t["chosen"]), "rejected": said("assistant", t["rejected"])} for t in texts]
completions = [{"prompt": t["prompt"], "completion": t["chosen"]} for t in texts]
messages = [{"messages": said("user", t["prompt"]) + said("assistant", t["chosen"]) + said("user", "Again.") + said("assistant", t["chosen"] * 2)} for t in texts]
labelled = [{"prompt": t["prompt"], "completion": t[side], "label": side == "chosen"} for t in texts for side in ("chosen", "rejected")]

DPO = (trl.DPOTrainer, trl.DPOConfig)
SFT = (trl.SFTTrainer, trl.SFTConfig)
KTO = (trl.KTOTrainer, trl.KTOConfig)
# Name, rows, trainer, its settings, our command and flags.
METHODS = {
    "dpo-texts": (texts, DPO, {}, ["train", "--objective", "dpo"]),
    "dpo-conversations": (chats, DPO, {}, ["train", "--objective", "dpo"]),
    "dpo-accumulated": (texts, DPO, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
                        ["train", "--objective", "dpo", "--batch-size", "2", "--gradient-accumulation-steps", "2"]),
    "ipo": (texts, DPO, {"loss_type": ["ipo"]}, ["train", "--objective", "dpo", "--loss", "ipo"]),
    "sigmoid-and-sft": (texts, DPO, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, ["train", "--objective", "dpo", "--loss", "sigmoid=1,sft=0.5"]),
    "truncation": (texts, DPO, {"max_length": "cut"}, ["train", "--objective", "dpo", "--max-length", "cut", "--on-overflow", "truncate-response"]),
    "apo-zero": (texts, DPO, {"loss_type": ["apo_zero"]}, ["train", "--objective", "dpo", "--loss", "apo_zero"]),
    "sigmoid-norm": (texts, DPO, {"loss_type": ["sigmoid_norm"], "beta": 5.0}, ["train", "--objective", "dpo", "--loss", "sigmoid_norm", "--beta", "5"]),
    "nca-and-exo": (texts, DPO, {"loss_type": ["nca_pair", "exo_pair"], "label_smoothing": 0.01},
                    ["train", "--objective", "dpo", "--loss", "nca_pair=1,exo_pair=1", "--label-smoothing", "0.01"]),
    "aot": (texts, DPO, {"loss_type": ["aot"]}, ["train", "--objective", "dpo", "--loss", "aot"]),
    "ld-alpha": (texts, DPO, {"ld_alpha": 0.25}, ["train", "--objective", "dpo", "--ld-alpha", "0.25"]),
    "wpo": (texts, DPO, {"use_weighting": True}, ["train", "--objective", "dpo", "--wpo"]),
    "wpo-and-ld-alpha": (texts, DPO, {"use_weighting": True, "ld_alpha": 0.5, "loss_type": ["ipo"]},
                         ["train", "--objective", "dpo", "--loss", "ipo", "--wpo", "--ld-alpha", "0.5"]),
    "js-divergence": (texts, DPO, {"f_divergence_type": "js_divergence", "beta": 1.0}, ["train", "--objective", "dpo", "--f-divergence", "js", "--beta", "1"]),
    "alpha-divergence": (texts, DPO, {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
                         ["train", "--objective", "dpo", "--f-divergence", "alpha=0.7"]),
    "apo-zero-unpaired": (labelled, KTO, {"loss_type": "apo_zero_unpaired"}, ["train", "--objective", "dpo", "--loss", "apo_zero_unpaired"]),
    "sft-dft": (completions, SFT, {"loss_type": "dft"}, ["sft", "--sft-loss", "dft"]),
    "kto": (labelled, KTO, {}, ["train", "--objective", "dpo", "--loss", "kto"]),
    "sft-completions": (completions, SFT, {}, ["sft"]),
    "sft-messages": (messages, SFT, {"assistant_only_loss": True}, ["sft"]),
    # Must differ.
    "control": (texts, DPO, {"beta": 0.2}, ["train", "--objective", "dpo"]),
    "control-wpo": (texts, DPO, {}, ["train", "--objective", "dpo", "--wpo"]),
    "control-ld-alpha": (texts, DPO, {"ld_alpha": 0.5}, ["train", "--objective", "dpo", "--ld-alpha", "0.25"]),
    "control-dft": (completions, SFT, {}, ["sft", "--sft-loss", "dft"]),
    # A new adapter of PEFT's, from which both go on.
    "lora": (texts, DPO, {}, ["train", "--objective", "dpo"]),
}


def tokens_of_trl(dataset, kind):
    """(ids, scored positions) of each sequence."""
    for row in dataset:
        if kind is SFT:
            yield row["input_ids"], [i for i, label in enumerate(row["labels"]) if label != -100 and i]
        else:
            for side in ("completion_ids",) if kind is KTO else ("chosen_ids", "rejected_ids"):
                n = len(row["prompt_ids"])
                yield row["prompt_ids"] + row[side], list(range(max(n, 1), n + len(row[side])))


def difference_of_tokens(ours, theirs, max_length):
    if len(ours) != len(theirs):
        return f"{len(ours)} sequences, {len(theirs)} in TRL"
    for i, (a, b) in enumerate(zip(ours, theirs)):
        b = (b[0][:max_length], [at for at in b[1] if at < max_length])
        if a != b:
            return f"tokens of sequence {i}: {a[0]} scored {a[1]}, in TRL {b[0]} scored {b[1]}"


def run(binary, model, name):
    rows, kind, settings, flags = METHODS[name]
    trainer_of, config_of = kind
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        folder = place / "model"
        shutil.copytree(model, folder)
        if name == "sft-messages":
            # TRL scores answers alone where the template marks them; both programs read the marks.
            path = folder / "tokenizer_config.json"
            config = json.loads(path.read_text())
            answer = "{{ m['content'] + eos_token }}"
            if answer not in config.get("chat_template", ""):
                return "not compared: this model's chat template is not the demo's, whose answers this script marks"
            config["chat_template"] = config["chat_template"].replace(answer, "{% generation %}" + answer + "{% endgeneration %}")
            path.write_text(json.dumps(config))
        data = place / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        common = ["--model", folder, "--data", data, "--template", "trl"]
        if "cut" in flags:
            # The longest rows lose three tokens.
            longest = json.loads(subprocess.check_output([binary, "check", *common, "--json"], stderr=subprocess.DEVNULL))["lengths"]["max"]
            settings, flags = {"max_length": longest - 3}, [str(longest - 3) if flag == "cut" else flag for flag in flags]
        limits = [flag for pair in zip(flags, flags[1:]) if pair[0] in ("--max-length", "--on-overflow") for flag in pair]
        checked = subprocess.run([binary, "check", *common, *limits, "--rows", "99", "--json", *(["--sft"] if flags[0] == "sft" else [])], capture_output=True, text=True)
        if checked.returncode:
            return checked.stderr
        sides = [side["tokens"] for row in json.loads(checked.stdout)["rows"] for side in row["sides"]]
        ours = [([t["id"] for t in side], [i for i, t in enumerate(side) if t["conditional"]]) for side in sides]

        tokenizer = AutoTokenizer.from_pretrained(folder)
        policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if name == "lora":
            torch.manual_seed(0)
            policy = get_peft_model(policy, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
            policy.save_pretrained(place / "start")
        before = {k: v.clone() for k, v in policy.state_dict().items()}
        settings = {"per_device_train_batch_size": 4, **settings}
        config = config_of(output_dir=str(place / "trl"), use_cpu=True, bf16=False, max_steps=STEPS, learning_rate=RATE, lr_scheduler_type="linear", logging_steps=1,
                           report_to="none", save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, train_sampling_strategy="sequential", **settings)
        trainer = trainer_of(model=policy, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        difference = difference_of_tokens(ours, list(tokens_of_trl(trainer.train_dataset, kind)), config.max_length)
        if difference:
            return difference
        trainer.log = lambda logs, *_: trainer.state.log_history.append(dict(logs))
        trainer.train()
        theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

        batch = [] if "--batch-size" in flags else ["--batch-size", "4"]
        start = ["--adapter", place / "start"] if name == "lora" else ["--full"]
        out = place / "out"
        command = [binary, flags[0], *common, *flags[1:], *batch, *start, "--max-steps", str(STEPS), "--num-train-epochs", "99", "--learning-rate", str(RATE),
                   "--lr-scheduler-type", "linear", "--no-shuffle", "--output-dtype", "f32", "--output-dir", out]
        trained = subprocess.run(command, capture_output=True, text=True)
        if trained.returncode:
            return trained.stderr
        losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        for step, (a, b) in enumerate(zip(losses, theirs, strict=True), 1):
            if abs(a - b) > MOST_OF_LOSS * max(1, abs(b)):
                return f"the loss of step {step}: {a:.6f}, TRL's {b:.6f}"
        # PEFT's state has the adapter's name in each key.
        weights = load_file(out / ("adapter_model.safetensors" if name == "lora" else "model.safetensors"))
        after = {k.replace(".default", ""): v for k, v in policy.state_dict().items()}
        before = {k.replace(".default", ""): v for k, v in before.items()}
        # All weights together: AdamW makes as much of a gradient that is 0 but for rounding (a key's bias has such) as of any other.
        norm = lambda tensors: sum(t.double().square().sum() for t in tensors).sqrt().item()
        apart = norm(value - after[key] for key, value in weights.items()) / norm(after[key] - before[key] for key in weights)
        largest = max(abs(a - b) for a, b in zip(losses, theirs))
        if apart > MOST_OF_UPDATE:
            return f"the update of the weights, {apart:.1e} away (losses {largest:.1e})"
        return f"same (losses {largest:.1e}, updates {apart:.1e} apart)"


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("binary", type=Path)
parser.add_argument("--model", type=Path, default=ROOT / "models/demo")
parser.add_argument("--methods", default=",".join(METHODS))
args = parser.parse_args()
names = args.methods.split(",")
unknown = set(names) - set(METHODS)
if unknown:
    sys.exit(f"--methods: {', '.join(unknown)}: expected some of {', '.join(METHODS)}")
print(f"TRL {trl.__version__}, transformers {transformers.__version__}, {STEPS} steps, {args.model.name}")
for name in names:
    print(f"{name:20} {run(args.binary.resolve(), args.model, name)}", flush=True)

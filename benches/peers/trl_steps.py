#!/usr/bin/env python3
"""The task by TRL's DPOTrainer in bf16 (f32 weights, autocast): JSON on standard output. `run.py --cuda` calls it. JPO is DPO with an
empty prompt, all of the text being the response. Run on a CPU only so far, where it is f32; not on a GPU yet.

usage: trl_steps.py cpu|cuda steps TASK.json      needs trl 1.x"""
import json, sys, tempfile, time
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset


class Clock(transformers.TrainerCallback):
    """Seconds and loss of each step."""

    def __init__(self, wait):
        self.wait, self.seconds, self.losses = wait, [], []

    def on_step_begin(self, *_, **__):
        self.wait()
        self.started = time.time()

    def on_step_end(self, *_, **__):
        self.wait()
        self.seconds.append(time.time() - self.started)

    def on_log(self, _args, _state, _control, logs=None, **__):
        if "loss" in logs:
            self.losses.append(logs["loss"])


class InOrder(trl.DPOTrainer):
    def _get_train_sampler(self, dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def main():
    device, what, path = sys.argv[1:]
    if what != "steps":
        sys.exit("trl_steps.py: it has steps only")
    task, cuda = json.loads(Path(path).read_text()), device == "cuda"
    tokenizer = transformers.AutoTokenizer.from_pretrained(task["model"])
    model = transformers.AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    text = lambda ids: "".join(f" w{i}" for i in ids)
    rows = [{"prompt": "", "chosen": text(c), "rejected": text(r)} for c, r in task["rows"]]
    clock = Clock(torch.cuda.synchronize if cuda else lambda: None)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        dataset = Dataset.from_json(f"{folder}/rows.jsonl", cache_dir=folder)
        config = trl.DPOConfig(
            output_dir=folder, use_cpu=not cuda, bf16=cuda, beta=task["beta"], loss_type="sigmoid", precompute_ref_log_probs=True,
            per_device_train_batch_size=task["pairs"], max_steps=len(task["rows"]) // task["pairs"], max_length=None,
            gradient_checkpointing=False, optim="adamw_torch", lr_scheduler_type="constant", logging_steps=1, save_strategy="no",
            report_to=[], disable_tqdm=True,
            **{k: task[k] for k in ("learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm")})
        trainer = InOrder(model, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[clock])
        trainer.train()
    print(json.dumps({"device": torch.cuda.get_device_name() if cuda else "CPU", "version": trl.__version__,
                      "measured": {"losses": clock.losses, "seconds": clock.seconds},
                      "device_bytes": torch.cuda.max_memory_allocated() if cuda else None}))


main()

#!/usr/bin/env python3
"""The task in plain PyTorch, f32: JSON on standard output. `run.py` calls it.

usage: torch_steps.py DEVICE steps TASK.json | torch_steps.py DEVICE product N      (DEVICE: cpu or cuda)"""
import json, os, sys, time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file


class Llama:
    def __init__(self, folder, device):
        c = json.loads((folder / "config.json").read_text())
        self.w = {k: v.to(device).requires_grad_() for k, v in load_file(folder / "model.safetensors").items()}
        self.layers, self.heads, self.width, self.eps = c["num_hidden_layers"], c["num_attention_heads"], c["hidden_size"], c["rms_norm_eps"]
        self.theta, self.head = c["rope_theta"], self.width // self.heads

    def scores(self, ids):
        """log π of each sequence."""
        w, n, length, half = self.w, len(ids), ids.shape[1], self.head // 2
        angle = torch.arange(length)[:, None] / self.theta ** (torch.arange(0, self.head, 2) / self.head)
        cos, sin = (torch.cat([f(angle)] * 2, -1).to(ids.device) for f in (torch.cos, torch.sin))
        turn = lambda x: x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin
        norm = lambda x, name: F.rms_norm(x, (self.width,), w[name + ".weight"], self.eps)
        heads = lambda x: x.view(n, length, self.heads, self.head).transpose(1, 2)
        x = F.embedding(ids, w["model.embed_tokens.weight"])
        for i in range(self.layers):
            p = f"model.layers.{i}."
            lin = lambda x, name: x @ w[p + name + ".weight"].T
            h = norm(x, p + "input_layernorm")
            q, k, v = turn(heads(lin(h, "self_attn.q_proj"))), turn(heads(lin(h, "self_attn.k_proj"))), heads(lin(h, "self_attn.v_proj"))
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, length, self.width)
            x = x + lin(o, "self_attn.o_proj")
            h = norm(x, p + "post_attention_layernorm")
            x = x + lin(F.silu(lin(h, "mlp.gate_proj")) * lin(h, "mlp.up_proj"), "mlp.down_proj")
        logits = norm(x, "model.norm") @ w["model.embed_tokens.weight"].T
        return F.log_softmax(logits, -1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(-1).sum(1)


def steps(task, device, wait):
    model = Llama(Path(task["model"]), device)
    parameters, pairs, rows = list(model.w.values()), task["pairs"], task["rows"]
    batches = [torch.tensor([side for pair in rows[i:i + pairs] for side in pair], device=device) for i in range(0, len(rows), pairs)]
    with torch.no_grad():
        reference = [model.scores(batch) for batch in batches]
    optimiser = torch.optim.AdamW(parameters, lr=task["learning_rate"], betas=(task["adam_beta1"], task["adam_beta2"]),
                                  eps=task["adam_epsilon"], weight_decay=task["weight_decay"])
    losses, seconds = [], []
    for batch, before in zip(batches, reference):
        wait()
        started = time.time()
        s = model.scores(batch) - before
        loss = -F.logsigmoid(task["beta"] * (s[0::2] - s[1::2])).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, task["max_grad_norm"])
        optimiser.step()
        losses.append(loss.item())
        wait()
        seconds.append(time.time() - started)
    return {"losses": losses, "seconds": seconds}


def product(n, device, wait, runs=9, together=4):
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    a @ b
    seconds = []
    for _ in range(runs):
        wait()
        started = time.time()
        for _ in range(together):
            a @ b
        wait()
        seconds.append((time.time() - started) / together)
    return {"seconds": sorted(seconds)[runs // 2]}


def main():
    device, what, argument = sys.argv[1:]
    torch.set_num_threads(os.cpu_count())
    cuda = device == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    measured = steps(json.loads(Path(argument).read_text()), device, wait) if what == "steps" else product(int(argument), device, wait)
    print(json.dumps({"device": torch.cuda.get_device_name() if cuda else "CPU", "version": torch.__version__, "measured": measured,
                      "device_bytes": torch.cuda.max_memory_allocated() if cuda else None}))


main()

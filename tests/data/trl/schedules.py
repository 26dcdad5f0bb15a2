#!/usr/bin/env python3
"""Writes schedules.json: learning rates of transformers' schedulers, step by step. Needs transformers 5.24 and torch.

    python schedules.py > schedules.json
"""
import json, sys

import torch
from transformers import get_scheduler

STEPS = 23
cases = []
for name in ["linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "constant", "constant_with_warmup"]:
    for warmup, cycles, rate in [(0, 1, 1e-3), (4, 1, 5e-5), (7, 3, 2e-4)]:
        # transformers' `constant` leaves a warm-up out without a word; here it warms up.
        theirs = "constant_with_warmup" if name == "constant" else name
        more = {"num_cycles": cycles} if name == "cosine_with_restarts" else {}
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
        scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=STEPS, scheduler_specific_kwargs=more)
        rates = []
        for _ in range(STEPS):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        schedule = {"learning_rate": rate, "shape": name, "warmup_steps": warmup, "max_steps": STEPS, "num_cycles": cycles}
        cases.append({"schedule": schedule, "rates": rates})
json.dump(cases, sys.stdout, separators=(",", ":"))

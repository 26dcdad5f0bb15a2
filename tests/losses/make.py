"""Losses and their gradients by PyTorch's autograd in float64, for tests/losses.rs.

    python tests/losses/make.py > tests/losses/losses.json

Each loss is written as its paper or TRL has it, apart from src/objective: over whole vectors, on the scores of both sides.
"""

import json
import random

import torch
from torch.nn.functional import logsigmoid

torch.set_default_dtype(torch.float64)
sigmoid = torch.sigmoid
# src/objective/term.rs: CERTAIN. TRL's odds are infinite where a probability rounds to 1.
CERTAIN = -(2.0**-20)


def batches():
    rng = random.Random(20240404)
    sequence = lambda: [-rng.uniform(5, 60), -rng.uniform(2, 40), rng.randint(3, 40), rng.randint(1, 25)]
    near = lambda s, by: s[0] + s[1] + rng.uniform(-by, by)

    def batch(pairs, by=4.0, paired=True):
        sums = [sequence() for _ in range((2 if paired else 1) * pairs)]
        cosines = [[1.0 if i == j else rng.uniform(-0.5, 1.0) for j in range(pairs)] for i in range(pairs)]
        return {
            "sums": sums,
            "reference": [near(s, by) for s in sums],
            "paired": paired,
            "desirable": [i % 2 == 0 if paired else rng.random() < 0.5 for i in range(len(sums))],
            "cosines": sum(cosines, []) if paired else [],
        }

    mixed, alone, far, ties, high, labelled, sure = (
        batch(4),
        batch(1),
        batch(3, by=0.0),
        batch(4),
        batch(3),
        batch(5, paired=False),
        batch(2),
    )
    # Margins that saturate every curve, both ways.
    far["reference"] = [r + d for r, d in zip(far["reference"], [3e4, -3e4, -2e4, 5e4, 900.0, -4e3])]
    # Equal scores, lengths and references within a side; one pair the other way round.
    for i in range(8):
        ties["sums"][i] = ([-20.0, -10.0, 9, 5], [-24.5, -8.0, 9, 5])[i % 2 if i < 6 else 1 - i % 2]
        ties["reference"][i] = -31.0
    # Means above 0, so that gradient flows through kto_pair's.
    high["reference"] = [r - 12.0 for r in high["reference"]]
    # A text of which the policy is sure, and one of which it is surer than f32 can say.
    sure["sums"][0], sure["sums"][3] = [-1e-3, -2e-4, 6, 4], [-1e-8, -1e-9, 3, 8]
    return {"mixed": mixed, "alone": alone, "far": far, "ties": ties, "high": high, "labelled": labelled, "sure": sure}


def likelihood(x, n, preferred):
    """Each row's share of TRL's likelihood: the mean over all tokens of the preferred sequences, not over sequences."""
    rows = len(x) // 2 if preferred is None else len(x)
    one, tokens = (x[0::2], n[0::2].sum()) if preferred is None else (torch.where(preferred, x, 0.0), n[preferred].sum())
    shares = -one * rows / tokens
    assert torch.isclose(shares.mean(), -one.sum() / tokens)
    return shares


def losses(name, p, x, n, reference, desirable, cosines):
    """Loss of each row, of scores x (S) that are sums over n (S) tokens."""
    beta, e = p["beta"], p["label_smoothing"]
    reference = reference * (0.0 if p["reference_free"] else 1.0)
    s = x - reference
    c, r = s[0::2], s[1::2]
    gap = c - r if name != "kto" else None
    smoothed = lambda z: -(1 - e) * logsigmoid(z) - e * logsigmoid(-z)
    mean = x / n
    if name == "sigmoid":
        return smoothed(beta * gap)
    if name == "robust":
        return (-logsigmoid(beta * gap) * (1 - e) + logsigmoid(-beta * gap) * e) / (1 - 2 * e)
    if name == "hinge":
        return torch.relu(1 - beta * gap)
    if name == "ipo":
        return ((s / n)[0::2] - (s / n)[1::2] - 1 / (2 * beta)) ** 2
    if name == "simpo":
        return -logsigmoid(beta * (mean[0::2] - mean[1::2]) - p["simpo_gamma"])
    if name == "orpo":
        capped = mean.clamp(max=CERTAIN)
        odds = capped - torch.log(-torch.expm1(capped))
        return likelihood(x, n, None) + beta * -logsigmoid(odds[0::2] - odds[1::2])
    if name == "kto_pair":
        kl_c, kl_r = c.mean().clamp(min=0), r.mean().clamp(min=0)
        return ((1 - sigmoid(beta * (c - kl_r))) + (1 - sigmoid(beta * (kl_c - r)))) / 2
    if name == "kto":
        z = s.mean().clamp(min=0).detach()
        good = p["desirable_weight"] * (1 - sigmoid(beta * (s - z)))
        bad = p["undesirable_weight"] * (1 - sigmoid(beta * (z - s)))
        return torch.where(desirable, good, bad)
    if name == "bco_pair":
        rewards = beta * s
        delta = rewards.mean().detach()
        return -logsigmoid(rewards[0::2] - delta) - logsigmoid(-(rewards[1::2] - delta))
    if name == "aot_unpaired":
        (c, order), (r, _) = torch.sort(c, stable=True), torch.sort(r, stable=True)
        sorted_losses = smoothed(beta * (c - r))
        return torch.empty_like(sorted_losses).scatter(0, order, sorted_losses)
    if name == "rpo":
        omega = torch.softmax(-(1 - cosines) / p["rpo_tau"], dim=1)
        return -logsigmoid(beta * omega * (c[:, None] - r[None, :])).mean(1)
    raise ValueError(name)


def case(batch, objective, loss, **constants):
    p = {
        "objective": objective,
        "loss": loss,
        "beta": 0.1,
        "label_smoothing": 0.0,
        "simpo_gamma": 0.5,
        "rpo_tau": 0.5,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
        "reference_free": False,
    } | constants
    sums = torch.tensor([s[:2] for s in batch["sums"]], requires_grad=True)
    n = torch.tensor([s[2:] for s in batch["sums"]])
    x, tokens = (sums.sum(1), n.sum(1)) if objective == "jpo" else (sums[:, 1], n[:, 1])
    pairs = len(batch["sums"]) // 2
    cosines = torch.tensor(batch["cosines"]).reshape(pairs, pairs) if batch["paired"] else None
    desirable, reference = torch.tensor(batch["desirable"]), torch.tensor(batch["reference"])
    of_rows = 0.0
    for part in loss.split(","):
        name, _, weight = part.partition("=")
        if name == "sft":
            one = likelihood(sums[:, 1], n[:, 1], None if batch["paired"] else desirable)
        else:
            one = losses(name, p, x, tokens, reference, desirable, cosines)
            if name == "kto" and batch["paired"]:
                one = one.reshape(-1, 2).mean(1)
        of_rows = of_rows + float(weight or 1) * one
    of_rows.sum().backward()
    return {"preference": p, "losses": of_rows.tolist(), "d_sums": sums.grad.tolist()}


def main():
    all_batches = batches()
    cases = []

    def add(names, losses_of, **constants):
        for name in names.split():
            for loss in losses_of.split():
                for objective in ["jpo", "dpo"] if name in ("mixed", "labelled") else ["jpo"]:
                    cases.append({"batch": name} | case(all_batches[name], objective, loss, **constants))

    pairwise = "sigmoid robust hinge ipo simpo orpo kto_pair kto bco_pair aot_unpaired rpo sft"
    add("mixed alone far ties high", pairwise)
    add("mixed ties", "sigmoid robust aot_unpaired", label_smoothing=0.1, beta=0.3)
    add("mixed", "simpo", beta=2.0, simpo_gamma=1.2)
    add("mixed", "rpo", rpo_tau=0.1)
    add("mixed labelled", "kto", desirable_weight=1.3, undesirable_weight=0.8, beta=0.2)
    add("mixed", "sigmoid kto rpo", reference_free=True)
    add("labelled", "kto sft kto=1,sft=0.5")
    add("sure", "orpo simpo")
    add("high", "sigmoid=1,sft=0.2 rpo=0.5,orpo=2,kto=0.1")
    text = json.dumps({"batches": all_batches, "cases": cases})
    print(text.replace('{"batch":', '\n{"batch":'))


main()

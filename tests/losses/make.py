"""Losses and their gradients by PyTorch's autograd in float64, for tests/losses.rs.

    python tests/losses/make.py > tests/losses/losses.json

Each loss is written as its paper or TRL has it, apart from src/objective: over whole vectors, on the scores of both sides. Where TRL 1.16 has the loss, its own
code (trl_losses.py) must give the same value and the same gradient of every token; the script fails otherwise, and says on standard error how many cases
were compared. Needs PyTorch, and TRL with transformers: pip install trl==1.16.* transformers==5.24.*
"""

import json
import random
import sys

import torch
import trl_losses
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
    all_batches = {"mixed": mixed, "alone": alone, "far": far, "ties": ties, "high": high, "labelled": labelled, "sure": sure}
    for number, batch in enumerate(all_batches.values()):
        add_tokens(batch, random.Random(number))
    return all_batches


def add_tokens(batch, rng):
    """Divides each sum among its tokens; adds the sum over the response's tail, and the logarithm of the WPO weight."""
    batch["tokens"], batch["tails"], batch["log_weights"] = [], [], []
    for s, (instruction, response, n_instruction, n_response) in enumerate(batch["sums"]):
        tokens, shares = [], [rng.uniform(0.2, 1.0) for _ in range(n_instruction + n_response)]
        for of_part, total in ((shares[:n_instruction], instruction), (shares[n_instruction:], response)):
            tokens += [total * share / sum(of_part) for share in of_part]
        other = batch["sums"][s ^ 1][3] if batch["paired"] else n_response
        tail = n_instruction + min(n_response, other)
        batch["tokens"].append(tokens)
        batch["tails"].append(sum(tokens[tail:]))
        # The mean of log p − log Σp², of a text that the policy could have written.
        batch["log_weights"].append(rng.uniform(-0.8, 0.3))


def diverged(name, s):
    """f'(e^s) of an f-divergence."""
    name, _, alpha = name.partition("=")
    if name == "reverse_kl":
        return s
    if name == "forward_kl":
        return 1 - torch.exp(-s)
    if name == "js":
        return torch.log(torch.tensor(2.0)) + logsigmoid(s)
    return (torch.exp((float(alpha) - 1) * s) - 1) / (float(alpha) - 1)


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
    log_ratio = x - reference
    s = diverged(p.get("f_divergence", "reverse_kl"), log_ratio)
    c, r = s[0::2], s[1::2]
    gap = c - r if name not in ("kto", "apo_zero_unpaired") else None
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
    if name == "sigmoid_norm":
        return -logsigmoid(beta * ((s / n)[0::2] - (s / n)[1::2]))
    if name == "exo_pair":
        # KL of (q, 1 − q) to (1 − ε, ε).
        q = torch.stack([logsigmoid(beta * gap), logsigmoid(-beta * gap)])
        target = torch.log(torch.tensor([1 - e, e]))[:, None]
        return (q.exp() * (q - target)).sum(0)
    if name == "discopop":
        tau = p.get("discopop_tau", 0.05)
        z = beta * gap
        # exp(−z) overflows where its factor is 0.
        return -logsigmoid(z) * sigmoid(-z / tau) + torch.exp(logsigmoid(z / tau) - z)
    if name == "dpop":
        # Smaug's equation 3, with x = log π and reference = log π_ref.
        penalty = torch.relu(reference[0::2] - x[0::2])
        return -logsigmoid(beta * (gap - p.get("dpop_lambda", 50.0) * penalty))
    if name == "cpo":
        return smoothed(beta * (x[0::2] - x[1::2]))
    if name == "apo_zero":
        return 1 - sigmoid(beta * c) + sigmoid(beta * r)
    if name == "apo_down":
        return sigmoid(beta * c) + 1 - sigmoid(beta * gap)
    if name == "apo_zero_unpaired":
        return torch.where(
            desirable, p["desirable_weight"] * (1 - sigmoid(beta * s)), p["undesirable_weight"] * sigmoid(beta * s)
        )
    if name == "nca_pair":
        return -logsigmoid(beta * c) - logsigmoid(-beta * c) / 2 - logsigmoid(-beta * r) / 2
    if name == "bco_pair":
        return -logsigmoid(beta * c) - logsigmoid(-beta * r)
    if name == "sppo_hard":
        return (c - 0.5 / beta) ** 2 + (r + 0.5 / beta) ** 2
    if name == "aot":
        margins, order = torch.sort(x[0::2] - x[1::2], stable=True)
        sorted_losses = smoothed(beta * (margins - torch.sort(reference[0::2] - reference[1::2])[0]))
        return torch.empty_like(sorted_losses).scatter(0, order, sorted_losses)
    if name == "kto":
        z = s.mean().clamp(min=0).detach()
        good = p["desirable_weight"] * (1 - sigmoid(beta * (s - z)))
        bad = p["undesirable_weight"] * (1 - sigmoid(beta * (z - s)))
        return torch.where(desirable, good, bad)
    if name == "bco_shift":
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
    sums = torch.tensor([[*s[:2], tail] for s, tail in zip(batch["sums"], batch["tails"])], requires_grad=True)
    n = torch.tensor([s[2:] for s in batch["sums"]])
    x, tokens = (sums[:, :2].sum(1), n.sum(1)) if objective == "jpo" else (sums[:, 1], n[:, 1])
    x = x - (1 - p.get("ld_alpha", 1.0)) * sums[:, 2]
    pairs = len(batch["sums"]) // 2
    cosines = torch.tensor(batch["cosines"]).reshape(pairs, pairs) if batch["paired"] else None
    desirable, reference = torch.tensor(batch["desirable"]), torch.tensor(batch["reference"])
    parts = [(name, float(weight or 1)) for name, _, weight in (part.partition("=") for part in loss.split(","))]
    of_rows = 0.0
    for name, weight in parts:
        of_responses = likelihood(sums[:, 1], n[:, 1], None if batch["paired"] else desirable)
        if name == "sft":
            one = of_responses
        else:
            one = losses(name, p, x, tokens, reference, desirable, cosines)
            if name == "cpo":
                one = one + p.get("cpo_alpha", 1.0) * of_responses
            if name in ("kto", "apo_zero_unpaired") and batch["paired"]:
                one = one.reshape(-1, 2).mean(1)
        of_rows = of_rows + weight * one
    if p.get("wpo"):
        of_rows = of_rows * torch.tensor(batch["log_weights"]).reshape(-1, 2).sum(1).exp()
    of_rows.sum().backward()
    d_sums = sums.grad
    compare_with_trl(batch, p, parts, of_rows.detach(), d_sums)
    return {"preference": p, "losses": of_rows.tolist(), "d_sums": d_sums[:, :2].tolist(), "d_tails": d_sums[:, 2].tolist()}


COMPARED = {}


def compare_with_trl(batch, p, parts, of_rows, d_sums):
    """Fails where TRL's own code has another loss, or another gradient of a token."""
    jpo, smoothed = p["objective"] == "jpo", p["label_smoothing"] > 0
    is_cpo = [name for name, _ in parts] == ["cpo"]
    # TRL has no joint score: it is given by a mask over both texts, which its likelihood then scores, too.
    is_dpo = all(name in trl_losses.OF_DPO and not (name == "sft" and jpo) and not (name == "sigmoid" and smoothed) for name, _ in parts)
    # TRL multiplies hinge's loss by the weights in place, which PyTorch cannot differentiate.
    fails = p.get("wpo") and any(name == "hinge" for name, _ in parts)
    if not batch["paired"] or not (is_cpo or is_dpo) or p["reference_free"] or fails:
        return
    # TRL computes α-divergences in float32 alone.
    rough = p.get("f_divergence", "").startswith("alpha")
    dtype = torch.float32 if rough else torch.float64
    leaves, sides = [], []
    for s, (_, _, n_instruction, n_response) in enumerate(batch["sums"]):
        leaf = torch.tensor(batch["tokens"][s], dtype=dtype, requires_grad=True)
        leaves.append(leaf)
        scored = leaf
        tail = n_instruction + min(n_response, batch["sums"][s ^ 1][3])
        if jpo and "ld_alpha" in p:
            # The response's tail alone is weighted, as in TRL; the instruction is not a part of its lengths.
            scored = torch.cat([scored[:tail], p["ld_alpha"] * scored[tail:]])
        scored = scored if jpo else scored[n_instruction:]
        squares = scored.detach() - batch["log_weights"][s]
        sides.append((scored, squares, batch["reference"][s]))
    settings = {key: value for key, value in p.items() if not (jpo and key == "ld_alpha")}
    if is_cpo:
        joined = torch.cat([leaves[s][batch["sums"][s][2] :] for s in range(0, len(leaves), 2)])
        sums = [side[0].sum() for side in sides]
        mean = trl_losses.cpo(p, torch.stack(sums[0::2]), torch.stack(sums[1::2]), -joined.mean())
    else:
        mean = trl_losses.dpo(settings, parts, sides[0::2], sides[1::2])
    if "discopop" in p["loss"] and not mean.isfinite():
        # TRL's exp(−βΔ) is infinite, and its factor 0.
        return
    (mean * len(of_rows)).backward()
    close = lambda a, b: abs(a - b) <= (1e-3 if rough else 1e-9) * max(1.0, abs(b))
    assert close(mean.item(), of_rows.mean().item()), (p, mean.item(), of_rows.mean().item())
    ties = len({tuple(sums) for sums in map(tuple, batch["sums"])}) < len(batch["sums"])
    for s, (_, _, n_instruction, n_response) in enumerate(batch["sums"]):
        shorter = min(n_response, batch["sums"][s ^ 1][3])
        instruction, response, tail = d_sums[s].tolist()
        wanted = [instruction] * n_instruction + [response] * shorter + [response + tail] * (n_response - shorter)
        got = leaves[s].grad.tolist()
        # Sorted equals may be compared the other way round.
        if not (ties and p["loss"].startswith("aot")):
            assert all(close(a, b) for a, b in zip(got, wanted, strict=True)), (p, s, got, wanted)
    for name, _ in parts:
        COMPARED[name] = COMPARED.get(name, 0) + 1


def main():
    all_batches = batches()
    cases = []

    def add(names, losses_of, **constants):
        for name in names.split():
            for loss in losses_of.split():
                for objective in ["jpo", "dpo"] if name in ("mixed", "labelled") else ["jpo"]:
                    cases.append({"batch": name} | case(all_batches[name], objective, loss, **constants))

    pairwise = (
        "sigmoid robust hinge ipo sigmoid_norm discopop dpop simpo orpo cpo kto_pair kto apo_zero_unpaired apo_zero apo_down nca_pair bco_pair "
        "bco_shift sppo_hard aot aot_unpaired rpo sft"
    )
    add("mixed alone far ties high", pairwise)
    add("mixed alone far ties high", "exo_pair", label_smoothing=1e-3)
    add("mixed ties", "sigmoid robust exo_pair cpo aot aot_unpaired", label_smoothing=0.1, beta=0.3)
    add("mixed", "simpo", beta=2.0, simpo_gamma=1.2)
    add("mixed", "sigmoid_norm", beta=5.0)
    add("mixed", "rpo", rpo_tau=0.1)
    add("mixed", "discopop", discopop_tau=0.7)
    add("mixed high", "dpop", dpop_lambda=5.0)
    add("mixed", "cpo", cpo_alpha=0.3)
    add("mixed labelled", "kto apo_zero_unpaired", desirable_weight=1.3, undesirable_weight=0.8, beta=0.2)
    add("mixed", "sigmoid kto rpo aot", reference_free=True)
    add("labelled", "kto sft kto=1,sft=0.5 apo_zero_unpaired")
    add("sure", "orpo simpo")
    add("high", "sigmoid=1,sft=0.2 rpo=0.5,orpo=2,kto=0.1 apo_zero=1,sigmoid_norm=0.5")
    of_pairs = "sigmoid robust hinge ipo sigmoid_norm discopop dpop apo_zero apo_down nca_pair bco_pair bco_shift sppo_hard"
    add("mixed high", f"{of_pairs} aot aot_unpaired kto_pair sigmoid=1,sft=0.2", ld_alpha=0.3)
    add("mixed", "exo_pair", ld_alpha=0.0, label_smoothing=0.01)
    add("mixed high", f"{of_pairs} simpo", wpo=True)
    add("mixed", "sigmoid ipo apo_zero", wpo=True, ld_alpha=0.5)
    for divergence in ["forward_kl", "js", "alpha=0.5", "alpha=1.2"]:
        add("mixed", "sigmoid robust hinge ipo sigmoid_norm discopop sigmoid=1,sft=0.2", f_divergence=divergence, beta=0.05)
        add("mixed", "exo_pair", f_divergence=divergence, beta=0.05, label_smoothing=0.01)
    for batch in all_batches.values():
        del batch["tokens"]
    text = json.dumps({"batches": all_batches, "cases": cases})
    print(text.replace('{"batch":', '\n{"batch":'))
    print("compared with TRL:", *(f"{name} {n}" for name, n in sorted(COMPARED.items())), file=sys.stderr)


main()

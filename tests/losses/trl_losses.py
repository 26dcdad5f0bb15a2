"""TRL 1.16's own losses, on given log-probabilities of tokens: the second oracle of make.py.

TRL's trainers compute a loss from what a model returns. Here the model is a table of log-probabilities, and the trainer has only the attributes that its loss
reads. Values and gradients are those of TRL's code.
"""

import os
from collections import defaultdict
from types import SimpleNamespace

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch
from trl.experimental.cpo import CPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer

# Losses of DPOTrainer that are the same here. Its sigmoid ignores label smoothing.
OF_DPO = (
    "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft sigmoid_norm".split()
)
DIVERGENCES = {"reverse_kl": "reverse_kl", "forward_kl": "forward_kl", "js": "js_divergence", "alpha": "alpha_divergence"}


def dpo(p, parts, chosen, rejected):
    """Mean loss of DPOTrainer over pairs. A side is a list of (log-probabilities of the scored tokens, log Σp² there, reference score)."""
    sides = chosen + rejected
    longest = max(len(logps) for logps, _, _ in sides)
    # The first token is scored by nothing before it.
    mask = torch.tensor([[0] + [1] * len(logps) + [0] * (longest - len(logps)) for logps, _, _ in sides])
    padded = lambda rows: torch.stack([torch.cat([row, row.new_zeros(longest - len(row))]) for row in rows])
    outputs = SimpleNamespace(
        log_probs=padded([logps for logps, _, _ in sides]),
        log_sum_sq_probs=padded([squares for _, squares, _ in sides]),
        entropy=torch.zeros(len(sides), longest),
        mean_logits=torch.zeros(len(sides), longest),
        is_top1=torch.zeros(len(sides), longest, dtype=torch.bool),
    )
    gather = lambda x: x
    divergence, _, alpha = p.get("f_divergence", "reverse_kl").partition("=")
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", gather=gather, gather_for_metrics=gather),
        model=SimpleNamespace(training=True),
        beta=p["beta"],
        label_smoothing=p["label_smoothing"],
        loss_types=[name for name, _ in parts],
        loss_weights=[weight for _, weight in parts],
        ld_alpha=p.get("ld_alpha"),
        use_weighting=p.get("wpo", False),
        f_divergence_type=DIVERGENCES[divergence],
        f_alpha_divergence_coef=float(alpha or 0.5),
        args=SimpleNamespace(discopop_tau=p.get("discopop_tau", 0.05)),
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    reference = torch.tensor([reference for _, _, reference in sides], dtype=sides[0][0].dtype)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[: len(chosen)],
        "ref_rejected_logps": reference[len(chosen) :],
    }
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


def cpo(p, chosen, rejected, likelihood):
    """Mean loss of CPOTrainer over pairs, from sums over the scored tokens and the mean negative log-likelihood of the chosen responses."""
    accelerator = SimpleNamespace(device="cpu")
    trainer = SimpleNamespace(
        accelerator=accelerator, alpha=0.0, loss_type="sigmoid", beta=p["beta"], label_smoothing=p["label_smoothing"]
    )
    losses, _, _ = CPOTrainer.cpo_loss(trainer, chosen, rejected)
    return losses.mean() + p.get("cpo_alpha", 1.0) * likelihood

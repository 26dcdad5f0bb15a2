#!/usr/bin/env python3
"""How much joint preferences say about instructions alone: instructions.py RUNS/*/joint/preferences.jsonl

How often each instruction appears, what share of them stands on both sides, and how well a Bradley-Terry model whose players are the
instructions' templates (responses unseen) says which side of a held-out pair is preferred (5 folds; 0.5 is chance). Standard library."""

import json
import random
import sys
from collections import Counter
from math import exp

FOLDS, STEPS, RATE, L2 = 5, 300, 0.5, 1.0


def template(instruction):
    """Its first word, and which of the next two are no name: the demo's tasks differ in these."""
    words = instruction.rstrip(".?!").split(":")[0].split()[:3]
    return " ".join(words[:1] + [w for w in words[1:] if w.islower()])


def strengths(pairs):
    """Maximum likelihood with a Gaussian prior, by gradient ascent; each player's step is divided by its games."""
    games = Counter(player for pair in pairs for player in pair)
    strength = dict.fromkeys(games, 0.0)
    for _ in range(STEPS):
        gradient = {player: -L2 * s for player, s in strength.items()}
        for won, lost in pairs:
            missing = 1 / (1 + exp(strength[won] - strength[lost]))
            gradient[won] += missing
            gradient[lost] -= missing
        for player, g in gradient.items():
            strength[player] += RATE * g / (L2 + games[player] / 4)
    return strength


if len(sys.argv) == 1:
    sys.exit(__doc__)
for path in sys.argv[1:]:
    with open(path) as lines:
        sides = [(row["i_chosen"], row["i_reject"]) for row in map(json.loads, lines)]
    chosen = Counter(won for won, _ in sides)
    times = Counter(instruction for pair in sides for instruction in pair)
    both = sum(0 < chosen[i] < times[i] for i in times) / len(times)
    pairs = [tuple(map(template, pair)) for pair in sides]
    random.Random(0).shuffle(pairs)
    right = 0.0
    for fold in range(FOLDS):
        strength = strengths([pair for i, pair in enumerate(pairs) if i % FOLDS != fold])
        for won, lost in pairs[fold::FOLDS]:
            margin = strength.get(won, 0.0) - strength.get(lost, 0.0)
            right += 0.5 if margin == 0 else margin > 0
    print(f"{path}: {len(pairs)} pairs; an instruction appears {len(pairs) * 2 / len(times):.2f} times, {100 * both:.0f} % on both sides; "
          f"{len({t for p in pairs for t in p})} templates say the preferred side of {100 * right / len(pairs):.0f} %")

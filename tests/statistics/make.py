"""Cohen's kappa by scikit-learn, quantiles by numpy, bootstrap intervals by scipy (and, where observations share units, by numpy), for
tests/judging.rs.

    python tests/statistics/make.py > tests/statistics/statistics.json

numpy 2.4.6, scipy 1.17.1, scikit-learn 1.9.1. Each interval comes with the standard deviation of its ends over repeated runs of 2000 draws,
which is what a run of ours may differ by.
"""

import json
import warnings

import numpy as np
from scipy import stats
from sklearn.metrics import cohen_kappa_score

rng = np.random.default_rng(20240404)
warnings.simplefilter("ignore")
DRAWS = 2000


def kappas():
    cases = []
    for n, size, agree in [(2, 40, 0.5), (3, 60, 0.8), (3, 25, 0.0), (2, 5, 1.0), (3, 200, 0.3)]:
        a = rng.integers(0, n, size)
        b = np.where(rng.random(size) < agree, a, rng.integers(0, n, size))
        weights = rng.integers(0, 4, size)
        weights[:2] = 1
        cases.append({
            "n": n, "a": a.tolist(), "b": b.tolist(), "weights": weights.tolist(),
            "kappa": cohen_kappa_score(a, b, labels=range(n)),
            "weighted": cohen_kappa_score(a, b, labels=range(n), sample_weight=weights),
        })
    return cases


def quantiles():
    cases = []
    for size in [1, 2, 7, 100]:
        values = np.sort(rng.normal(size=size))
        qs = [0.0, 0.025, 0.3, 0.5, 0.975, 1.0]
        cases.append({"values": values.tolist(), "q": qs, "quantiles": np.quantile(values, qs).tolist()})
    return cases


def ends(draw, statistic, runs=40):
    """Mean of both ends over runs, and their standard deviation."""
    found = np.array([np.quantile([statistic(draw()) for _ in range(DRAWS)], [0.025, 0.975]) for _ in range(runs)])
    return found.mean(axis=0).tolist(), found.std(axis=0).tolist()


def share(weights, hits):
    return (weights * hits).sum() / weights.sum() if weights.sum() > 0 else np.nan


def ordinary():
    """Nothing is shared: shares by scipy's percentile bootstrap and the binomial that it draws from, kappa by scipy's paired one."""
    cases = []
    for n, k in [(50, 31), (200, 183), (400, 120)]:
        hits = np.zeros(n)
        hits[:k] = 1
        interval = stats.bootstrap((hits,), np.mean, n_resamples=DRAWS * 20, method="percentile", rng=1).confidence_interval
        _, sd = ends(lambda: np.bincount(rng.integers(0, n, n), minlength=n), lambda w: share(w, hits))
        exact = (stats.binom.ppf([0.025, 0.975], n, k / n) / n).tolist()
        cases.append({"hits": hits.tolist(), "ends": list(interval), "sd": sd, "exact": exact})
    a = rng.integers(0, 3, 150)
    b = np.where(rng.random(150) < 0.6, a, rng.integers(0, 3, 150))
    kappa = lambda x, y: cohen_kappa_score(x, y, labels=[0, 1, 2])
    interval = stats.bootstrap((a, b), kappa, n_resamples=DRAWS * 2, method="percentile", paired=True, vectorized=False, rng=1)
    runs = [stats.bootstrap((a, b), kappa, n_resamples=500, method="percentile", paired=True, vectorized=False, rng=i).confidence_interval for i in range(12)]
    sd = np.std([list(r) for r in runs], axis=0) / 2  # 500 draws instead of 2000
    return cases, {"a": a.tolist(), "b": b.tolist(), "ends": list(interval.confidence_interval), "sd": sd.tolist()}


def shared():
    """Groups of observations drawn whole, and observations of two units each that count as the product of the units' draws."""
    sizes = rng.integers(1, 6, 60)
    group = np.repeat(np.arange(60), sizes)
    hits = (rng.random(len(group)) < np.repeat(rng.random(60), sizes)).astype(float)
    mean, sd = ends(lambda: np.bincount(rng.integers(0, 60, 60), minlength=60)[group], lambda w: share(w, hits))
    groups = {"units": [[f"g{g}"] for g in group], "hits": hits.tolist(), "ends": mean, "sd": sd}
    n = 40
    pairs = np.array([(i, (i + d) % n) for i in range(n) for d in (1, 2, 7)])
    strength = rng.normal(size=n)
    hits = (strength[pairs[:, 0]] + rng.normal(size=len(pairs)) > 0).astype(float)

    def draw():
        counts = np.bincount(rng.integers(0, n, n), minlength=n)
        return counts[pairs[:, 0]] * counts[pairs[:, 1]]

    mean, sd = ends(draw, lambda w: share(w, hits))
    rows = {"units": [[f"r{a}", f"r{b}"] for a, b in pairs], "hits": hits.tolist(), "ends": mean, "sd": sd}
    # The same as if each comparison stood alone: what the test must tell apart.
    m = len(hits)
    alone, _ = ends(lambda: np.bincount(rng.integers(0, m, m), minlength=m), lambda w: share(w, hits), runs=10)
    return groups, {**rows, "alone": alone}


shares, kappa = ordinary()
groups, rows = shared()
print(json.dumps({
    "kappas": kappas(), "quantiles": quantiles(), "shares": shares, "kappa_interval": kappa, "groups": groups, "rows": rows,
}))

"""Length-controlled win rates by scikit-learn and intervals of means over runs by numpy, for tests/evaluating.rs.

    python tests/statistics/make_evaluate.py > tests/statistics/evaluate.json

numpy 2.4.6, scikit-learn 1.9.1. Ties are two rows of half the weight, as in AlpacaEval's fit_LogisticRegressionCV; sklearn's ridge is
1/2 w^2 + C sum(loss) without its intercept, so C = 2.5^2 is a normal prior of standard deviation 2.5 on the coefficient.
"""

import json

import numpy as np
from sklearn.linear_model import LogisticRegression

rng = np.random.default_rng(20240404)
DRAWS = 2000


def feature(lengths):
    d = lengths[:, 0] - lengths[:, 1]
    return np.tanh(d / d.std(ddof=1))


def fit(x, y, weights):
    x2, label = np.concatenate([x, x])[:, None], np.repeat([1, 0], len(x))
    model = LogisticRegression(C=2.5**2, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model.fit(x2, label, sample_weight=np.concatenate([weights * y, weights * (1 - y)]))
    return float(model.predict_proba([[0.0]])[0, 1]), float(model.coef_[0, 0])


def controlled():
    cases = []
    for n, theta, phi, longer in [(60, 0.0, 0.0, 1.0), (300, 0.8, 2.0, 1.4), (500, -1.0, 1.0, 0.8), (200, 0.3, -1.5, 2.0), (40, 0.2, 30.0, 1.0)]:
        theirs = rng.integers(5, 300, n)
        ours = np.maximum(1, (theirs * longer * rng.uniform(0.4, 1.8, n)).astype(int))
        lengths = np.stack([ours, theirs], axis=1)
        x = feature(lengths)
        y = (rng.random(n) < 1 / (1 + np.exp(-theta - phi * x))).astype(float)
        y[rng.random(n) < 0.2] = 0.5
        if phi == 30.0:  # every longer answer wins: without a prior there is no maximum
            y = (x > 0).astype(float)
            y[x == 0] = 0.5
        weights = rng.integers(0, 4, n).astype(float)
        rate, coefficient = fit(x, y, np.ones(n))
        weighted, weighted_coefficient = fit(x, y, weights)
        cases.append({
            "lengths": lengths.tolist(), "y": y.tolist(), "weights": weights.tolist(), "x": x.tolist(), "raw": y.mean(),
            "rate": rate, "phi": coefficient, "weighted": weighted, "weighted_phi": weighted_coefficient,
        })
    return cases


def runs():
    """Two methods, of three runs and two, over the same prompts, some of which are harder: the mean of the runs' rates, and the difference."""
    n = 120
    hard = rng.normal(size=n)
    def run(strength):
        y = (hard + strength + rng.normal(size=n) > 0).astype(float)
        y[rng.random(n) < 0.25] = 0.5
        return np.where(rng.random(n) < 0.05, np.nan, y)
    a, b = np.stack([run(s) for s in (0.3, 0.5, 0.4)]), np.stack([run(s) for s in (0.0, 0.1)])

    def mean(y, w):
        known = ~np.isnan(y)
        return (np.where(known, y, 0) * w).sum(axis=1) / (known * w).sum(axis=1)

    def ends(statistic, repeats=40):
        found = []
        for _ in range(repeats):
            draws = [statistic(np.bincount(rng.integers(0, n, n), minlength=n)) for _ in range(DRAWS)]
            found.append(np.quantile(draws, [0.025, 0.975]))
        return np.mean(found, axis=0).tolist(), np.std(found, axis=0).tolist()

    def alone(y):
        """Single judgements drawn, as if they were independent: what the test must tell apart."""
        flat = y[~np.isnan(y)]
        return np.quantile([rng.choice(flat, len(flat)).mean() for _ in range(4 * DRAWS)], [0.025, 0.975]).tolist()

    ones = np.ones(n)
    out = {"scores": [[None if np.isnan(v) else v for v in row] for row in np.concatenate([a, b])], "methods": [3, 2]}
    for name, y in (("a", a), ("b", b)):
        e, sd = ends(lambda w, y=y: mean(y, w).mean())
        out[name] = {"rates": mean(y, ones).tolist(), "mean": mean(y, ones).mean(), "sd": mean(y, ones).std(ddof=1), "ends": e, "ends_sd": sd, "alone": alone(y)}
    e, sd = ends(lambda w: mean(a, w).mean() - mean(b, w).mean())
    out["difference"] = {"value": mean(a, ones).mean() - mean(b, ones).mean(), "ends": e, "ends_sd": sd}
    return out


print(json.dumps({"controlled": controlled(), "runs": runs()}))

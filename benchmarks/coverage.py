"""How often 95 % intervals hold the truth: `python -m benchmarks.coverage [SEEDS CLASSES TIMES]`.

Two methods are trained on some seeds and score images of some ID classes and as many OoD characters. What a
score is made of is Gaussian, so the difference of AUROC and FPR95 that all seeds, classes and images together
would show has a closed form.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy import stats

from ood_utils.leaderboard import ScoreBook

IMAGES = 5  # of each class
CENTRES = np.array([[0.0, 0.0], [-2.0, -2.3]])  # ID and OoD, of methods a and b
PARTS = ("class", "class x method", "seed", "seed x class", "image", "image x seed")
WORLDS = {  # standard deviations of the parts of a score
    "balanced": (0.6, 0.3, 0.10, 0.20, 0.8, 0.4),
    "seeds differ": (0.6, 0.2, 0.20, 0.10, 0.8, 0.3),
    "classes differ": (0.8, 0.5, 0.03, 0.10, 0.6, 0.2),
    "seeds differ by class": (0.6, 0.1, 0.03, 0.40, 0.6, 0.6),
    "seeds differ by image only": (0.6, 0.3, 0.00, 0.00, 0.8, 0.6),
}


def truth(sd: tuple[float, ...]) -> np.ndarray:
    """(2,): b minus a in AUROC and FPR95 (ID positive) over all seeds, classes and images."""
    seed = sd[PARTS.index("seed")] ** 2
    rest, apart = sum(np.square(sd)) - seed, CENTRES[0] - CENTRES[1]
    auroc = stats.norm.cdf(apart / np.sqrt(2 * rest + 2 * seed))
    accepted = (stats.norm.ppf(0.95) - apart / np.sqrt(rest)) / np.sqrt(1 + 2 * seed / rest)
    return np.array([np.diff(auroc)[0], np.diff(stats.norm.cdf(accepted))[0]])


def trial(sd: tuple[float, ...], seeds: int, classes: int, draws: int, rng: np.random.Generator) -> ScoreBook:
    """The scores that one experiment would see: methods a and b, each trained ``seeds`` times."""
    full = (2, seeds, classes, IMAGES)  # method, seed, class, image
    which = "0010 1010 1100 1110 0011 1111".split()  # along which of these each of PARTS differs
    shapes = [np.where([digit == "1" for digit in word], full, 1) for word in which]
    both = []
    for centre in CENTRES:
        parts = [rng.normal(0, one, shape) for one, shape in zip(sd, shapes, strict=True)]
        both.append((centre[:, None, None, None] + sum(parts)).reshape(2 * seeds, -1))
    inside, outside = both
    keys = [(method, seed, "score") for method in "ab" for seed in range(seeds)]
    together = np.repeat(np.arange(classes), IMAGES)
    return ScoreBook(keys, inside, {"set": outside}, {"set": "near"}, draws, together, {"set": together})


def naive(book: ScoreBook, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """(2, 2): percentile interval of b minus a (low, high) when classes and seeds are just resampled."""
    drawn = book.resampled["set"][seeds:, :, :2] - book.resampled["set"][:seeds, :, :2]
    picked = rng.integers(0, seeds, (seeds, book.draws))
    return np.quantile(drawn[picked, np.arange(book.draws)].mean(axis=0), [0.025, 0.975], axis=0)


def measure(
    sd: tuple[float, ...], seeds: int, classes: int, times: int, draws: int = 200
) -> dict[str, np.ndarray]:
    """Shares (2,) of ``times`` trials whose interval, "ours" or "naive", holds the truth: AUROC and FPR95."""
    rng, true, held = np.random.default_rng([seeds, classes]), truth(sd), {"ours": [], "naive": []}
    for _ in range(times):
        book = trial(sd, seeds, classes, draws, rng)
        found = book.estimate("set", book.rows("b", "score"), book.rows("a", "score"))
        ends = {"ours": (found.low[:2], found.high[:2]), "naive": naive(book, seeds, rng)}
        for what, (low, high) in ends.items():
            held[what].append((low <= true) & (true <= high))
    return {what: np.mean(hits, axis=0) for what, hits in held.items()}


def main() -> None:
    """Print the share of intervals that hold the truth, AUROC / FPR95, in every world."""
    given = [int(word) for word in sys.argv[1:]]
    seeds, classes, times = (*given, *(3, 40, 1000)[len(given) :])
    error = 196 * (0.95 * 0.05 / times) ** 0.5  # per cent
    print(f"{seeds} seeds, {classes} classes of {IMAGES} images, {times} trials, +- {error:.1f}")
    for world, sd in WORLDS.items():
        found = measure(sd, seeds, classes, times)
        cells = [f"{what} {100 * auroc:5.1f} / {100 * fpr95:5.1f}" for what, (auroc, fpr95) in found.items()]
        print(f"{world:28}" + ", ".join(cells), flush=True)


if __name__ == "__main__":
    main()

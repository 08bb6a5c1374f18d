"""How often 95 % intervals hold the truth: `python -m benchmarks.coverage [SEEDS CLASSES TIMES]`.

Seven methods are trained on some seeds and score images of some ID classes and as many OoD characters; they
are compared in PAIRS, as notebook 04 compares its own. What a score is made of is Gaussian, so the difference
of AUROC and FPR95 that all seeds, classes and images together would show has a closed form.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy import stats

from ood_utils.leaderboard import ScoreBook

IMAGES = 5  # of each class
METHODS, PAIRS = "abcdefg", ("ba", "ca", "da", "eb", "fc", "gd")
CENTRES = np.array([[0.0, 0.0], [-2.0, -2.3]])  # ID and OoD, of a and of all others
PARTS = ("class", "class x method", "seed", "seed x class", "image", "image x seed")
WORLDS = {  # standard deviations of the parts of a score
    "balanced": (0.6, 0.3, 0.10, 0.20, 0.8, 0.4),
    "seeds differ": (0.6, 0.2, 0.20, 0.10, 0.8, 0.3),
    "classes differ": (0.8, 0.5, 0.03, 0.10, 0.6, 0.2),
    "seeds differ by class": (0.6, 0.1, 0.03, 0.40, 0.6, 0.6),
    "seeds differ by image only": (0.6, 0.3, 0.00, 0.00, 0.8, 0.6),
    "seeds differ by method": (0.6, 0.2, 0.10, 0.10, 0.8, 0.3),
}
LOUD = (1, 0, 1, 2, 0, 1, 2)  # times its seed's part, of each method in "seeds differ by method"; else 1


def truth(sd: tuple[float, ...], method: str, loud: float = 1) -> np.ndarray:
    """(2,): a method's AUROC and FPR95 (ID positive) over all seeds, classes and images."""
    seed = (sd[PARTS.index("seed")] * loud) ** 2
    rest = sum(np.square(sd)) - sd[PARTS.index("seed")] ** 2
    apart = np.subtract(*CENTRES[:, int(method != "a")])
    accepted = (stats.norm.ppf(0.95) - apart / np.sqrt(rest)) / np.sqrt(1 + 2 * seed / rest)
    return stats.norm.cdf([apart / np.sqrt(2 * rest + 2 * seed), accepted])


def trial(
    sd: tuple[float, ...], loud: tuple[float, ...], seeds: int, classes: int, draws: int,
    rng: np.random.Generator,
) -> ScoreBook:  # fmt: skip
    """The scores that one experiment would see: every method trained ``seeds`` times."""
    full = (len(METHODS), seeds, classes, IMAGES)
    which = "0010 1010 1100 1110 0011 1111".split()  # along which of these each of PARTS differs
    shapes = [np.where([digit == "1" for digit in word], full, 1) for word in which]
    both = []
    for centre in CENTRES:
        parts = [rng.normal(0, one, shape) for one, shape in zip(sd, shapes, strict=True)]
        parts[PARTS.index("seed")] *= np.reshape(loud, (-1, 1, 1, 1))
        middle = np.where([name == "a" for name in METHODS], *centre)[:, None, None, None]
        both.append((middle + sum(parts)).reshape(len(METHODS) * seeds, -1))
    inside, outside = both
    keys = [(method, seed, "score") for method in METHODS for seed in range(seeds)]
    together = np.repeat(np.arange(classes), IMAGES)
    return ScoreBook(keys, inside, {"set": outside}, {"set": "near"}, draws, together, {"set": together})


def naive(book: ScoreBook, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """(2, 2): percentile interval of b minus a (low, high) when classes and seeds are just resampled."""
    drawn = book.resampled["set"][seeds : 2 * seeds, :, :2] - book.resampled["set"][:seeds, :, :2]
    picked = rng.integers(0, seeds, (seeds, book.draws))
    return np.quantile(drawn[picked, np.arange(book.draws)].mean(axis=0), [0.025, 0.975], axis=0)


def measure(
    sd: tuple[float, ...], seeds: int, classes: int, times: int, draws: int = 200,
    loud: tuple[float, ...] = (1,) * len(METHODS),
) -> dict[str, np.ndarray]:  # fmt: skip
    """Shares of ``times`` trials whose interval holds the truth, in AUROC and FPR95.

    "ours" (PAIRS, 2): of each pair, compared together; "alone" (2,) and "naive" (2,): of the first pair,
    without what the others say of seeds, and by percentiles.
    """
    rng = np.random.default_rng([seeds, classes])
    known = {name: truth(sd, name, one) for name, one in zip(METHODS, loud, strict=True)}
    true = np.array([known[one] - known[other] for one, other in PAIRS])
    held: dict[str, list[np.ndarray]] = {"ours": [], "alone": [], "naive": []}
    for _ in range(times):
        book = trial(sd, loud, seeds, classes, draws, rng)
        asked = [("set", book.rows(one, "score"), book.rows(other, "score")) for one, other in PAIRS]
        found = [np.array([one.low[:2], one.high[:2]]) for one in book.estimates(asked)]
        alone = book.estimates(asked[:1])[0]
        ends = {
            "ours": np.stack(found, axis=1),
            "alone": (alone.low[:2], alone.high[:2]),
            "naive": naive(book, seeds, rng),
        }
        for what, (low, high) in ends.items():
            wanted = true if what == "ours" else true[0]
            held[what].append((low <= wanted) & (wanted <= high))
    return {what: np.mean(hits, axis=0) for what, hits in held.items()}


def main() -> None:
    """Print the share of intervals that hold the truth, AUROC / FPR95, in every world."""
    given = [int(word) for word in sys.argv[1:]]
    seeds, classes, times = (*given, *(3, 40, 400)[len(given) :])
    error = 196 * (0.95 * 0.05 / times) ** 0.5  # per cent; ours: less, as six pairs are counted
    print(f"{seeds} seeds, {classes} classes of {IMAGES} images, {times} trials, +- {error:.1f}")
    for world, sd in WORLDS.items():
        loud = LOUD if world == "seeds differ by method" else (1,) * len(METHODS)
        found = measure(sd, seeds, classes, times, loud=loud)
        ours = found.pop("ours")
        found = {"ours": ours.mean(axis=0), "worst pair": ours.min(axis=0)} | found
        cells = [f"{what} {100 * auroc:5.1f} / {100 * fpr95:5.1f}" for what, (auroc, fpr95) in found.items()]
        print(f"{world:28}" + ", ".join(cells), flush=True)


if __name__ == "__main__":
    main()

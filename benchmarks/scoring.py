"""Scores and metrics at ImageNet's scale, against the plainest code that computes the same."""

from __future__ import annotations

import numpy as np

from .measure import Peak, seconds, side_by_side
from .record import Row

IMAGES, CLASSES, NEGATIVES, WIDTH = 50_000, 1_000, 10_000, 512
SLICE = 4000  # images whose error is measured against float64
DRAWS = 1000


def unit_rows(count: int, rng: np.random.Generator) -> np.ndarray:
    """Random float32 unit rows around a common direction, as narrow a cone as CLIP's."""
    rows = rng.standard_normal((count, WIDTH), dtype=np.float32) / np.sqrt(WIDTH).astype(np.float32)
    rows[:, 0] += 1.0
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def products(images: np.ndarray, id_text: np.ndarray, negative_text: np.ndarray) -> None:
    """The two float32 matrix products that no NegLabel can avoid, block by block into reused memory."""
    import torch

    rows, texts = torch.from_numpy(images), [torch.from_numpy(t).T for t in (id_text, negative_text)]
    kept = [torch.empty(2048, text.shape[1]) for text in texts]
    for block in rows.split(2048):
        for text, out in zip(texts, kept, strict=True):
            torch.mm(block, text, out=out[: len(block)])


def plain_neglabel(images: np.ndarray, id_text: np.ndarray, negative_text: np.ndarray) -> np.ndarray:
    """The formula as published, in numpy, with the whole matrix in memory; log-odds, unless they saturate."""
    logits = images @ np.concatenate([id_text, negative_text]).T / 0.01
    parts = np.exp(logits - logits.max(axis=1, keepdims=True))
    inside = parts[:, : len(id_text)].sum(axis=1)
    return np.log(inside / parts[:, len(id_text) :].sum(axis=1))


def measure_scores(scale: float = 1.0) -> list[Row]:
    """Rows of NegLabel: time over the two products, memory, plain numpy, and the error against float64."""
    from ood_utils import scores

    rng = np.random.default_rng(0)
    count = max(SLICE, int(IMAGES * scale))
    images, id_text, negative_text = (unit_rows(n, rng) for n in (count, CLASSES, NEGATIVES))
    size = f"{count:,} x ({CLASSES:,} + {NEGATIVES:,}) x {WIDTH}"
    products(images[:2048], id_text, negative_text)  # starts the threads
    with Peak() as peak:
        result = scores.neglabel(images, id_text, negative_text)
    floor, one, hundred = side_by_side(
        lambda: products(images, id_text, negative_text),
        lambda: scores.neglabel(images, id_text, negative_text),
        lambda: scores.neglabel(images, id_text, negative_text, groups=100),
    )
    piece = images[: count // 10]
    plain = seconds(lambda: plain_neglabel(piece, id_text, negative_text), repeat=1) * count / len(piece)
    wide = [part.astype(np.float64) for part in (id_text, negative_text)]
    truth = np.concatenate(
        [plain_neglabel(images[i : i + 500].astype(np.float64), *wide) for i in range(0, SLICE, 500)]
    )
    error = np.abs(result[:SLICE] - truth).max()

    def row(what: str, value: float, unit: str, share: float | None = None, target: str = "") -> Row:
        return Row("scores", what, float(value), unit, share, target, "python -m benchmarks scores")

    of = "(share: of the products' time)"
    return [
        row(f"the two float32 products alone, {size}", floor, "s"),
        row(f"neglabel, 1 group {of}", one, "s", one / floor, "share <= 2"),
        row(f"neglabel, 100 groups {of}", hundred, "s", hundred / floor, "share <= 2"),
        row(f"plain numpy, extrapolated from a tenth {of}", plain, "s", plain / floor),
        row("neglabel, peak memory above its inputs", peak.gb, "GB", None, "value <= 0.5"),
        row("neglabel at this size, largest error against float64", error, "log-odds", None, "value <= 1e-4"),
    ]


def plain_draw(inside: np.ndarray, outside: np.ndarray, rng: np.random.Generator) -> list[float]:
    """One bootstrap draw of the five metrics by scikit-learn, as most papers' scripts would."""
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    a, b = (rng.choice(part, len(part)) for part in (inside, outside))
    truth, both = np.r_[np.ones(len(a)), np.zeros(len(b))], np.r_[a, b]
    rates = [roc_curve(y, s) for y, s in ((truth, both), (1 - truth, -both))]
    fpr95 = [fpr[np.argmax(tpr >= 0.95)] for fpr, tpr, _ in rates]
    precision = [average_precision_score(y, s) for y, s in ((truth, both), (1 - truth, -both))]
    return [roc_auc_score(truth, both), *fpr95, *precision]


def measure_metrics(scale: float = 1.0) -> list[Row]:
    """Rows of the bootstrap: time against a scikit-learn loop, and memory."""
    from ood_utils import metrics

    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1.0, 1, int(50_000 * scale)), rng.normal(0.0, 1.3, int(10_000 * scale))
    size = f"{len(inside):,} + {len(outside):,} scores, {DRAWS:,} draws"
    metrics.bootstrap(inside[:500], outside[:500], n=20)  # imports scikit-learn
    with Peak() as peak:
        ours = seconds(lambda: metrics.bootstrap(inside, outside, n=DRAWS), repeat=1)
    few = 10
    loop = seconds(lambda: [plain_draw(inside, outside, rng) for _ in range(few)], repeat=1) * DRAWS / few
    many = [rng.normal(size=(8, len(scores))) + scores for scores in (inside, outside)]
    codes = [np.arange(len(scores)) % 1000 for scores in (inside, outside)]
    with Peak() as wide:
        clustered = seconds(lambda: metrics.bootstrap_draws(*many, DRAWS, 0, *codes), repeat=1)
    paired = seconds(
        lambda: metrics.paired_bootstrap(inside, outside, inside + 1, outside, n=DRAWS), repeat=1
    )

    def row(what: str, value: float, unit: str, share: float | None = None, target: str = "") -> Row:
        return Row("metrics", what, value, unit, share, target, "python -m benchmarks metrics")

    return [
        row(f"bootstrap of five metrics, {size}", ours, "s", None, "value <= 10"),
        row("a scikit-learn loop, extrapolated from 10 draws (share: of our time)", loop, "s", loop / ours),
        row("paired bootstrap of two methods, same size", paired, "s"),
        row("bootstrap, peak memory", peak.gb, "GB", None, "value <= 1"),
        row("8 scorings, 1,000 clusters each side, same size", clustered, "s", None, "value <= 10"),
        row("8 scorings, peak memory", wide.gb, "GB", None, "value <= 0.3"),
    ]

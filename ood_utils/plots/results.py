"""Scores of one set, methods compared, and sheets of pictures (notebooks 01 and 04)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from sklearn.metrics import roc_curve

from ..metrics import ood_metrics
from .style import ID, INK, OOD, WIDTH, Drawn, histogram, legend, method_colours, panels

METRICS = {
    "fpr95_id": "FPR95: share of OoD accepted where 95 % of ID is accepted (lower = better)",
    "fpr95_ood": "FPR95, OoD positive: share of ID rejected where 95 % of OoD is rejected (lower = better)",
    "auroc": "AUROC (higher = better)",
}


def scores(
    id_scores: np.ndarray, ood_scores: np.ndarray, title: str, xlabel: str = "score (higher = more ID)"
) -> Drawn:
    """Histograms of ID and OoD scores with the threshold that accepts 95 % of ID, and the ROC beside them.

    The point FPR95 (ID positive: the share of OoD accepted at that threshold) is drawn with its definition.
    Data: curve ("ID density", "OoD density", "ROC"), x, y. Raises UserError as ``metrics.ood_metrics``.
    """
    found = ood_metrics(id_scores, ood_scores)
    both = np.concatenate([id_scores, ood_scores]).astype(np.float64)
    fpr, tpr, _ = roc_curve(np.repeat([1, 0], [found.n_id, found.n_ood]), both)
    threshold = np.sort(id_scores)[found.n_id // 20]  # the ceil(0.95 n)-th largest, as in ``metrics``
    point = (found.fpr95_id, np.mean(np.asarray(id_scores) >= threshold))
    figure, (left, right) = panels(["", ""], title, columns=2, height=3.9)
    groups = {"ID": id_scores, "OoD": ood_scores}
    densities = histogram(left, groups, (ID, OOD), np.histogram_bin_edges(both, 50))
    left.axvline(threshold, color="black", linewidth=1.3)
    left.set_title("line: the threshold that accepts 95 % of ID")
    left.set_xlabel(xlabel)
    sns.move_legend(left, "upper center", bbox_to_anchor=(0.5, -0.2))
    right.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    right.plot(fpr, tpr, color=INK, linewidth=1.6)
    right.plot([point[0]] * 2 + [0], [0] + [point[1]] * 2, color=OOD, linewidth=1, linestyle=":")
    right.plot(*point, "o", color=OOD, clip_on=False)
    text = f"AUROC {found.auroc:.3f}\nFPR95 {100 * found.fpr95_id:.1f} %: OoD accepted\n"
    text += "where 95 % of ID is accepted"
    right.text(0.98, 0.06, text, ha="right", fontsize=9.5)
    right.set(xlabel="share of OoD accepted", ylabel="share of ID accepted", xlim=(0, 1), ylim=(0, 1.02))
    data = densities.assign(curve=densities["group"] + " density", y=densities["density"])[
        ["curve", "x", "y"]
    ]
    return figure, pd.concat([data, pd.DataFrame({"curve": "ROC", "x": fpr, "y": tpr})], ignore_index=True)


def results(frame: pd.DataFrame, title: str, metric: str = "fpr95_id", xlabel: str | None = None) -> Drawn:
    """The headline: one panel per score, one line per OoD set, one dot with its interval per method.

    ``frame`` has columns method, score, set, ``metric`` and, for intervals, ``metric``_low and _high, as
    fractions; rows of one method, score and set (seeds) are averaged. Sets keep their order, first on top.
    """
    ends = [column for column in (f"{metric}_low", f"{metric}_high") if column in frame]
    mean = frame.groupby(["method", "score", "set"], sort=False)[[metric, *ends]].mean().reset_index()
    colours, sets = method_colours(mean["method"]), pd.Index(mean["set"].unique())
    height = 0.75 + len(sets) * (0.14 * len(colours) + 0.16)
    figure, axes = panels(mean["score"].unique(), title, 5, height, sharex=True, sharey=True)
    for ax, (_, panel) in zip(axes, mean.groupby("score", sort=False), strict=True):
        for position, (method, colour) in enumerate(colours.items()):
            rows = panel[panel["method"] == method]
            y = sets.get_indexer(rows["set"]) + (position - (len(colours) - 1) / 2) * 0.72 / len(colours)
            error = None
            if len(ends) == 2:
                error = np.clip([rows[metric] - rows[ends[0]], rows[ends[1]] - rows[metric]], 0, None)
            dots = {"fmt": "o", "markersize": 4.5, "linewidth": 1.4, "color": colour, "label": method}
            ax.errorbar(rows[metric], y, xerr=error, **dots)
        for k in range(0, len(sets), 2):
            ax.axhspan(k - 0.5, k + 0.5, color="0.95", zorder=0)
        ax.set_yticks(range(len(sets)), sets)
        ax.set_ylim(len(sets) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_formatter("{x:.0%}")
        ax.xaxis.set_major_locator(plt.MaxNLocator(3))
    legend(figure, xlabel or METRICS.get(metric, metric))
    return figure, mean


def mistakes(
    images: Sequence[np.ndarray], frame: pd.DataFrame, title: str, columns: int = 2, width: int = 46
) -> Drawn:
    """A table with pictures: what the model saw and which texts it found nearest. Data: ``frame``.

    ``images``: (H, W, 3) arrays in [0, 1]. ``frame`` has one row per image; each of its columns becomes a
    line "column: value" beside the picture (floats with three digits; wrapped at ``width`` characters, two
    lines at most), so name them in words.
    """
    columns = min(columns, len(images))
    shape = {"columns": 2 * columns, "width_ratios": [1, 2.7] * columns}
    figure, axes = panels([""] * 2 * len(images), title, height=1.25, **shape)
    rows = zip(axes[::2], axes[1::2], images, frame.to_dict("records"), strict=True)
    for picture, words, image, row in rows:
        picture.imshow(np.clip(image, 0, 1), interpolation="nearest")
        lines = []
        for name, value in row.items():
            line = f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}"
            lines += textwrap.wrap(line, width, max_lines=2, placeholder=" …", subsequent_indent="   ")
        words.text(0, 0.5, "\n".join(lines), va="center", fontsize=8.5, transform=words.transAxes)
        picture.set_axis_off()
        words.set_axis_off()
    return figure, frame


def gallery(rows: Mapping[str, Sequence[np.ndarray]], title: str) -> Drawn:
    """One row of example images per set, the set's name beside it. Data: set, images shown.

    ``rows`` maps set name to (H, W, 3) arrays in [0, 1], of one size within a set.
    """
    shown = [len(images) for images in rows.values()]
    figure, axes = panels([""] * len(rows), title, columns=1, height=WIDTH / max(shown))
    for ax, (name, images) in zip(axes, rows.items(), strict=True):
        # a strip is one picture: a hundred small axes take seconds to draw
        strip = np.hstack([np.pad(image, ((0, 0), (1, 1), (0, 0)), constant_values=1) for image in images])
        ax.imshow(strip.clip(0, 1), interpolation="nearest")
        ax.set(xlim=(0, strip.shape[1] / len(images) * max(shown)), xticks=[], yticks=[])
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.spines[:].set_visible(False)
    return figure, pd.DataFrame({"set": list(rows), "images shown": shown})

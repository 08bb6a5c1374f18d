"""Scores of one set, methods compared, and sheets of pictures (notebooks 01, 02 and 04)."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from sklearn.metrics import roc_curve

from ..metrics import ood_metrics, threshold
from . import style
from .style import Drawn


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
    line = threshold(np.asarray(id_scores))
    x, y = found.fpr95_id, np.mean(np.asarray(id_scores) >= line)
    figure, (left, right) = style.panels(["", ""], title, columns=2, height=3.9)
    groups = {"ID": id_scores, "OoD": ood_scores}
    densities = style.histogram(left, groups, (style.ID, style.OOD), np.histogram_bin_edges(both, 50))
    left.axvline(line, color="black", linewidth=1.3)
    left.set(title="line: the threshold that accepts 95 % of ID", xlabel=xlabel)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
    right.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    right.plot(fpr, tpr, color=style.INK, linewidth=1.6)
    right.plot([x, x, 0], [0, y, y], color=style.OOD, linewidth=1, linestyle=":")
    right.plot(x, y, "o", color=style.OOD, clip_on=False)
    text = f"AUROC {found.auroc:.3f}\nFPR95 {100 * x:.1f} %: OoD accepted\nwhere 95 % of ID is"
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # the dotted line ends behind the words
    right.text(0.98, 0.06, text, ha="right", fontsize=9.5, bbox=white)
    right.set(xlabel="share of OoD accepted", ylabel="share of ID accepted", xlim=(0, 1), ylim=(0, 1.02))
    drawn = densities.assign(curve=densities["group"] + " density", y=densities["density"])
    roc = pd.DataFrame({"curve": "ROC", "x": fpr, "y": tpr})
    return figure, pd.concat([drawn[["curve", "x", "y"]], roc], ignore_index=True)


def results(frame: pd.DataFrame, title: str) -> Drawn:
    """The headline: one panel per score, one line per OoD set, one dot of FPR95 with its interval per method.

    ``frame`` has columns method, score, set, fpr95_id, fpr95_id_low, fpr95_id_high, as fractions; rows of one
    method, score and set (seeds) are averaged. Sets keep their order, first on top.
    """
    columns = ["fpr95_id", "fpr95_id_low", "fpr95_id_high"]
    mean = frame.groupby(["method", "score", "set"], sort=False)[columns].mean().reset_index()
    colours, sets = style.method_colours(mean["method"]), pd.Index(mean["set"].unique())
    height = 0.75 + len(sets) * (0.14 * len(colours) + 0.16)
    figure, axes = style.panels(mean["score"].unique(), title, 5, height, sharex=True, sharey=True)
    for ax, (_, panel) in zip(axes, mean.groupby("score", sort=False), strict=True):
        for position, (method, colour) in enumerate(colours.items()):
            rows = panel[panel["method"] == method]
            x, low, high = rows[columns].to_numpy().T
            y = sets.get_indexer(rows["set"]) + (position - (len(colours) - 1) / 2) * 0.72 / len(colours)
            dots = {"fmt": "o", "markersize": 4.5, "linewidth": 1.4, "color": colour, "label": method}
            ax.errorbar(x, y, xerr=np.clip([x - low, high - x], 0, None), **dots)
        for k in range(0, len(sets), 2):
            ax.axhspan(k - 0.5, k + 0.5, color="0.95", zorder=0)
        ax.set(yticks=range(len(sets)), yticklabels=sets, ylim=(len(sets) - 0.5, -0.5))
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_formatter("{x:.0%}")
        ax.xaxis.set_major_locator(plt.MaxNLocator(3))
    style.legend(figure, "FPR95: share of OoD accepted where 95 % of ID is accepted (lower = better)")
    return figure, mean


def towers(swaps: pd.DataFrame, moved: pd.DataFrame, title: str) -> Drawn:
    """Which tower did it, and who moved: bars of FPR95 by group and pair of towers, and of angles by point.

    ``swaps``: columns towers, group, fpr95_id (a fraction); ``moved``: method, what, moved (degrees); rows of
    several seeds give a bar's mean and its range. Data: panel, of, what, value.
    """
    left = swaps.rename(columns={"group": "what", "towers": "of", "fpr95_id": "value"}).assign(panel="FPR95")
    right = moved.rename(columns={"method": "of", "moved": "value"}).assign(panel="moved")
    figure, axes = style.panels(["FPR95 with NegLabel", "mean angle from the zero-shot place"], title, 2, 3.9)
    for ax, frame, unit in zip(axes, (left, right), ("{x:.0%}", "{x:.0f}°"), strict=True):
        bars = {"errorbar": ("pi", 100), "err_kws": {"linewidth": 1}}
        bars |= {"palette": style.method_colours(frame["of"]), "saturation": 1}
        sns.barplot(frame, x="value", y="what", hue="of", ax=ax, **bars)
        ax.set(xlabel="", ylabel="")
        ax.xaxis.set_major_formatter(unit)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, fontsize=8)
    return figure, pd.concat([left, right])[["panel", "of", "what", "value"]]


def lam_sweep(
    frame: pd.DataFrame, title: str, chosen: float, labels: Mapping[str, str] | None = None
) -> Drawn:
    """What the weight of the alignment does; x is lam on an axis that holds 0. Data: ``frame``.

    ``frame`` has columns lam and those of ``labels`` (default: centroid_gap, accuracy, auroc); repeated lam
    (seeds) are drawn as points about their mean. ``chosen`` is the lam taken.
    """
    usual = {"centroid_gap": "centroid gap", "accuracy": "ID accuracy", "auroc": "validation AUROC"}
    labels, lams = labels or usual, np.unique(frame["lam"])
    xlabel = f"lam, the weight of the alignment (0 = FLYP; dashed: {chosen:g}, the one chosen)"
    figure, axes = style.curves(frame, labels, title, xlabel, x="lam", color=style.INK)
    for ax, column in zip(axes, labels, strict=True):
        ax.scatter(frame["lam"], frame[column], color=style.INK, s=18, zorder=3)
        ax.axvline(chosen, color=style.METHOD_COLOURS["CMA closed"], linewidth=1.2, linestyle="--")
        ax.set_xscale("symlog", linthresh=min(lams[lams > 0], default=1.0), linscale=0.6)
        ax.set_xticks(lams, [f"{lam:g}" for lam in lams], rotation=45)
        ax.minorticks_off()
    return figure, frame


def training_curves(logs: Mapping[str, pd.DataFrame], parts: Mapping[str, str], title: str) -> Drawn:
    """The parts of the loss over the steps, one panel per part, one line per training.

    ``logs``: name -> log per step; ``parts``: its columns -> panel titles with units. The text before ", " in
    a name ("CMA, seed 0") decides its colour. Data: run, step and the parts as drawn (running means).
    """
    by_run = pd.concat(
        {name: log.set_index("step")[list(parts)] for name, log in logs.items()}, names=["run"]
    )
    frame = by_run.groupby("run", sort=False).rolling(20, min_periods=1).mean().droplevel(0).reset_index()
    method = frame["run"].str.split(", ").str[0]
    runs = {"hue": method, "palette": style.method_colours(method), "units": frame["run"], "estimator": None}
    xlabel = "step (running mean over 20)"
    figure, _ = style.curves(frame, parts, title, xlabel, x="step", alpha=0.85, **runs)
    return figure, frame


def mistakes(images: Sequence[np.ndarray], frame: pd.DataFrame, title: str) -> Drawn:
    """A table with pictures: what the model saw and which texts it found nearest. Data: ``frame``.

    ``images``: (H, W, 3) arrays in [0, 1], one per row of ``frame``; each column becomes "column: value"
    beside the picture (floats with three digits; two lines at most), so name them in words.
    """
    figure, axes = style.panels([""] * len(images), title, columns=2, height=1.25)
    for ax, image, row in zip(axes, images, frame.to_dict("records"), strict=True):
        ax.imshow(np.clip(image, 0, 1), interpolation="nearest")
        ax.set_anchor("W")
        ax.set_axis_off()
        lines = []
        for name, value in row.items():
            line = f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}"
            lines += textwrap.wrap(line, 46, max_lines=2, placeholder=" …", subsequent_indent="   ")
        beside = ax.text(1.06, 0.5, "\n".join(lines), va="center", fontsize=8.5, transform=ax.transAxes)
        beside.set_in_layout(False)  # else the pictures shrink to make room for it
    return figure, frame


def gallery(rows: Mapping[str, Sequence[np.ndarray]], title: str) -> Drawn:
    """One row of example images per set, the set's name beside it. Data: set, images shown.

    ``rows``: set name -> (H, W, 3) arrays in [0, 1], of one size within a set.
    """
    shown = [len(images) for images in rows.values()]
    figure, axes = style.panels([""] * len(rows), title, columns=1, height=style.WIDTH / max(shown))
    for ax, (name, images) in zip(axes, rows.items(), strict=True):
        size = images[0].shape if len(images) else (1, 1, 3)
        strip = np.ones((max(shown), *size))  # white where a set has fewer images
        strip[: len(images)] = np.reshape(images, (-1, *size)).clip(0, 1)
        gaps = np.pad(strip, ((0, 0), (0, 0), (0, 1 + size[1] // 15), (0, 0)), constant_values=1)
        ax.imshow(np.hstack(gaps), interpolation="nearest")  # one picture: a hundred small axes take seconds
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    axes[-1].set_xlabel(" ")  # room for the run's id
    return figure, pd.DataFrame({"set": list(rows), "images shown": shown})

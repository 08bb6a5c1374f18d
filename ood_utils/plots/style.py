"""One look for all figures: what colours and markers mean, panels under a title, one legend below them.

Blue is in-distribution (ID) and vermilion out-of-distribution (OoD), a filled circle is an image and an open
triangle a text. The colours are Okabe and Ito's, which colour-blind readers tell apart.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ID, OOD, GREY, INK = "#0072B2", "#D55E00", "#7F7F7F", "0.25"
METHOD_COLOURS = {
    "zero-shot": GREY, "FLYP": "#E69F00", "CMA": "#009E73", "CMA closed": "#56B4E9",
    "FLYP + relation": "#882255", "CMA + relation": "#CC79A7", "CMA closed + relation": "#000000",
}  # fmt: skip
SPARE_COLOURS = ("#F0E442", "#999933", "#44AA99", "#AA4499", "#332288", "#88CCEE")
SPREAD = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")  # for seven equals
WIDTH, PANEL = 9.0, 3.2  # inches: a notebook's text column; the height of one row of panels
RC = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "figure.dpi": 110,
    "figure.titleweight": "bold",
    "legend.frameon": False,
}
Drawn = tuple[Figure, pd.DataFrame]


def look(group: str) -> dict[str, Any]:
    """scatter() keywords by name: vermilion for "OoD", "negative"; open triangles for "text", "negative"."""
    name = group.lower()
    colour = OOD if "ood" in name or "negative" in name else ID
    if "text" in name or "negative" in name:
        return {"marker": "^", "facecolors": "none", "edgecolors": colour, "linewidths": 0.9, "s": 22}
    return {"marker": "o", "facecolors": colour, "edgecolors": "none", "s": 10}


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """Each method's colour, in order of appearance: fixed for known ones, by position for others."""
    distinct = list(dict.fromkeys(methods))
    return {m: METHOD_COLOURS.get(m, SPARE_COLOURS[k % len(SPARE_COLOURS)]) for k, m in enumerate(distinct)}


def panels(
    names: Iterable[str], title: str, columns: int = 3, height: float = PANEL, **keywords: Any
) -> tuple[Figure, list[Axes]]:
    """plt.subplots with an axes for each name, in rows of at most ``columns``, each row ``height`` inches."""
    sns.set_theme(context="notebook", style="ticks", font_scale=0.85, rc=RC)
    names = list(names)
    rows, columns = -(-len(names) // columns), min(columns, len(names))
    keywords |= {"figsize": (WIDTH, rows * height + 0.5), "layout": "constrained"}
    figure, grid = plt.subplots(rows, columns, squeeze=False, **keywords)
    for ax, name in zip(grid.flat, names, strict=False):
        ax.set_title(name)
    for spare in grid.flat[len(names) :]:
        spare.remove()
    even = len(title) // (len(title) // 84 + 1) + 9  # characters a line, for lines of about equal length
    figure.suptitle(textwrap.fill(title, min(even, 84)), x=0.01, ha="left")
    return figure, list(grid.flat[: len(names)])


def legend(figure: Figure, xlabel: str = "") -> None:
    """One legend of all panels below them, its title their common x label (a supxlabel would collide)."""
    named: dict[str, Any] = {}
    for ax in figure.axes:
        named |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        if ax.get_legend():
            ax.get_legend().remove()
    fitting = 120 // (max(map(len, named), default=0) + 4)
    place = {"loc": "outside lower center", "ncols": min(max(fitting, 1), len(named) or 1, 5)}
    figure.legend(named.values(), named, **place, title=xlabel, markerscale=1.4)


def curves(
    frame: pd.DataFrame, labels: Mapping[str, str], title: str, xlabel: str, **keywords: Any
) -> tuple[Figure, list[Axes]]:
    """seaborn's lineplot of several columns of ``frame``, a panel for each."""
    figure, axes = panels(labels.values(), title, sharex=True)
    for ax, column in zip(axes, labels, strict=True):
        sns.lineplot(frame, y=column, errorbar=None, linewidth=1.2, ax=ax, **keywords)
        ax.set(xlabel="", ylabel="")
        ax.margins(y=0.2)
    legend(figure, xlabel)
    return figure, axes


def scatter(ax: Axes, groups: Mapping[str, np.ndarray], alpha: float = 0.8) -> None:
    """Scatter the (n, 2) points of all groups in turns, an eighth at a time, so that none hides another."""
    for part in range(8):
        for group, points in groups.items():
            label = f"{group} (n {len(points):,})" if part == 0 else None
            ax.scatter(*points[part::8].T, **look(group), alpha=alpha, label=label)


def histogram(ax: Axes, groups: Mapping[str, np.ndarray], colours: Sequence[str], bins: Any) -> pd.DataFrame:
    """Densities on common ``bins`` (edges); median and n stand in the legend, which is the caller's.

    Data: group, x (bin centre), density, median, n.
    """
    frames = []
    for (group, values), colour in zip(groups.items(), colours, strict=True):
        median, n = np.median(values), len(values)
        density, _ = np.histogram(values, bins, density=True)
        look = {"fill": True, "facecolor": (colour, 0.25), "edgecolor": colour, "linewidth": 1}
        ax.stairs(density, bins, **look, label=f"{group}: median {median:.2f}, n {n:,}")
        frame = pd.DataFrame({"group": group, "x": (bins[1:] + bins[:-1]) / 2, "density": density})
        frames.append(frame.assign(median=median, n=n))
    ax.set(ylabel="density", yticks=[])
    return pd.concat(frames, ignore_index=True)

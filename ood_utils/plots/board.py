"""The method gallery's figures: what a score does on the sphere, and who can be told apart (notebook 05)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap

from ..gallery import toy
from ..metrics import threshold
from . import style
from .style import Drawn

ACCEPTED = LinearSegmentedColormap.from_list("accepted", ["#F3C9B0", "#FFFFFF", "#A9CDE6"])


def landscapes(scores: Mapping[str, Callable[[np.ndarray], np.ndarray]], world: toy.Toy, title: str) -> Drawn:
    """A panel for each score, a function of unit rows (m, 3): where it accepts an image (blue) or not.

    The line is the threshold that accepts 95 % of the ID images, what lies beyond it is white to vermilion.
    Dots are images, open triangles texts, blue ID and vermilion OoD or negative. Data: name, x, z, score,
    accepted.
    """
    rows, seen = toy.grid()
    columns = 3 if len(scores) in (3, 5, 6) else 4
    figure, axes = style.panels(scores, title, columns, height=11.5 / columns, subplot_kw={"aspect": "equal"})
    frames = []
    for ax, (name, score) in zip(axes, scores.items(), strict=True):
        own, outside = score(world.inside), score(world.outside)
        line = threshold(own)
        values = score(rows)
        width = max(np.quantile(np.abs(own - line), 0.5), 1e-9)
        picture = np.full(seen.shape, np.nan)
        picture[seen] = np.round(6 * np.tanh((values - line) / width)) / 6  # few colours: small files
        ax.imshow(picture, origin="lower", extent=(-1, 1, -1, 1), cmap=ACCEPTED, vmin=-1, vmax=1)
        picture[seen] = values - line
        ax.contour(picture, levels=[0], extent=(-1, 1, -1, 1), colors="black", linewidths=1)
        texts = {"ID text": world.known.class_text, "negative text": world.known.negative_text}
        groups = {"ID image": world.inside, "OoD image": world.outside, **texts}
        style.scatter(ax, {group: points[:, [0, 2]] for group, points in groups.items()}, alpha=0.7)
        ax.set_title(f"{name}\naccepts {np.mean(outside >= line):.0%} of OoD", fontsize=9)
        ax.set_axis_off()
        found = {"name": name, "x": rows[:, 0], "z": rows[:, 2], "score": values}
        frames.append(pd.DataFrame(found).assign(accepted=values >= line))
    style.legend(figure)
    return figure, pd.concat(frames, ignore_index=True)


def cliques(frame: pd.DataFrame, runs: Sequence[tuple[int, int]], title: str, xlabel: str) -> Drawn:
    """A dot and its interval per row, the best on top; a bar beside rows that cannot be told apart.

    ``frame`` and ``runs`` as ``gallery.table.cliques`` gives them. Data: the frame with ``cliques``, the
    numbers of the bars that a row belongs to.
    """
    figure, (ax,) = style.panels([""], title, height=0.5 + 0.26 * len(frame))
    places = np.arange(len(frame))
    reach = np.abs(frame[["low", "high"]].to_numpy() - frame[["value"]].to_numpy()).T
    ax.errorbar(frame.value, places, xerr=reach, fmt="o", color=style.INK, markersize=4, linewidth=1)
    span = frame.high.max() - frame.low.min()
    for k, (first, last) in enumerate(runs):
        x = frame.low.min() - span * (0.03 + 0.02 * k)
        ax.plot([x, x], [first - 0.2, last + 0.2], color=style.INK, linewidth=2.5, solid_capstyle="butt")
    ax.set_yticks(places, [f"{row.model} · {row.score}" for row in frame.itertuples()])
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    own = [",".join(str(k) for k, (a, b) in enumerate(runs) if a <= place <= b) for place in places]
    return figure, frame.assign(cliques=own)


def gap_and_detection(frame: pd.DataFrame, title: str) -> Drawn:
    """A dot per model: its centroid gap against its AUROC, with the interval; models without a gap left out.

    ``frame``: columns model, centroid_gap, auroc all, auroc_low all, auroc_high all. Data: those columns.
    """
    columns = ["model", "centroid_gap", "auroc all", "auroc_low all", "auroc_high all"]
    drawn = frame[columns].dropna().reset_index(drop=True)
    figure, (ax,) = style.panels([""], title, height=4.6)
    reach = np.abs(drawn[["auroc_low all", "auroc_high all"]].to_numpy() - drawn[["auroc all"]].to_numpy()).T
    colours = [style.METHOD_COLOURS.get(name, style.INK) for name in drawn.model]
    ax.errorbar(drawn.centroid_gap, drawn["auroc all"], reach, fmt="none", ecolor="0.8", linewidth=0.8)
    ax.scatter(drawn.centroid_gap, drawn["auroc all"], color=colours, s=26, zorder=3)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.75}
    for gap, value, name in _spaced(drawn):
        place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(name, (gap, value), **place, fontsize=7, bbox=white, zorder=2)
    ax.set(xlabel="centroid gap on id_test (smaller = closer)", ylabel="AUROC with NegLabel, mean over sets")
    ax.margins(x=0.14)
    return figure, drawn


def _spaced(drawn: pd.DataFrame) -> list[tuple[float, float, str]]:
    """Where the names of dots go: beside them, pushed up where two would lie on each other."""
    height = (drawn["auroc_high all"].max() - drawn["auroc_low all"].min()) / 32
    width = (drawn.centroid_gap.max() - drawn.centroid_gap.min()) / 5
    placed: list[tuple[float, float, str]] = []
    for row in drawn.sort_values("auroc all").itertuples(index=False):
        y = row[2]
        for x_other, y_other, _ in placed:
            if abs(row[1] - x_other) < width and y - y_other < height:
                y = y_other + height
        placed.append((row[1], y, row[0]))
    return placed


def streams(frame: pd.DataFrame, title: str) -> Drawn:
    """A panel per model, a line per score: AUROC on each test stream, with the interval of its images.

    ``frame``: columns model, score, stream, auroc, auroc_low, auroc_high, the streams in order of appearance;
    the static score is drawn in black. Data: the same.
    """
    models, kinds = frame.model.unique(), list(frame.stream.unique())
    figure, axes = style.panels(models, title, columns=2, height=4.0, sharey=True)
    others = [name for name in frame.score.unique() if name != "NegLabel"]
    colours = dict(zip(others, cycle(style.SPREAD), strict=False)) | {"NegLabel": "black"}
    dashed = others[len(style.SPREAD) :]  # more scores than colours
    for ax, (_, panel) in zip(axes, frame.groupby("model", sort=False), strict=True):
        for k, (name, rows) in enumerate(panel.groupby("score", sort=False)):
            rows = rows.set_index("stream").reindex(kinds)
            x = np.arange(len(kinds)) + 0.06 * (k - len(colours) / 2)
            reach = [rows.auroc - rows.auroc_low, rows.auroc_high - rows.auroc]
            look = {"color": colours[name], "markersize": 4, "linewidth": 1, "label": name}
            ax.errorbar(x, rows.auroc, reach, fmt="s--" if name in dashed else "o-", **look)
        ax.set_xticks(range(len(kinds)), [kind.replace(", ", "\n") for kind in kinds], fontsize=8)
    axes[0].set_ylabel("AUROC, mean over OoD sets")
    style.legend(figure)
    return figure, frame[["model", "score", "stream", "auroc", "auroc_low", "auroc_high"]].reset_index(
        drop=True
    )

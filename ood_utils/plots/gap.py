"""Figures of the modality gap (notebooks 01 and 02)."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns

from ..arrays import unit_rows
from ..geometry import gap_direction
from ..sphere import principal_axes
from . import style
from .style import Drawn

FAMILIES = {"image-image": "#56B4E9", "text-text": "#E69F00", "matched": "#009E73", "mismatched": style.GREY}


def cosine_families(models: Mapping[str, Mapping[str, np.ndarray]], title: str) -> Drawn:
    """Density of the cosines of four pair families, one panel per model on shared axes; ticks mark medians.

    ``models``: model -> ``geometry.pair_cosines``. Data: model, family, cosine (bin), density, median, n.
    """
    figure, axes = style.panels(models, title, columns=1, height=2.3, sharex=True, sharey=True)
    values = np.concatenate([cosines for families in models.values() for cosines in families.values()])
    edges, frames = np.linspace(values.min() - 0.02, values.max() + 0.02, 121), {}
    for ax, (model, families) in zip(axes, models.items(), strict=True):
        families = dict(sorted(families.items(), key=lambda family: np.median(family[1])))
        colours = [FAMILIES[family] for family in families]
        frames[model] = style.histogram(ax, families, colours, edges)
        for cosines, colour in zip(families.values(), colours, strict=True):
            ax.axvline(np.median(cosines), ymax=0.14, color=colour, linewidth=2.5)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes[-1].set_xlabel("cosine (thick ticks: medians)")
    frame = pd.concat(frames, names=["model", None]).reset_index("model")
    return figure, frame.rename(columns={"group": "family", "x": "cosine"})


def gap_axis(models: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str) -> Drawn:
    """x = exact cosine to the gap direction, y = first principal component of the rest; 150 pairs are joined.

    ``models``: model -> (images, matched texts), (n, d) each. The clouds' horizontal distance is the centroid
    gap. Data: model, kind, pair (row), x, y.
    """
    figure, axes = style.panels(models, title, height=style.PANEL + 0.3, sharex=True, sharey=True)
    frames = {}
    for ax, (model, (images, texts)) in zip(axes, models.items(), strict=True):
        both = np.stack(unit_rows(images=images, texts=texts))
        direction = gap_direction(*both)
        x = both @ direction
        rest = both - x[..., None] * direction
        rest -= rest.mean((0, 1))
        y = rest @ principal_axes(np.concatenate(rest), 1)[0]
        some = np.unique(np.linspace(0, len(images) - 1, 150).astype(int))
        ax.plot(x[:, some], y[:, some], color="0.6", linewidth=0.4, alpha=0.6, zorder=0)
        points = dict(zip(("image", "text"), np.stack([x, y], axis=-1)[:, some], strict=True))
        style.scatter(ax, points)
        frames |= {(model, kind): pd.DataFrame(xy, some, ["x", "y"]) for kind, xy in points.items()}
        ax.set_title(f"{model}\ngap {x[0].mean() - x[1].mean():.2f}, n {len(images):,}")
    axes[0].set_ylabel("first principal component of the rest")
    style.legend(figure, "cosine to the gap direction (a line joins an image and its text)")
    return figure, pd.concat(frames, names=["model", "kind", "pair"]).reset_index()


def class_gaps(frame: pd.DataFrame, title: str, names: Sequence[str]) -> Drawn:
    """Is the gap one direction? x = cosine of a class' gap with the shared one, y = the class gap's length.

    ``frame`` from ``geometry.per_class_gap``, ``names`` of the K classes: the three furthest from the shared
    direction are drawn as numbers. Data: ``frame`` with a column "name".
    """
    frame = frame.assign(name=[names[k] for k in frame["class"]])
    figure, (ax,) = style.panels([""], title, height=4.2)
    middle, furthest = frame["cosine"].median(), frame.nsmallest(3, "cosine")
    ordinary = frame.drop(furthest.index)
    ax.axvline(middle, color="0.6", linewidth=1, linestyle=":", label=f"median {middle:.2f}")
    ax.scatter(ordinary["cosine"], ordinary["gap"], **style.look("image"), alpha=0.7, label="one class")
    for k, row in enumerate(furthest.itertuples(), 1):
        name = textwrap.shorten(row.name, 32, placeholder="…")
        ax.scatter(row.cosine, row.gap, marker=f"${k}$", s=50, color="black", lw=0.3, label=name)
    ax.set_ylabel("length of the class' gap")
    style.legend(figure, f"cosine of the class' gap with the mean gap (1 = shared; {len(frame):,} classes)")
    return figure, frame


def alignment_uniformity(frame: pd.DataFrame, title: str) -> Drawn:
    """Wang and Isola's two scalars. Data: ``frame``, ``geometry.summary`` and "method" in a row per seed."""
    figure, (ax,) = style.panels([""], title, height=4.2)
    colours = style.method_colours(frame["method"])
    sns.scatterplot(frame, x="align_id", y="uni_all", hue="method", palette=colours, s=55, alpha=0.85, ax=ax)
    ax.margins(0.18)
    ax.set(xlabel="", ylabel="uniformity, −log mean exp(−2 d²)\n(higher = more spread)")
    style.legend(figure, "alignment: mean squared distance of an image to its text (lower = closer)")
    return figure, frame


def gap_sweep(frame: pd.DataFrame, title: str) -> Drawn:
    """Figure 3 of Liang et al. 2022: what moving both modalities along the gap costs. Data: ``frame``.

    ``frame`` from ``geometry.gap_shift``: x = the (signed) gap left, a panel each for loss, accuracy and what
    ``score`` added. A ring marks the model as trained.
    """
    named = {"loss": "contrastive loss (nats)", "accuracy": "zero-shot accuracy", "auroc": "AUROC"}
    labels = {c: named.get(c, c) for c in frame.columns.drop(["fraction", "gap", "centroid_gap"])}
    xlabel = "gap left (distance; 0 = closed, below 0 = passed); ring: the model as trained"
    line = {"x": "gap", "color": style.INK, "marker": "o", "markersize": 4, "mew": 0}
    figure, axes = style.curves(frame, labels, title, xlabel, **line)
    trained = frame.loc[frame["fraction"].abs().idxmin()]
    for ax, column in zip(axes, labels, strict=True):
        ax.axvline(0, color="0.8", linewidth=1, zorder=0)
        ax.scatter(trained["gap"], trained[column], s=100, facecolors="none", edgecolors="black", zorder=3)
    return figure, frame

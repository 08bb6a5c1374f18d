"""Every figure, in one style.

Each function returns ``(figure, data)``: a matplotlib figure and the DataFrame drawn in it, for
``Run.save_figure(name, figure, data)``. Titles are the caller's: a sentence that states the finding,
built from numbers. In every figure blue is in-distribution (ID) and vermilion out-of-distribution
(OoD), a filled circle is an image and an open triangle a text. Nothing is shown or closed here.

A "group" name decides its own look: a name with "OoD" or "negative" in it is vermilion, one with
"text" or "negative" in it is drawn as triangles.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .arrays import unit_rows
from .geometry import gap_direction
from .sphere import Globe, principal_axes

ID, OOD = "#0072B2", "#D55E00"
FAMILY_COLOURS = {
    "image-image": "#56B4E9",
    "text-text": "#E69F00",
    "matched": "#009E73",
    "mismatched": "#7F7F7F",
}
METHOD_COLOURS = {"zero-shot": "#7F7F7F", "FLYP": "#E69F00", "CMA": "#009E73", "m2-mix": "#CC79A7"}
SPARE_COLOURS = ("#56B4E9", "#000000", "#0072B2", "#882255")
WIDTH = 9.0  # inches: a notebook's text column
PANEL = 3.2  # inches: height of one row of panels

Drawn = tuple[Figure, pd.DataFrame]


def style() -> None:
    """One look for all figures: seaborn ticks, notebook context, no top and right spines. Called by every figure."""
    sns.set_theme(context="notebook", style="ticks", font_scale=0.85)
    plt.rcParams.update(
        {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110, "savefig.dpi": 150}
    )


def look(group: str) -> dict[str, object]:
    """scatter() keywords of a group, by its name (see the module's docstring)."""
    name = group.lower()
    colour = OOD if "ood" in name or "negative" in name else ID
    if "text" in name or "negative" in name:
        return {"marker": "^", "facecolors": "none", "edgecolors": colour, "linewidths": 0.9, "s": 22}
    return {"marker": "o", "facecolors": colour, "edgecolors": "none", "s": 10}


def colour_of(method: str, position: int = 0) -> str:
    """A method's colour: fixed for the four methods of the paper, by position for others."""
    return METHOD_COLOURS.get(method, SPARE_COLOURS[position % len(SPARE_COLOURS)])


def _wrapped(title: str) -> str:
    """The title in as few lines as fit the figure, of about equal length."""
    lines = -(-len(title) // 84)
    return textwrap.fill(title, 84 if lines == 1 else min(84, len(title) // lines + 9))


def _panels(
    count: int, title: str, columns: int = 3, height: float = PANEL, **keywords: object
) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` axes in rows of at most ``columns`` and a wrapped title."""
    style()
    columns = max(min(columns, count), 1)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, rows * height + 0.5), squeeze=False, layout="constrained", **keywords
    )
    figure.get_layout_engine().set(hspace=0.06)
    for spare in axes.flat[count:]:
        spare.remove()
    figure.suptitle(_wrapped(title), x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, list(axes.flat[:count])


def _legend(figure: Figure, handles: Sequence, labels: Sequence[str], xlabel: str = "") -> None:
    """One frameless legend below all panels, under their common x label (a supxlabel would collide with it)."""
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False,
        title=xlabel or None, title_fontsize=10,
    )  # fmt: skip


def _scatter(ax: Axes, groups: Mapping[str, np.ndarray], alpha: float, **keywords: object) -> None:
    """Scatter (n, 2) or (n, 3) points of all groups; those of one marker in mixed order, so that none hides another."""
    for marker in ("o", "^"):
        looks = {group: look(group) for group in groups if look(group)["marker"] == marker}
        if not looks:
            continue
        points = np.concatenate([groups[group] for group in looks])
        order = np.random.default_rng(0).permutation(len(points))
        paint = "facecolors" if marker == "o" else "edgecolors"
        colours = np.repeat([kind[paint] for kind in looks.values()], [len(groups[group]) for group in looks])
        kind = next(iter(looks.values())) | {paint: colours[order]}
        ax.scatter(*points[order].T, **kind, alpha=alpha, **keywords)


def _handles(ax: Axes, groups: Sequence[str]) -> list:
    """Legend handles of groups."""
    return [ax.scatter([], [], **look(group)) for group in groups]


def _place_labels(
    ax: Axes,
    x: Sequence[float],
    y: Sequence[float],
    labels: Sequence[str],
    every: np.ndarray,
    colours: Sequence[str],
) -> None:
    """Write each label beside its point, at the side furthest from ``every`` (n, 2) point drawn and other labels."""
    ax.figure.canvas.draw()
    points, every = (ax.transData.transform(p) for p in (np.column_stack([x, y]), every))
    box, placed = ax.get_window_extent(), []
    scale = ax.figure.dpi / 72
    for point, label, colour in zip(points, labels, colours, strict=True):
        width, best = 5.6 * scale * len(label), None
        for dx, dy, align in (
            (9, 0, 0.0),
            (-9, 0, 1.0),
            (0, 11, 0.5),
            (0, -11, 0.5),
            (7, 9, 0.0),
            (7, -9, 0.0),
        ):
            centre = point + scale * np.array([dx, dy]) + [(0.5 - align) * width, 0]
            others = np.array([*every, *placed]).reshape(-1, 2)
            reach = np.abs(others - centre) / [width / 2 + 4 * scale, 7 * scale]
            inside = box.x0 < centre[0] - width / 2 and centre[0] + width / 2 < box.x1
            clear = min(reach.max(1).min(), 2.0) - (0 if inside else 3)
            if best is None or clear > best[0]:
                best = (clear, dx, dy, align, centre)
        _, dx, dy, align, centre = best
        placed += [centre + [part * width, 0] for part in (-0.45, -0.25, 0, 0.25, 0.45)]
        side = {0.0: "left", 0.5: "center", 1.0: "right"}[align]
        ax.annotate(label, ax.transData.inverted().transform(point), (dx, dy), textcoords="offset points",
                    ha=side, va="center", fontsize=9, color=colour)  # fmt: skip


def gallery(rows: Mapping[str, Sequence[np.ndarray]], title: str) -> Drawn:
    """One row of example images per set, the set's name beside it. Data: set, images shown.

    ``rows`` maps set name to (H, W, 3) arrays in [0, 1].
    """
    style()
    columns, side = (
        max(len(images) for images in rows.values()),
        max(max(i.shape[:2]) for v in rows.values() for i in v),
    )
    step = side + max(2, side // 12)  # one picture of all: a hundred small axes take seconds to draw
    sheet = np.ones((len(rows) * step, columns * step, 3))
    for y, images in enumerate(rows.values()):
        for x, image in enumerate(images):
            sheet[y * step : y * step + image.shape[0], x * step : x * step + image.shape[1]] = np.clip(
                image, 0, 1
            )
    figure, ax = plt.subplots(figsize=(WIDTH, WIDTH * len(rows) / columns * 0.9 + 0.5), layout="constrained")
    ax.imshow(sheet, interpolation="nearest")
    ax.set_yticks(np.arange(len(rows)) * step + side / 2, list(rows))
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure.suptitle(_wrapped(title), x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, pd.DataFrame(
        {"set": list(rows), "images shown": [len(images) for images in rows.values()]}
    )


def cosine_families(models: Mapping[str, Mapping[str, np.ndarray]], title: str, bins: int = 120) -> Drawn:
    """Density of the cosines of four pair families, one panel per model on shared axes.

    ``models`` maps model to the result of ``geometry.pair_cosines``. Families are labelled in order of
    their medians, which thick ticks mark. Data: model, family, cosine (bin centre), density, median, n.
    """
    figure, axes = _panels(len(models), title, columns=1, height=2.3, sharex=True, sharey=True)
    values = np.concatenate([v for families in models.values() for v in families.values()])
    edges = np.linspace(values.min() - 0.02, values.max() + 0.02, bins + 1)
    rows = []
    for ax, (model, families) in zip(axes, models.items(), strict=True):
        peaks = []
        for family, cosines in families.items():
            density, _ = np.histogram(cosines, edges, density=True)
            centres, colour = (edges[1:] + edges[:-1]) / 2, FAMILY_COLOURS.get(family, "#000000")
            ax.fill_between(centres, density, step="mid", color=colour, alpha=0.25, linewidth=0)
            ax.step(centres, density, where="mid", color=colour, linewidth=1)
            median = float(np.median(cosines))
            ax.plot([median] * 2, [0, 0.14], color=colour, linewidth=2.5, transform=ax.get_xaxis_transform())
            peaks.append((median, family, colour, len(cosines)))
            rows.append(pd.DataFrame({"model": model, "family": family, "cosine": centres, "density": density,
                                      "median": median, "n": len(cosines)}))  # fmt: skip
        for level, (median, family, colour, n) in enumerate(sorted(peaks)):
            ax.text(1.01, 0.88 - 0.2 * level, f"{family}  {median:.2f}  (n {n:,})", transform=ax.transAxes,
                    color=colour, fontweight="bold", fontsize=9)  # fmt: skip
        ax.set(ylabel="density", yticks=[])
        ax.set_title(model, loc="left", fontsize=10)
    axes[-1].set_xlabel("cosine (thick ticks and numbers: medians)")
    return figure, pd.concat(rows, ignore_index=True)


def _paired_scatter(
    panels: Mapping[str, np.ndarray],
    title: str,
    xlabel: str,
    ylabel: str,
    sample: int,
    notes: Mapping[str, str],
) -> Drawn:
    """Small multiples of matched pairs: ``panels`` maps model to (2, n, 2), images then texts, joined by thin lines."""
    figure, axes = _panels(len(panels), title, height=PANEL + 0.3, sharex=True, sharey=True)
    rows = []
    for ax, (model, points) in zip(axes, panels.items(), strict=True):
        some = np.linspace(0, points.shape[1] - 1, min(sample, points.shape[1])).astype(int)
        shown = points[:, some]
        ax.plot(shown[:, :, 0], shown[:, :, 1], color="0.6", linewidth=0.4, alpha=0.6, zorder=1)
        ax.set_title(f"{model}\n{notes[model]}", loc="left", fontsize=10)
        handles = []
        for kind, (x, y) in zip(("image", "text"), shown.transpose(0, 2, 1), strict=True):
            handles.append(ax.scatter(x, y, **look(kind), alpha=0.8, zorder=2))
            rows.append(pd.DataFrame({"model": model, "kind": kind, "pair": some, "x": x, "y": y}))
    axes[0].set_ylabel(ylabel)
    _legend(figure, handles, ["image", "its text (a line joins a pair)"], xlabel)
    return figure, pd.concat(rows, ignore_index=True)


def gap_axis(models: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, sample: int = 150) -> Drawn:
    """x = exact cosine to the gap direction, y = first principal component of the rest; lines join matched pairs.

    ``models`` maps model to (images, matched texts), (n, d) each. The horizontal distance of the two
    clouds is the centroid gap. Data: model, kind, pair (row), x, y.
    """
    panels, notes = {}, {}
    for model, (images, texts) in models.items():
        images, texts = unit_rows(images=images, texts=texts)
        direction = gap_direction(images, texts)
        both = np.stack([images, texts])
        x = both @ direction
        rest = both - x[..., None] * direction
        panels[model] = np.stack([x, (rest - rest.mean((0, 1))) @ _first_axis(rest)], axis=-1)
        notes[model] = f"gap {x[0].mean() - x[1].mean():.2f}, n {len(images):,}"
    return _paired_scatter(
        panels, title, "cosine to the gap direction", "first principal component of the rest", sample, notes
    )


def _first_axis(rest: np.ndarray) -> np.ndarray:
    """(d,) first principal component, centred, of all rows of a (2, n, d) array."""
    rows = rest.reshape(-1, rest.shape[-1])
    return principal_axes(rows - rows.mean(0), 1)[0]


def svd_plane(models: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, sample: int = 150) -> Drawn:
    """Figure 1 of Liang et al. 2022: images and matched texts on their first two uncentred singular directions.

    ``models`` as in ``gap_axis``. The share of the squared norm that the plane keeps stands in each panel's
    title: distances in it are not those of the space. Data: model, kind, pair, x, y.
    """
    panels, notes = {}, {}
    for model, (images, texts) in models.items():
        both = np.stack(unit_rows(images=images, texts=texts))
        panels[model] = both @ principal_axes(both.reshape(-1, both.shape[-1]), 2).T
        kept = np.square(panels[model]).sum(-1).mean()
        notes[model] = f"plane keeps {kept:.0%}, n {len(images):,}"
    return _paired_scatter(
        panels, title, "first singular direction", "second singular direction", sample, notes
    )


def _sphere_data(globes: Mapping[str, Globe]) -> pd.DataFrame:
    """picture, group, x, y, z, latitude and longitude (degrees) of every drawn point."""
    return pd.concat(
        [
            pd.DataFrame({"picture": name, "group": group, **dict(zip("xyz", xyz.T, strict=True))}).assign(
                latitude=np.degrees(globe.latlon(group)[:, 0]),
                longitude=np.degrees(globe.latlon(group)[:, 1]),
            )
            for name, globe in globes.items()
            for group, xyz in globe.xyz.items()
        ],
        ignore_index=True,
    )


def _map(ax: Axes, globe: Globe, threshold: float | None, note: str = "") -> None:
    """One Mollweide map; ``threshold`` (degrees latitude) as a parallel, ``note`` below."""
    _scatter(ax, {group: globe.latlon(group)[:, ::-1] for group in globe.xyz}, alpha=0.75)
    if threshold is not None:
        ax.plot(np.linspace(-np.pi, np.pi, 100), [np.radians(threshold)] * 100, color="black", linewidth=1.4)
    ax.grid(True, linewidth=0.4, alpha=0.6)
    ax.set_latitude_grid(30)
    ax.set_longitude_grid(60)
    ax.set_xticklabels([])
    ax.tick_params(labelsize=8)
    ax.set_xlabel(note, fontsize=8.5)


def globe_map(
    globes: Mapping[str, Globe],
    title: str,
    threshold: float | None = None,
    notes: Mapping[str, str] | None = None,
    caption: str = "",
) -> Drawn:
    """Mollweide maps: the whole globe at once, one map per entry. Data as ``_sphere_data``.

    ``threshold`` is a latitude in degrees: with a class text as pole of ``sphere.gap_latitude``, everything
    south of that parallel is rejected. ``notes`` are written below each map, ``caption`` below all.
    """
    figure, axes = _panels(
        len(globes), title, columns=2, height=PANEL - 0.3, subplot_kw={"projection": "mollweide"}
    )
    for ax, (name, globe) in zip(axes, globes.items(), strict=True):
        _map(ax, globe, threshold, (notes or {}).get(name, ""))
        counts = ", ".join(f"{len(xyz):,} {group}" for group, xyz in globe.xyz.items())
        ax.set_title(f"{name}: {counts}" if len(globes) == 1 else name, loc="left", fontsize=10)
    groups = list(dict.fromkeys(group for globe in globes.values() for group in globe.xyz))
    _legend(figure, _handles(axes[0], groups), groups, caption)
    return figure, _sphere_data(globes)


def picture_note(error: Mapping[str, float]) -> str:
    """The dict of ``sphere.picture_error`` as the two lines printed in a picture."""
    return (
        f"gap {error['gap_true']:.2f} drawn as {error['gap_drawn']:.2f}; "
        f"pairs' cosine {error['pair_true']:.2f} as {error['pair_drawn']:.2f}\n"
        f"rank correlation {error['rank']:.2f}; true neighbours kept {error['overlap']:.0%}"
    )


def neighbourhoods(
    globes: Mapping[str, Globe], errors: Mapping[str, Mapping[str, float]], title: str
) -> Drawn:
    """Maps of several projections with what each gets wrong printed in it. Data: points of all pictures.

    ``errors`` maps the same names to ``sphere.picture_error``. Captioned "neighbourhoods only".
    """
    caption = "Neighbourhoods only: sizes of clusters and distances between them mean nothing here."
    return globe_map(
        globes, title, notes={name: picture_note(e) for name, e in errors.items()}, caption=caption
    )


def globe_views(
    globe: Globe,
    title: str,
    threshold: float | None = None,
    views: Sequence[tuple[float, float]] = ((15, 0), (15, 120), (15, 240)),
) -> Drawn:
    """The globe in 3-D from several (elevation, azimuth) angles in degrees; points on the far side fade.

    ``threshold`` as in ``globe_map``. Data as ``_sphere_data``.
    """
    figure, axes = _panels(
        len(views), title, height=WIDTH / len(views) - 0.2, subplot_kw={"projection": "3d"}
    )
    turn = np.linspace(0, 2 * np.pi, 100)
    for ax, (elevation, azimuth) in zip(axes, views, strict=True):
        up, round_ = np.radians([elevation, azimuth])
        eye = np.array([np.cos(up) * np.cos(round_), np.cos(up) * np.sin(round_), np.sin(up)])
        parallels = [(np.sin(a), "0.8", 0.5) for a in np.radians([-60, -30, 0, 30, 60])]
        if threshold is not None:
            parallels.append((np.sin(np.radians(threshold)), "black", 1.6))
        for height, colour, width in parallels:
            r = np.sqrt(1 - height**2)
            _line(
                ax,
                np.stack([r * np.cos(turn), r * np.sin(turn), np.full(100, height)], 1),
                eye,
                colour,
                width,
            )
        for meridian in np.radians(np.arange(0, 180, 30)):
            ring = np.stack(
                [np.cos(turn) * np.cos(meridian), np.cos(turn) * np.sin(meridian), np.sin(turn)], 1
            )
            _line(ax, ring, eye, "0.8", 0.5)
        for near, alpha in ((False, 0.1), (True, 0.8)):
            half = {group: xyz[(xyz @ eye > 0) == near] for group, xyz in globe.xyz.items()}
            _scatter(ax, half, alpha, depthshade=False)
        ax.set_proj_type("ortho")
        ax.view_init(elevation, azimuth)
        ax.set_box_aspect((1, 1, 1), zoom=1.6)
        ax.set_axis_off()
        ax.set_title(f"seen from {azimuth:.0f}°", fontsize=9, y=0.98)
    labels = [f"{group} ({len(xyz):,})" for group, xyz in globe.xyz.items()]
    _legend(figure, _handles(axes[0], list(globe.xyz)), labels)
    return figure, _sphere_data({globe.method: globe})


def _line(ax: Axes, ring: np.ndarray, eye: np.ndarray, colour: str, width: float) -> None:
    """A circle on the globe: its near part drawn, its far part faint."""
    near = (ring @ eye > 0)[:, None]
    ax.plot(*np.where(near, ring, np.nan).T, color=colour, linewidth=width)
    ax.plot(*np.where(near, np.nan, ring).T, color=colour, linewidth=width, alpha=0.25)


def gap_sweep(frame: pd.DataFrame, title: str, labels: Mapping[str, str] | None = None) -> Drawn:
    """Figure 3 of Liang et al. 2022: what moving both modalities along the gap costs. Data: ``frame``.

    ``frame`` from ``geometry.gap_shift``: x = the (signed) gap left, one panel per column of ``labels``
    (default: loss, accuracy and every column that ``score`` added). A ring marks the model as trained.
    """
    named = {"loss": "contrastive loss (nats)", "accuracy": "zero-shot accuracy", "auroc": "AUROC"}
    fixed = {"fraction", "gap", "centroid_gap"}
    labels = labels or {column: named.get(column, column) for column in frame.columns if column not in fixed}
    figure, axes = _panels(len(labels), title, sharex=True)
    trained = frame.iloc[frame["fraction"].abs().argmin()]
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        ax.axvline(0, color="0.8", linewidth=1)
        ax.plot(frame["gap"], frame[column], color="0.25", marker=".", markersize=5, linewidth=1.2)
        ax.plot(
            trained["gap"],
            trained[column],
            "o",
            markersize=10,
            markerfacecolor="none",
            markeredgecolor="black",
        )
        ax.margins(y=0.2)
        ax.set_title(label, loc="left", fontsize=10)
    figure.supxlabel(
        "gap left (distance; 0 = closed, below 0 = passed); ring: the model as trained", fontsize=10
    )
    return figure, frame


def alignment_uniformity(
    frame: pd.DataFrame, title: str, x: str = "align_id", y: str = "uni_all", xlabel: str | None = None,
    ylabel: str | None = None,
) -> Drawn:  # fmt: skip
    """Wang and Isola's two scalars for all models, labelled directly. Data: ``frame``.

    ``frame`` has a column "method" and those of ``geometry.summary``; several rows of a method (seeds) are
    drawn as points, the label stands at their mean.
    """
    figure, (ax,) = _panels(1, title, height=4.2)
    for position, (method, rows) in enumerate(frame.groupby("method", sort=False)):
        ax.scatter(rows[x], rows[y], color=colour_of(method, position), s=45, alpha=0.85)
    ax.margins(0.18)
    ax.set_xlabel(xlabel or "alignment: mean squared distance of an image to its text (lower = closer)")
    ax.set_ylabel(ylabel or "uniformity, −log mean exp(−2 d²)\n(higher = more spread)")
    means = frame.groupby("method", sort=False)[[x, y]].mean()
    colours = [colour_of(method, position) for position, method in enumerate(means.index)]
    _place_labels(
        ax, means[x], means[y], [str(m) for m in means.index], frame[[x, y]].to_numpy(float), colours
    )
    return figure, frame


def scores(
    id_scores: np.ndarray, ood_scores: np.ndarray, title: str, xlabel: str = "score (higher = more ID)"
) -> Drawn:
    """Histograms of ID and OoD scores with the threshold that accepts 95 % of ID, and the ROC beside them.

    The point FPR95 (ID positive: the share of OoD accepted at that threshold) is drawn with its definition.
    Data: curve ("ID density", "OoD density", "ROC"), x, y.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    both = np.concatenate([np.asarray(s, dtype=np.float64) for s in (id_scores, ood_scores)])
    truth = np.repeat([1, 0], [len(id_scores), len(ood_scores)])
    threshold = float(np.quantile(id_scores, 0.05, method="lower"))
    fpr95, tpr95 = float((ood_scores >= threshold).mean()), float((id_scores >= threshold).mean())
    figure, (left, right) = _panels(2, title, columns=2, height=3.6)
    edges, rows = np.histogram_bin_edges(both, 50), []
    for name, values, colour in (("ID", id_scores, ID), ("OoD", ood_scores, OOD)):
        density, _ = np.histogram(values, edges, density=True)
        left.stairs(density, edges, fill=True, color=colour, alpha=0.35)
        left.stairs(density, edges, color=colour, linewidth=1.3, label=f"{name} (n {len(values):,})")
        rows.append(
            pd.DataFrame({"curve": f"{name} density", "x": (edges[1:] + edges[:-1]) / 2, "y": density})
        )
    left.axvline(threshold, color="black", linewidth=1.3)
    left.margins(y=0.22)
    left.legend(frameon=False, loc="upper left", fontsize=9)
    left.annotate("accepts 95 % of ID →", (threshold, 0.97), xycoords=("data", "axes fraction"), fontsize=9,
                  xytext=(4, 0), textcoords="offset points")  # fmt: skip
    left.set(xlabel=xlabel, ylabel="density", yticks=[])
    fpr, tpr, _ = roc_curve(truth, both)
    right.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    right.plot(fpr, tpr, color="0.2", linewidth=1.6)
    right.plot([fpr95, fpr95, 0], [0, tpr95, tpr95], color=OOD, linewidth=1, linestyle=":")
    right.plot(fpr95, tpr95, "o", color=OOD, clip_on=False)
    text = f"AUROC {roc_auc_score(truth, both):.3f}\nFPR95 {100 * fpr95:.1f} %: OoD accepted\n"
    text += "where 95 % of ID is accepted"
    right.text(0.98, 0.06, text, ha="right", fontsize=9.5, transform=right.transAxes)
    right.set(xlabel="share of OoD accepted", ylabel="share of ID accepted", xlim=(0, 1), ylim=(0, 1.02))
    rows.append(pd.DataFrame({"curve": "ROC", "x": fpr, "y": tpr}))
    return figure, pd.concat(rows, ignore_index=True)


def mistakes(
    images: Sequence[np.ndarray], frame: pd.DataFrame, title: str, columns: int = 2, width: int = 46
) -> Drawn:
    """A table with pictures: what the model saw and which texts it found nearest. Data: ``frame``.

    ``images``: (H, W, 3) arrays in [0, 1]. ``frame`` has one row per image; each of its columns becomes a
    line "column: value" beside the picture (floats with three digits; wrapped at ``width`` characters, two
    lines at most), so name them in words.
    """
    style()
    rows = -(-len(images) // columns)
    figure = plt.figure(figsize=(WIDTH, rows * 1.25 + 0.7), layout="constrained")
    figure.suptitle(_wrapped(title), x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes = figure.subplots(rows, 2 * columns, width_ratios=[1, 2.7] * columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for k, (image, (_, row)) in enumerate(zip(images, frame.iterrows(), strict=True)):
        picture, words = axes[k % rows, 2 * (k // rows) : 2 * (k // rows) + 2]
        picture.imshow(np.clip(image, 0, 1), interpolation="nearest")
        texts = {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in row.items()}
        lines = [f"{name}: {value}" for name, value in texts.items()]
        wrapped = [
            textwrap.fill(line, width, max_lines=2, placeholder=" …", subsequent_indent="   ")
            for line in lines
        ]
        words.text(0, 0.5, "\n".join(wrapped), va="center", fontsize=8.5, transform=words.transAxes)
    return figure, frame


def training_curves(
    logs: Mapping[str, pd.DataFrame], parts: Mapping[str, str], title: str, smooth: int = 20
) -> Drawn:
    """The parts of the loss over the steps, one panel per part, one line per training.

    ``logs`` maps name to a per-step log; ``parts`` maps its columns to panel titles with units. Lines are
    running means over ``smooth`` steps. Data: run, step and the parts as drawn. The text before the
    first ", " of a name (e.g. "CMA, seed 0") decides its colour, so that seeds of a method share one.
    """
    figure, axes = _panels(len(parts), title, sharex=True)
    rows, handles = [], {}
    methods = list(dict.fromkeys(name.split(", ")[0] for name in logs))
    for name, log in logs.items():
        method = name.split(", ")[0]
        steps = log["step"] if "step" in log else pd.Series(range(len(log)))
        drawn = log[list(parts)].rolling(smooth, min_periods=1).mean()
        for ax, part in zip(axes, parts, strict=True):
            (handles[method],) = ax.plot(
                steps, drawn[part], color=colour_of(method, methods.index(method)), linewidth=1.2, alpha=0.85
            )
        rows.append(drawn.assign(run=name, step=steps.to_numpy()))
    for ax, label in zip(axes, parts.values(), strict=True):
        ax.set_title(label, loc="left", fontsize=10)
    _legend(figure, list(handles.values()), list(handles), f"step (running mean over {smooth})")
    return figure, pd.concat(rows, ignore_index=True)[["run", "step", *parts]]


def lam_sweep(
    frame: pd.DataFrame, title: str, labels: Mapping[str, str] | None = None, chosen: float | None = None
) -> Drawn:
    """What the weight of the alignment does; x is lam on an axis that holds 0. Data: ``frame``.

    ``frame`` has columns lam and those of ``labels`` (default: centroid_gap, accuracy, auroc); repeated lam
    (seeds) are drawn as points about their mean. ``chosen`` marks the lam taken.
    """
    labels = labels or {
        "centroid_gap": "centroid gap",
        "accuracy": "ID accuracy",
        "auroc": "validation AUROC",
    }
    figure, axes = _panels(len(labels), title, sharex=True)
    lams = np.unique(frame["lam"])
    smallest = lams[lams > 0].min() if (lams > 0).any() else 1.0
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        mean = frame.groupby("lam")[column].mean()
        ax.plot(mean.index, mean, color="0.25", linewidth=1.2)
        ax.scatter(frame["lam"], frame[column], color="0.25", s=18, zorder=3)
        if chosen is not None:
            ax.axvline(chosen, color=METHOD_COLOURS["CMA"], linewidth=1.2, linestyle="--")
            ax.annotate(f"chosen: {chosen:g}", (chosen, 0.98), (3, 0), xycoords=("data", "axes fraction"), va="top",
                        textcoords="offset points", fontsize=9, color=METHOD_COLOURS["CMA"])  # fmt: skip
        ax.set_xscale("symlog", linthresh=smallest, linscale=0.6)
        ax.set_xticks(lams, [f"{lam:g}" for lam in lams], rotation=45)
        ax.minorticks_off()
        ax.margins(y=0.2)
        ax.set_title(label, loc="left", fontsize=10)
    figure.supxlabel("lam, the weight of the alignment (0 = FLYP)", fontsize=10)
    return figure, frame


def results(frame: pd.DataFrame, title: str, metric: str = "fpr95_id", xlabel: str | None = None) -> Drawn:
    """The headline: one panel per score, one line per OoD set, one dot with its interval per method.

    ``frame`` has columns method, score, set, ``metric`` and, for intervals, ``metric``_low and _high, as
    fractions; rows of one method, score and set (seeds) are averaged. Sets keep their order, first on top.
    """
    known = {
        "fpr95_id": "FPR95: share of OoD accepted where 95 % of ID is accepted (lower = better)",
        "fpr95_ood": "FPR95, OoD positive: share of ID rejected where 95 % of OoD is rejected (lower = better)",
        "auroc": "AUROC (higher = better)",
    }
    ends = [column for column in (f"{metric}_low", f"{metric}_high") if column in frame]
    mean = frame.groupby(["method", "score", "set"], sort=False)[[metric, *ends]].mean().reset_index()
    methods, score_names, sets = (list(dict.fromkeys(mean[column])) for column in ("method", "score", "set"))
    height = 0.75 + len(sets) * (0.14 * len(methods) + 0.16)
    figure, axes = _panels(len(score_names), title, columns=5, height=height, sharex=True, sharey=True)
    for ax, score in zip(axes, score_names, strict=True):
        handles = []
        for position, method in enumerate(methods):
            rows = mean[(mean["score"] == score) & (mean["method"] == method)].set_index("set").reindex(sets)
            y = np.arange(len(sets)) + (position - (len(methods) - 1) / 2) * 0.72 / max(len(methods), 1)
            error = None
            if len(ends) == 2:
                error = np.clip([rows[metric] - rows[ends[0]], rows[ends[1]] - rows[metric]], 0, None)
            dots = ax.errorbar(
                rows[metric],
                y,
                xerr=error,
                fmt="o",
                markersize=4.5,
                linewidth=1.4,
                color=colour_of(method, position),
            )
            handles.append(dots)
        for k in range(0, len(sets), 2):
            ax.axhspan(k - 0.5, k + 0.5, color="0.95", zorder=0)
        ax.set_title(score, loc="left", fontsize=10)
        ax.set_yticks(range(len(sets)), sets)
        ax.set_ylim(len(sets) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.xaxis.set_major_locator(plt.MaxNLocator(3))
    _legend(figure, handles, methods, xlabel or known.get(metric, metric))
    return figure, mean


def class_gaps(frame: pd.DataFrame, title: str, names: Sequence[str] | None = None, label: int = 3) -> Drawn:
    """Is the gap one direction shared by all classes? x = cosine of a class' gap with the shared one, y = its length.

    ``frame`` from ``geometry.per_class_gap``; ``names`` (K,) labels the ``label`` classes furthest from the
    shared direction. Data: ``frame``, with a column "name" where names are given.
    """
    frame = frame if names is None else frame.assign(name=[names[c] for c in frame["class"]])
    figure, (ax,) = _panels(1, title, height=3.8)
    ax.scatter(frame["cosine"], frame["gap"], **look("image"), alpha=0.7)
    ax.axvline(frame["cosine"].median(), color="0.6", linewidth=1, linestyle=":")
    ax.annotate(f"median {frame['cosine'].median():.2f}", (frame["cosine"].median(), 0.01), (4, 2), fontsize=9,
                xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
    ax.set_xlabel(
        f"cosine of the class' gap with the mean gap (1 = one shared direction; {len(frame):,} classes)"
    )
    ax.set_ylabel("length of the class' gap")
    ax.margins(0.12)
    if names is not None:
        odd = frame.nsmallest(label, "cosine")
        labels = [textwrap.shorten(name, 32, placeholder="…") for name in odd["name"]]
        every = frame[["cosine", "gap"]].to_numpy()
        _place_labels(ax, odd["cosine"], odd["gap"], labels, every, ["0.25"] * len(odd))
    return figure, frame


def globe_html(
    groups: Mapping[str, np.ndarray] | Globe,
    title: str = "",
    threshold: float | None = None,
    hover: Mapping[str, Sequence[str]] | None = None,
    include_js: bool | str = True,
) -> str:
    """An interactive globe as one stand-alone HTML page that works offline.

    ``groups`` maps name to (n, 3) unit rows or to (n, 2) latitude and longitude in radians; ``threshold`` is
    a latitude in degrees; ``hover`` gives the words shown at each point. ``include_js=True`` embeds
    plotly.js (4.7 MB; plotly ships no smaller one), "cdn" links it (needs the internet to open). Texts are
    open diamonds here: plotly has no triangle in 3-D.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    _add_ball(figure, threshold)
    for name, rows in (groups.xyz if isinstance(groups, Globe) else groups).items():
        rows = np.asarray(rows, dtype=np.float64)
        if rows.shape[1] == 2:
            latitude, longitude = rows.T
            flat = np.cos(latitude)
            rows = np.stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], axis=1)
        is_text = look(name)["marker"] == "^"
        colour = look(name)["edgecolors" if is_text else "facecolors"]
        marker = {
            "color": colour,
            "size": 4 if is_text else 2.5,
            "symbol": "diamond-open" if is_text else "circle",
        }
        words = list((hover or {}).get(name, [])) or None
        figure.add_scatter3d(
            **dict(zip("xyz", rows.T.round(4).tolist(), strict=True)), mode="markers", marker=marker, text=words,
            name=f"{name} ({len(rows):,})", hoverinfo="text+name" if words else "name",
        )  # fmt: skip
    scene = {f"{axis}axis": {"visible": False, "range": [-1.05, 1.05]} for axis in "xyz"}
    scene |= {"aspectmode": "cube", "camera": {"eye": {"x": 1.35, "y": 0, "z": 0.45}}}
    figure.update_layout(
        title=title, scene=scene, legend={"itemsizing": "constant"}, margin={"l": 0, "r": 0, "t": 50, "b": 0},
        template="plotly_white",
    )  # fmt: skip
    return figure.to_html(include_plotlyjs=include_js, full_html=True, default_height="96vh")


def _add_ball(figure: object, threshold: float | None) -> None:
    """The globe itself on a plotly figure: a pale ball that hides the far side, parallels, and the threshold."""
    turn = np.linspace(0, 2 * np.pi, 121)
    lines = [(degrees, "#b0b0b0", 1) for degrees in (-60, -30, 0, 30, 60)]
    for degrees, colour, width in lines + ([] if threshold is None else [(threshold, "black", 5)]):
        r = np.cos(np.radians(degrees))
        figure.add_scatter3d(
            x=(r * np.cos(turn)).round(4), y=(r * np.sin(turn)).round(4), z=[float(np.sin(np.radians(degrees)))] * 121,
            mode="lines", line={"color": colour, "width": width}, name="threshold", showlegend=width > 1,
            hoverinfo="skip",
        )  # fmt: skip
    down, round_ = np.linspace(0, np.pi, 31), np.linspace(0, 2 * np.pi, 61)
    x, y = (0.97 * np.outer(np.sin(down), f(round_)) for f in (np.cos, np.sin))
    figure.add_surface(
        x=x, y=y, z=np.outer(0.97 * np.cos(down), np.ones(61)), opacity=0.6,
        colorscale=[[0, "#f3f3f3"], [1, "#f3f3f3"]], showscale=False, hoverinfo="skip",
        lighting={"ambient": 1, "diffuse": 0, "specular": 0, "fresnel": 0},
    )  # fmt: skip

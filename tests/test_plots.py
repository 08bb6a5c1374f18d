"""Every figure is drawn once on small data: it returns what it drew, and its numbers are right."""

from __future__ import annotations

import io
import itertools
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from matplotlib.colors import to_hex  # noqa: E402

from ood_utils import geometry, metrics, plots, sphere  # noqa: E402
from ood_utils.plots import style  # noqa: E402


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    centres, push, labels = rng.normal(size=(8, 12)), 2 * np.eye(12)[0], np.arange(64) % 8
    images = centres[labels] + 0.5 * rng.normal(size=(64, 12)) + push
    rows = images, centres - push, rng.normal(size=(30, 12)) + push
    images, texts, ood = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows)
    return images, texts, labels, ood


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    matplotlib.pyplot.close("all")


def drawn(result, rows: int | None = None) -> tuple:
    """Render the figure; check the pair (figure, data)."""
    figure, data = result
    assert isinstance(data, pd.DataFrame) and len(data) and (rows is None or len(data) == rows)
    with io.BytesIO() as png:
        figure.savefig(png, dpi=40)
        assert png.tell() > 2000
    return figure, data


def words(figure) -> str:
    return " ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def globes(world) -> dict:
    points = {"images": world[0], "texts": world[1], "OoD images": world[3]}
    return {"gap-latitude": sphere.gap_latitude(points), "PCA": sphere.pca_sphere(points)}


def test_one_look_for_each_group():
    for group, colour in (("images", style.ID), ("OoD images", style.OOD)):
        assert (style.look(group)["marker"], style.look(group)["facecolors"]) == ("o", colour)
    for group, colour in (("ID texts", style.ID), ("negative texts", style.OOD)):
        found = style.look(group)
        assert (found["marker"], found["facecolors"], found["edgecolors"]) == ("^", "none", colour)
    named = [*style.METHOD_COLOURS, "mine", "yours"]
    assert len(set(style.method_colours(named).values())) == len(named)


def test_cosine_families(world):
    images, texts, labels, _ = world
    families = geometry.pair_cosines(images, labels, texts, pairs=200)
    figure, data = drawn(plots.cosine_families({"before": families, "after": families}, "A finding"))
    assert "A finding" in words(figure) and len(figure.axes) == 2
    one = data[(data["model"] == "before") & (data["family"] == "matched")]
    width = one["cosine"].diff().iloc[-1]
    assert (one["density"] * width).sum() == pytest.approx(1)
    assert one["median"].iloc[0] == pytest.approx(np.median(families["matched"]))
    heights = [patch.get_data().values.max() for patch in figure.axes[0].patches]
    assert max(heights) == data.loc[data["model"] == "before", "density"].max()


def test_gap_axis_keeps_the_gap(world):
    images, texts, labels, _ = world
    figure, data = drawn(plots.gap_axis({"model": (images, texts[labels])}, "t"), 128)
    means = data.groupby("kind")["x"].mean()
    gap = geometry.centroid_gap(images, texts[labels])
    assert means["image"] - means["text"] == pytest.approx(gap)
    assert f"gap {gap:.2f}, n 64" in words(figure)


def test_globe_map_and_views(world):
    pictures = globes(world)
    figure, data = drawn(plots.globe_map(pictures, "t", threshold=20), 2 * 102)
    assert "OoD images (n 30)" in words(figure)
    assert data["latitude"].between(-90, 90).all() and data["longitude"].between(-180, 180).all()
    assert np.square(data[["x", "y", "z"]]).sum(axis=1).to_numpy() == pytest.approx(1)
    figure, _ = drawn(plots.globe_views(pictures["PCA"], "t"), 102)
    shown = [c.get_offsets() for c in figure.axes[0].collections]  # each point on one side, seen from afar
    points = np.ma.concatenate(shown)[:, :2].filled(np.nan)
    lengths = np.linalg.norm(points[np.isfinite(points).all(axis=1)], axis=1)
    assert len(lengths) == 102 and lengths.max() < 1 + 1e-9


def test_neighbourhoods_print_their_error(world):
    images, texts, labels, _ = world
    points = {"images": images, "texts": texts}
    globe = sphere.pca_sphere(points)
    error = sphere.picture_error(globe, points, labels)
    figure, _ = drawn(plots.neighbourhoods({"PCA": globe}, {"PCA": error}, "t"))
    assert f"gap {error['gap_true']:.2f} drawn as {error['gap_drawn']:.2f}" in words(figure)
    assert "Neighbourhoods only" in words(figure)


def test_gap_sweep(world):
    images, texts, labels, _ = world
    moves = [-0.5, 0, 0.5, 1]
    frame = geometry.gap_shift(images, texts[labels], labels, texts, moves, score=lambda i, t: 0.5)
    figure, data = drawn(plots.gap_sweep(frame, "t"), 4)
    assert "AUROC" in words(figure) and len(figure.axes) == 3 and data is frame


def test_alignment_uniformity_labels_each_method_once(world):
    images, texts, labels, _ = world
    row = geometry.summary(images, labels, texts)
    frame = pd.DataFrame([{"method": m, **row} for m in ("zero-shot", "FLYP", "FLYP", "mine")])
    figure, _ = drawn(plots.alignment_uniformity(frame, "t"), 4)
    assert words(figure).count("FLYP") == 1 and "mine" in words(figure)


def test_scores_agree_with_metrics():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 400).round(1), rng.normal(-1, 1.3, 300).round(1)  # with ties
    figure, data = drawn(plots.scores(inside, outside, "t"))
    found = metrics.ood_metrics(inside, outside)
    assert f"AUROC {found.auroc:.3f}" in words(figure)
    assert f"FPR95 {100 * found.fpr95_id:.1f} %" in words(figure)
    assert set(data["curve"]) == {"ID density", "OoD density", "ROC"}
    threshold = figure.axes[0].lines[0].get_xdata()[0]
    assert np.mean(outside >= threshold) == found.fpr95_id and np.mean(inside >= threshold) >= 0.95


def test_mistakes():
    frame = pd.DataFrame({"drawn": ["arrow " * 30] * 3, "nearest text": "a letter", "cosine": 0.12345})
    figure, _ = drawn(plots.mistakes([np.zeros((8, 8, 3))] * 3, frame, "t"), 3)
    assert "cosine: 0.123" in words(figure) and "…" in words(figure)
    drawn(plots.mistakes([np.zeros((8, 8, 3))], frame[:1], "t"), 1)


def test_training_curves_and_lam_sweep():
    log = pd.DataFrame({"step": range(30), "clip": np.linspace(2, 1, 30), "positive": 0.5})
    logs = {"CMA, seed 0": log, "CMA, seed 1": log, "FLYP, seed 0": log}
    parts = {"clip": "CLIP loss (nats)", "positive": "cosine"}
    figure, data = drawn(plots.training_curves(logs, parts, "t"), 90)
    assert list(data) == ["run", "step", "clip", "positive"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["CMA", "FLYP"]
    frame = pd.DataFrame(
        {"lam": [0, 1e-3, 0.1], "centroid_gap": [0.8, 0.4, 0], "accuracy": 0.5, "auroc": 0.9}
    )
    figure, _ = drawn(plots.lam_sweep(frame, "t", chosen=1e-3), 3)
    assert "dashed: 0.001, the one chosen" in words(figure)
    drawn(plots.lam_sweep(frame.iloc[:1], "t", chosen=0), 1)


def test_results():
    rows = itertools.product(("zero-shot", "CMA", "CMA"), ("MCM", "NegLabel"), ("arrows", "braille"), (0.3,))
    frame = pd.DataFrame(list(rows), columns=["method", "score", "set", "fpr95_id"])
    figure, data = drawn(plots.results(frame.assign(fpr95_id_low=0.2, fpr95_id_high=0.5), "t"), 8)
    assert "share of OoD accepted" in words(figure)
    assert to_hex(figure.axes[0].lines[0].get_color()) == style.METHOD_COLOURS["zero-shot"].lower()
    ends = figure.axes[0].collections[0].get_segments()[0][:, 0]
    assert ends == pytest.approx([0.2, 0.5])


def test_class_gaps(world):
    images, texts, labels, _ = world
    frame = geometry.per_class_gap(images, labels, texts)
    figure, data = drawn(plots.class_gaps(frame, "t", [f"class {k}" for k in range(8)]), 8)
    assert list(data["name"]) == [f"class {k}" for k in frame["class"]]
    assert f"class {frame['cosine'].idxmin()}" in words(figure)


def test_globe_html_stands_alone(world):
    globe = globes(world)["gap-latitude"]
    tag = "</script><img src=x onerror=alert(1)>"  # a class's name
    page = plots.globe_html(globe, "A globe", hover={"texts": ["alpha", tag] * 4})
    assert len(page) > 3_000_000 and not re.search(r"<script[^>]+src=", page)
    assert "A globe" in page and "alpha" in page and "onerror=alert" in page and "<img src=x" not in page


def test_a_gallery_names_its_rows() -> None:
    images = np.random.default_rng(0).random((3, 8, 8, 3))
    figure, data = plots.gallery({"id_test": list(images), "arrows": list(images[:2]), "none": []}, "Sets")
    assert data["images shown"].tolist() == [3, 2, 0]
    assert [ax.get_ylabel() for ax in figure.axes] == ["id_test", "arrows", "none"]

"""Pictures on the globe: unit points, exact latitudes, and DOSNES as the paper asks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ood_utils import geometry, sphere
from ood_utils.errors import UserError


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    centres, push = rng.normal(size=(6, 12)), 2 * np.eye(12)[0]
    labels = np.arange(60) % 6
    images = centres[labels] + 0.5 * rng.normal(size=(60, 12)) + push
    texts = centres[labels] + 0.2 * rng.normal(size=(60, 12)) - push
    rows = {"images": images, "texts": texts}
    return {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in rows.items()}


def on_sphere(globe, points):
    assert {name: len(xyz) for name, xyz in globe.xyz.items()} == {name: len(x) for name, x in points.items()}
    return all(np.allclose(np.linalg.norm(xyz, axis=1), 1) for xyz in globe.xyz.values())


def test_gap_latitude_is_exact(points):
    globe = sphere.gap_latitude(points)
    direction = geometry.gap_direction(points["images"], points["texts"])
    assert on_sphere(globe, points)
    for name, rows in points.items():
        assert np.sin(globe.latlon(name)[:, 0]) == pytest.approx(rows @ direction)
    height = globe.xyz["images"][:, 2].mean() - globe.xyz["texts"][:, 2].mean()
    assert height == pytest.approx(geometry.centroid_gap(points["images"], points["texts"]))
    again = sphere.gap_latitude(dict(points))
    assert np.array_equal(globe.xyz["images"], again.xyz["images"])


def test_gap_latitude_with_a_text_as_pole(points):
    globe = sphere.gap_latitude({"images": points["images"]}, pole=points["texts"][0])
    cosines = points["images"] @ points["texts"][0]
    assert globe.latlon("images")[:, 0] == pytest.approx(np.arcsin(cosines))
    with pytest.raises(UserError, match="or a pole"):
        sphere.gap_latitude({"OoD images": points["images"]})


def test_pca_sphere_keeps_three_dimensions_whole(points):
    globe = sphere.pca_sphere(points)
    assert on_sphere(globe, points) and 0.3 < globe.facts["explained"] < 1
    flat = {"images": globe.xyz["images"]}
    assert sphere.pca_sphere(flat).facts["explained"] == pytest.approx(1)
    turned = sphere.pca_sphere(flat).xyz["images"]
    assert turned @ turned.T == pytest.approx(flat["images"] @ flat["images"].T)


def test_principal_axes_have_a_fixed_sign():
    x = np.random.default_rng(0).normal(size=(30, 5))
    axes = sphere.principal_axes(x, 3)
    assert sphere.principal_axes(-x, 3) == pytest.approx(axes)
    assert np.abs(axes) == pytest.approx(np.abs(np.linalg.svd(x)[2][:3]))


def test_sinkhorn_is_doubly_stochastic(points):
    x = np.concatenate(list(points.values()))
    kernel = np.exp((x @ x.T - 1) / 0.3**2)
    balanced = sphere.sinkhorn(kernel)
    assert balanced.sum(0) == pytest.approx(np.ones(len(x)), abs=1e-3)
    assert balanced.sum(1) == pytest.approx(np.ones(len(x)), abs=1e-3)
    p = sphere.dosnes_affinities(x, 1.0)
    assert p.sum() == pytest.approx(1) and np.array_equal(p, p.T)


def test_dosnes_cost_falls_on_unit_rows(points):
    globe = sphere.dosnes(points)
    assert on_sphere(globe, points)
    assert (np.diff(globe.history) <= 0).all() and globe.history[-1] < 0.5 * globe.history[0]
    assert globe.facts["cost"] == globe.history[-1]


def test_dosnes_gradient_is_that_of_the_cost():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 5))
    p = sphere.dosnes_affinities(x / np.linalg.norm(x, axis=1, keepdims=True), 1.0)
    y, step = rng.normal(size=(8, 3)), np.zeros((8, 3))
    step[2, 1] = 1e-6
    slope = (sphere._dosnes_cost(y + step, p)[0] - sphere._dosnes_cost(y - step, p)[0]) / 2e-6
    assert sphere._dosnes_cost(y, p)[1][2, 1] == pytest.approx(slope, rel=1e-5)


def test_dosnes_same_seed_same_result_and_no_side_effects(points):
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    one, two = (sphere.dosnes(points, iterations=30, seed=3) for _ in range(2))
    assert np.array_equal(one.xyz["images"], two.xyz["images"])
    assert not np.array_equal(one.xyz["images"], sphere.dosnes(points, iterations=30, seed=4).xyz["images"])
    assert np.array_equal(np.random.get_state()[1], before)


def test_dosnes_follows_a_permutation(points, monkeypatch):
    x = points["images"]
    rng = np.random.default_rng(1)
    start, order = rng.normal(size=(len(x), 3)), rng.permutation(len(x))
    starts = iter([start, start[order]])
    fixed = SimpleNamespace(normal=lambda **_: next(starts))
    monkeypatch.setattr(np.random, "default_rng", lambda seed: fixed)
    plain, mixed = (sphere.dosnes({"a": rows}, iterations=40).xyz["a"] for rows in (x, x[order]))
    assert mixed == pytest.approx(plain[order], abs=1e-6)


def test_umap_lies_on_the_sphere(points):
    pytest.importorskip("umap")
    globe = sphere.umap_sphere(points, neighbours=5)
    assert on_sphere(globe, points)
    with pytest.raises(UserError, match="neighbours is 500"):
        sphere.umap_sphere(points, neighbours=500)


def test_picture_error_of_a_perfect_and_a_random_picture(points):
    three = {
        name: rows[:, :3] / np.linalg.norm(rows[:, :3], axis=1, keepdims=True)
        for name, rows in points.items()
    }
    perfect = sphere.picture_error(sphere.Globe("itself", three), three)
    assert perfect["gap_true"] == pytest.approx(perfect["gap_drawn"])
    assert perfect["pair_true"] == pytest.approx(perfect["pair_drawn"])
    assert [perfect[k] for k in ("rank", "overlap", "trustworthiness")] == pytest.approx([1, 1, 1])
    noise = np.random.default_rng(0).normal(size=(2, 60, 3))
    noise /= np.linalg.norm(noise, axis=2, keepdims=True)
    wrong = sphere.picture_error(sphere.Globe("noise", dict(zip(three, noise, strict=True))), three)
    assert abs(wrong["rank"]) < 0.2 and wrong["overlap"] < 0.4


def test_picture_error_with_labels(points):
    few = {"images": points["images"], "texts": points["texts"][:6]}
    error = sphere.picture_error(sphere.gap_latitude(few), few, labels=np.arange(60) % 6)
    assert error["pair_true"] == pytest.approx(
        (few["images"] * few["texts"][np.arange(60) % 6]).sum(1).mean()
    )
    with pytest.raises(UserError, match="needs labels"):
        sphere.picture_error(sphere.gap_latitude(few), few)

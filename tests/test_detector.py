"""The detector file: what it says does not change by being saved, and a damaged one is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import refusing_disk
from safetensors.numpy import save_file

from ood_utils import models, scores
from ood_utils.detector import Detector
from ood_utils.errors import UserError


def _rows(n: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, 128)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def guard() -> Detector:
    return Detector("GlyphCLIP", "builtin", ["a", "b", "c"], _rows(3, 0), _rows(20, 1), 0.0)


def test_calibration_accepts_the_share_asked_for(guard: Detector) -> None:
    images = _rows(200, 2)
    for recall in (0.5, 0.95, 1.0):
        guard.calibrate(images, recall)
        assert guard.score_embeddings(images)["is_id"].mean() >= recall
    with pytest.raises(UserError, match="recall"):
        guard.calibrate(images, 0)


def test_a_round_trip_changes_nothing(guard: Detector, tmp_path: Path) -> None:
    images = _rows(50, 3)
    guard.calibrate(images)
    guard.save(tmp_path / "d.safetensors")
    again = Detector.load(tmp_path / "d.safetensors")
    for key, value in guard.score_embeddings(images).items():
        assert np.array_equal(value, again.score_embeddings(images)[key]), key
    expected = scores.neglabel(images, guard.class_text, guard.negative_text)
    assert np.array_equal(again.score_embeddings(images)["score"], expected)


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_refusing_disk_is_one_sentence_and_leaves_the_old_detector(
    guard: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "d.safetensors"
    guard.save(path)
    old = path.read_bytes()
    refusing_disk(monkeypatch, step)
    with pytest.raises(UserError, match=r"cannot write .*d\.safetensors: No space left"):
        guard.save(path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_images_and_tensors_are_scored_alike(guard: Detector, tmp_path: Path) -> None:
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    picture.save(tmp_path / "p.png")
    preprocess = models.load()[1]
    found = [
        guard.score(x)["score"][0]
        for x in ([picture], [tmp_path / "p.png"], torch.stack([preprocess(picture)]))
    ]
    assert found[0] == found[1] == pytest.approx(found[2])


@pytest.mark.parametrize("kind", ["missing", "truncated", "foreign"])
def test_a_bad_file_is_refused(guard: Detector, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "d.safetensors"
    if kind == "truncated":
        guard.save(path)
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "foreign":
        save_file({"x": np.zeros(3)}, path)
    with pytest.raises(UserError, match=r"d\.safetensors"):
        Detector.load(path)

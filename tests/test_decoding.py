"""Decoding on the device against PIL and open_clip's own transform, on the kinds of file that ImageNet holds."""

from __future__ import annotations

from pathlib import Path

import mini_imagenet
import numpy as np
import pytest
import torch
from PIL import Image

from ood_utils import data, decoding, embeddings, models
from ood_utils.config import make_profile
from ood_utils.errors import UnreadableImage

MODES = ("RGB", "CMYK", "P", "L")


@pytest.fixture
def files(tmp_path: Path) -> data.ImageFiles:
    """Smooth pictures, one a mode; then a damaged file and a PNG."""
    paths = [tmp_path / f"{mode}.JPEG" for mode in MODES]
    y, x = np.mgrid[0:90, 0:120]
    for k, (path, mode) in enumerate(zip(paths, MODES, strict=True)):
        smooth = np.stack([128 + 100 * np.sin(x / (9 + k)), 128 + 100 * np.cos(y / 11), 128 + 0 * x], axis=-1)
        image = Image.fromarray(smooth.astype(np.uint8)).convert(mode)
        image.save(path, format="PNG" if mode == "P" else "JPEG", **({} if mode == "P" else {"quality": 95}))
    (tmp_path / "bad.JPEG").write_bytes(paths[0].read_bytes()[:60])
    (tmp_path / "empty.JPEG").write_bytes(b"")
    paths += [tmp_path / "bad.JPEG", tmp_path / "empty.JPEG"]
    view = models.transforms("RN50", "openai")[1]
    return data.ImageFiles(paths, np.arange(len(paths)), view)


def test_pictures_are_pil_s_to_a_grey_level(files: data.ImageFiles) -> None:
    undecoded = decoding.Undecoded(files, 0, 5)
    config = models.preprocess_config("RN50", "openai")
    found = decoding.decoder(config)([undecoded[i][0] for i in range(5)], "cpu")
    assert found[4] is None and [undecoded[i][1] for i in range(5)] == [0, 1, 2, 3, 4]
    for i in range(4):
        level = (found[i] - files[i][0]).abs() * torch.tensor(config.std)[:, None, None] * 255
        assert (
            found[i].shape == (3, 224, 224) and float(level.mean()) < 1 and float(level.quantile(0.99)) < 4
        ), MODES[i]
    with pytest.raises(UnreadableImage, match=r"empty\.JPEG"):
        decoding.Undecoded(files, 5, 6)[0]


def test_embedding_by_either_decoder_agrees_and_loses_the_same_files(tmp_path: Path) -> None:
    config = {"data": "imagenet", "id_classes": 6, "data_root": str(tmp_path / "d"), "max_unreadable": 0.5}
    mini_imagenet.build(tmp_path / "d", 6, 4, 2)
    (tmp_path / "d/MOS/SUN/SUN/1.jpg").write_bytes(b"\xff\xd8 cut")
    model, _, tokenizer = models.load()
    spaces = []
    for decoder in ("pil", "device"):
        profile = make_profile(config | {"decoder": decoder, "device": "cpu"}, "test")
        study = data.load(profile)
        spaces.append(
            embeddings.embed(model, tokenizer, study, profile, tmp_path / "cache", ["id_test", "SUN"])
        )
    first, second = spaces
    assert first.unreadable == second.unreadable and [i for i, _ in first.unreadable["SUN"]] == [1]
    for name in ("id_test", "SUN"):
        cosines = (first.images[name] * second.images[name]).sum(1)
        assert len(cosines) and cosines.min() > 0.99
        assert len(list((tmp_path / "cache").glob(f"{name}-*"))) == 2  # the cache keeps the two apart


def test_compile_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function: asked.append(function) or function)
    profile = make_profile(
        {"id_classes": 5, "ood_images": 5, "id_views": 1, "compile": True, "device": "cpu"}, "test"
    )
    model, _, tokenizer = models.load()
    embeddings.embed(model, tokenizer, data.load(profile), profile, tmp_path, ["id_val"])
    assert asked == [model.encode_image]

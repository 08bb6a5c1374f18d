"""Image files: torchvision's pixels against PIL's, PIL where that refuses, files that are no images."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from ood_utils.data import images
from ood_utils.data.images import ImageFiles, files_set, read_image
from ood_utils.data.paths import FORMATS, IMAGE_SUFFIXES
from ood_utils.errors import UnreadableImage, UserError


def photo(width: int = 75, height: int = 51, mode: str = "RGB") -> Image.Image:
    """A smooth picture with an edge and some noise."""
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([128 + 90 * np.sin(x / 9), 128 + 90 * np.cos(y / 7), 200 * (x > y)], axis=-1)
    noisy = smooth + np.random.default_rng(0).normal(0, 8, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def by_pil(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB")).astype(int)


@pytest.fixture
def no_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only torchvision may read."""

    def refuse(*_: object) -> None:
        raise AssertionError("PIL was asked")

    monkeypatch.setattr(images, "pil_to_tensor", refuse)


@pytest.mark.parametrize("size", [(75, 51), (64, 48), (1, 1), (3, 200)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_s_pixels_are_pil_s(
    tmp_path: Path, no_pil: None, size: tuple[int, int], progressive: bool, mode: str, subsampling: int
) -> None:
    path = tmp_path / "a.JPEG"
    photo(*size, mode).save(path, quality=85, progressive=progressive, subsampling=subsampling)
    found = read_image(path)
    assert found.dtype == torch.uint8 and found.shape == (3, size[1], size[0])
    assert abs(found.permute(1, 2, 0).numpy() - by_pil(path)).max() <= 2


@pytest.mark.parametrize(
    ("name", "mode", "kind"),
    [
        ("cmyk.jpg", "CMYK", "JPEG"),
        ("palette.JPEG", "P", "PNG"),  # ImageNet has such a file
        ("plain.png", "RGB", "PNG"),
        ("sixteen.png", "I;16", "PNG"),
        ("clear.png", "RGBA", "PNG"),
        ("a.webp", "RGB", "WEBP"),
        ("a.bmp", "RGB", "BMP"),
        ("a.tif", "L", "TIFF"),
    ],
)
def test_what_torchvision_does_not_read_is_read_by_pil(
    tmp_path: Path, name: str, mode: str, kind: str
) -> None:
    photo(mode="L" if mode == "I;16" else "RGB").convert(mode).save(tmp_path / name, format=kind)
    found = read_image(tmp_path / name)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), by_pil(tmp_path / name))


def encoded(**options: object) -> bytes:
    kept = io.BytesIO()
    photo().save(kept, **options)
    return kept.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"not a picture",
        b"\xff\xd8\xff\xe0 not a picture",
        *(encoded(format="JPEG", quality=90)[:length] for length in (60, 700, -300, -2)),
        encoded(format="JPEG", progressive=True)[:-300],
        encoded(format="PNG")[:-300],
    ],
    ids="missing empty text header-only cut-header cut cut-late no-end cut-progressive cut-png".split(),
)
@pytest.mark.parametrize("name", ["bad.JPEG", "bad.png"])
def test_a_file_that_is_no_whole_image_is_named_and_crosses_processes(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=rf"image .*{name} cannot be read: .") as caught:
        read_image(path)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert copied.path == str(path) and str(copied) == str(caught.value)


def test_only_the_formats_of_the_suffixes_are_opened(tmp_path: Path) -> None:
    assert set(FORMATS) == {Image.registered_extensions()[suffix] for suffix in IMAGE_SUFFIXES}
    photo().save(tmp_path / "a.eps")  # whose reader starts Ghostscript
    for name in ("a.jpg", "a.png"):
        shutil.copy(tmp_path / "a.eps", tmp_path / name)
        with pytest.raises(UnreadableImage, match="cannot identify image file"):
            read_image(tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8 need Linux")
def test_images_whose_names_are_no_utf_8_are_read_and_named(tmp_path: Path) -> None:
    for suffix in (b".jpg", b".png"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9" + suffix))
        photo().save(path)
        assert files_set("x", "far", tmp_path, [path], crop).ids == ["caf\\xe9" + suffix.decode()]
        assert read_image(path).shape == (3, 51, 75)
        path.write_bytes(b"damage")
        with pytest.raises(UnreadableImage) as caught:
            read_image(path)
        assert str(caught.value).isascii() and "caf\\xe9" in caught.value.path


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    for k in range(3):
        photo(40 + k, 30).save(tmp_path / f"{k}.jpg")
    return [tmp_path / f"{k}.jpg" for k in range(3)]


def crop(image: Tensor) -> Tensor:
    """A random square: a transform as training has it."""
    at = int(torch.randint(20, ()))
    return image[:, :10, at : at + 10].float() / 255


def test_random_views_are_a_function_of_the_key(paths: list[Path]) -> None:
    found = ImageFiles(paths, np.arange(3), crop, seed=5)
    keys = [7, 1, 4]  # the second file in epochs 2, 0 and 1
    views = [found[key] for key in keys]
    assert [label for _, label in views] == [1, 1, 1] and len(found) == 3
    assert not all(torch.equal(views[0][0], view) for view, _ in views[1:])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert all(torch.equal(found[key][0], view) for key, (view, _) in zip(keys, views, strict=True))
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's numbers are used up
    other = ImageFiles(paths, np.arange(3), crop, seed=6)
    assert not all(torch.equal(other[key][0], view) for key, (view, _) in zip(keys, views, strict=True))
    with torch.random.fork_rng():  # seed 0 leaves the key as it is
        torch.manual_seed(7)
        assert torch.equal(ImageFiles(paths, np.arange(3), crop, seed=0)[7][0], crop(read_image(paths[1])))


def test_loading_workers_decode_the_same_pixels(paths: list[Path]) -> None:
    found = ImageFiles(paths, np.arange(3), crop, seed=5)
    here, there = (torch.cat([x for x, _ in DataLoader(found, 2, num_workers=n)]) for n in (0, 1))
    assert torch.equal(here, there)


def test_a_set_of_files_knows_what_decides_its_pixels(paths: list[Path], tmp_path: Path) -> None:
    def made(transform: Callable = crop, seed: int | None = None, labels: np.ndarray | None = None) -> str:
        return files_set("cars", "far", tmp_path, paths, transform, labels, seed).fingerprint

    found = files_set("cars", "far", tmp_path, paths, crop)
    assert found.ids == ["0.jpg", "1.jpg", "2.jpg"] and found.labels.tolist() == [-1, -1, -1]
    assert found.labels.dtype == np.int64 and found.fingerprint == made()
    others = [made(transform=torch.nn.Identity()), made(seed=0), made(seed=1), made(labels=np.arange(3))]
    paths[0].write_bytes(paths[0].read_bytes() + b"more")
    assert len({found.fingerprint, *others, made()}) == 6
    with pytest.raises(UserError, match=r"image set 'cars' is empty: .* no image \(\.jpg, "):
        files_set("cars", "far", tmp_path, [], crop)

"""Images to unit rows for a detector: by torch, or by onnxruntime without importing torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from . import files, methods
from .data.paths import rgb
from .errors import UnreadableImage, UserError

if TYPE_CHECKING:
    from torch import nn

Encoded = tuple[np.ndarray, list[tuple[int, str]]]  # unit rows of the readable; (index, path) of the rest


@dataclass
class TorchTower:
    """A model on ``device``; ``preprocessing``: numbers of open_clip's PreprocessCfg, None for embeddings."""

    model: nn.Module
    preprocessing: dict[str, Any] | None
    precision: str
    device: str
    evidence = methods.Evidence

    def encode(self, images: Any, batch: int, workers: int, progress: bool) -> Encoded:
        """Rows (n - unreadable, d) float32 of paths, PIL images, or normalised (n, 3, S, S)."""
        import torch
        from open_clip.transform import PreprocessCfg

        from . import embeddings, models, residual
        from .data.images import read_image

        lost: list[tuple[int, str]] = []
        if hasattr(images, "shape"):
            dataset: Any = [(image, -1) for image in torch.as_tensor(images).cpu()]
        else:
            if self.preprocessing is None:
                residual.no_image(images)
            dataset = _Pictures(images, read_image, models.evaluation(PreprocessCfg(**self.preprocessing)))
        how = {"batch": batch, "workers": workers, "device": self.device, "precision": self.precision}
        return embeddings.encode_images(self.model, dataset, progress=progress, unreadable=lost, **how), lost

    def export(self, path: Path) -> None:
        """Write the image tower, unit length included, as ONNX: "pixels" (n, 3, S, S) -> "rows" (n, d).

        UserError without the packages of the extra `onnx`, and for images that ``pixels`` cannot prepare.
        """
        import torch

        from . import models

        if (numbers := self.preprocessing) is None:
            raise UserError("a detector of given embeddings has no image tower; leave onnx out")
        if not isinstance(size := numbers["size"], int) or numbers["resize_mode"] == "longest":
            how = f"size {size}, resize mode {numbers['resize_mode']}"
            raise UserError(f"ONNX serving prepares square images, not {how}; leave onnx out")
        try:
            import onnxscript  # noqa: F401 - what torch's exporter asks for
        except ImportError:
            raise _no_package("onnxscript") from None
        tower, images = models.UnitImages(self.model.to("cpu")).eval(), torch.zeros(2, 3, size, size)
        how = {"dynamic_shapes": ({0: torch.export.Dim("n")},), "verbose": False}
        try:
            torch.onnx.export(tower, (images,), path, input_names=["pixels"], output_names=["rows"], **how)
        finally:
            self.model.to(self.device)


class OnnxTower:
    """The exported image tower on the CPU. UserError for a GPU, without onnxruntime, a file that is none."""

    evidence = methods.PlainEvidence

    def __init__(self, path: Path, preprocessing: dict[str, Any], device: str) -> None:
        if device not in ("auto", "cpu"):
            raise UserError(f"device is {device!r}, but ONNX is served on the CPU; leave onnx or device out")
        try:
            import onnxruntime
        except ImportError:
            raise _no_package("onnxruntime") from None
        self.prepare = partial(pixels, numbers=preprocessing)
        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as fault:  # onnxruntime's own classes, which it does not export
            reason = str(fault).splitlines()[0][:200]
            raise UserError(f"{path} cannot be run by onnxruntime ({reason}); save it again") from None

    def encode(self, images: Any, batch: int, workers: int, progress: bool) -> Encoded:
        """As ``TorchTower.encode``; ``workers`` are threads."""
        rows, lost = [np.empty((0, self.session.get_outputs()[0].shape[1]), np.float32)], []
        how = (np.asarray, np.asarray) if hasattr(images, "shape") else (rgb, self.prepare)
        source = _Pictures(images, *how)
        with (
            ThreadPoolExecutor(max(1, workers)) as pool,
            files.progress(total=len(images), desc="embedding images", disable=not progress) as bar,
        ):
            for start in range(0, len(images), batch):
                keys = range(start, min(start + batch, len(images)))
                read = list(pool.map(lambda key: _tried(source, key), keys))
                lost += [found for found in read if isinstance(found, tuple)]
                if pixels := [found for found in read if not isinstance(found, tuple)]:
                    rows += self.session.run(None, {"pixels": np.stack(pixels).astype(np.float32)})
                bar.update(len(keys))
        return np.concatenate(rows), lost


Tower = TorchTower | OnnxTower


@dataclass
class _Pictures:
    """Paths, PIL images or rows as a dataset: item -> (transformed image, -1). Raises UnreadableImage."""

    images: Sequence[Any]
    read: Callable[[Any], Any]
    transform: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int) -> tuple[Any, int]:
        image = self.images[key]
        if isinstance(image, str | Path) and not os.path.isfile(image):  # to open a pipe would wait for ever
            raise UnreadableImage(str(image), "it is a broken link, or no file any more")
        return self.transform(self.read(image)), -1


def pixels(image: Image.Image, numbers: dict[str, Any]) -> np.ndarray:
    """An RGB image -> (3, S, S) float32, normalised: open_clip's evaluation transform by Pillow and numpy.

    Within a grey level or two of torchvision's. ``numbers``: size S, resize_mode, interpolation, mean, std.
    """
    size, (width, height) = numbers["size"], image.size
    short = min(width, height)
    squash = numbers["resize_mode"] == "squash"
    wanted = (size, size) if squash else (size * width // short, size * height // short)
    left, top = (round((side - size) / 2) for side in wanted)
    image = image.resize(wanted, Image.Resampling[numbers["interpolation"].upper()])
    grey = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
    mean, std = (np.array(numbers[name], np.float32) for name in ("mean", "std"))
    return ((grey - mean) / std).transpose(2, 0, 1)


def _tried(source: _Pictures, key: int) -> np.ndarray | tuple[int, str]:
    """Pixels of one image, or (key, path) where it cannot be read."""
    try:
        return source[key][0]
    except UnreadableImage as fault:
        return key, fault.path


def _no_package(name: str) -> UserError:
    return UserError(f"package {name} is not installed; run `pip install 'ood-notebooks[onnx]'`")

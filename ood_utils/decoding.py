"""Decoding on the device, an option for large image sets: workers read bytes, torchvision decodes and resizes batches.

On a GPU the decoder is nvJPEG. A picture differs from PIL's by a grey level or so, therefore the embedding cache
keeps the two apart and the default stays PIL, as open_clip's own evaluation has it.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from .errors import UnreadableImage

if TYPE_CHECKING:
    from open_clip.transform import PreprocessCfg

    from .data import ImageFiles


class Undecoded(Dataset):
    """Files ``start`` to ``stop`` of an ImageFiles as bytes; item -> (uint8 (length,), label)."""

    def __init__(self, files: ImageFiles, start: int, stop: int) -> None:
        self.paths, self.labels = files.paths[start:stop], files.labels[start:stop]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            return read_file(self.paths[index]), int(self.labels[index])
        except RuntimeError as fault:  # torchvision's word for a missing or an empty file
            raise UnreadableImage(self.paths[index], str(fault).splitlines()[0]) from None


def decoder(config: PreprocessCfg) -> Callable[[list[Tensor], str], list[Tensor | None]]:
    """(files, device) -> a float32 (3, S, S) normalised image per file on the device, None where it is unreadable.

    ``config``: what open_clip says of the model's images: size, mean, std, interpolation. What the JPEG decoder refuses
    (PNG, CMYK, damage; on a GPU the whole batch with it) is decoded by PIL, one by one.
    """
    size = config.size if isinstance(config.size, int) else max(config.size)
    mode = InterpolationMode(config.interpolation)

    def decode(files: list[Tensor], device: str) -> list[Tensor | None]:
        try:
            pictures: list[Tensor | None] = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
        except RuntimeError:
            pictures = [_by_pil(file) for file in files]
        return [None if picture is None else finish(picture.to(device)) for picture in pictures]

    def finish(picture: Tensor) -> Tensor:
        small = V.center_crop(V.resize(picture, [size], interpolation=mode, antialias=True), [size, size])
        return V.normalize(small.float() / 255, list(config.mean), list(config.std))

    return decode


def _by_pil(file: Tensor) -> Tensor | None:
    from PIL import Image

    try:
        with Image.open(BytesIO(file.numpy().tobytes())) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None

"""Images that stand in more than one set of a study, exactly or nearly, by a perceptual hash."""

from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import pandas as pd

from ..errors import UnreadableImage
from ..files import progress
from .images import ImageFiles, read_image
from .study import ImageSet

DISTANCE = 4  # of 64 bits: a copy that was resized, recompressed or slightly brightened differs by less


def near_duplicates(sets: Iterable[ImageSet], distance: int = DISTANCE) -> pd.DataFrame:
    """Pairs of images of different sets whose pHash differ in at most ``distance`` of 64 bits.

    Columns set, image, other_set, other, distance: the nearest one in an earlier set, if near enough. A flat
    image (a blank page) looks like every other one. Sets without files are passed over, as are unreadable
    images. A train image met again in a test makes the test too easy.
    """
    import imagehash
    from PIL import Image

    sets = [one for one in sets if isinstance(one.dataset, ImageFiles)]
    rows, bits = [], []
    with progress(total=sum(map(len, sets)), desc="hashing images") as bar:
        for one in sets:
            for image, path in zip(one.ids, one.dataset.paths, strict=True):
                with suppress(UnreadableImage):
                    pixels = read_image(path).permute(1, 2, 0).numpy()
                    bits.append(imagehash.phash(Image.fromarray(pixels)).hash.ravel())
                    rows.append((one.name, image))
                bar.update()
    frame = pd.DataFrame(rows, columns=["set", "image"])
    signs = 2 * np.array(bits, dtype=np.float32).reshape(len(rows), 64) - 1
    place = frame["set"].map({one.name: k for k, one in enumerate(sets)}).to_numpy()
    found = []
    for k in range(1, len(sets)):
        mine, earlier = np.flatnonzero(place == k), np.flatnonzero(place < k)
        for block in np.array_split(mine, len(mine) // 1024 + 1):
            apart = (64 - signs[block] @ signs[earlier].T) / 2
            nearest = apart.argmin(1)
            for row, other, bits_apart in zip(block, earlier[nearest], apart.min(1), strict=True):
                if bits_apart <= distance:
                    found.append((*rows[row], *rows[other], int(bits_apart)))
    return pd.DataFrame(found, columns=["set", "image", "other_set", "other", "distance"])

"""A small folder of image files to try the folder lane on: photographs of glyphs, names, a word list."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import atomic_write
from . import glyph_world
from .study import subset

FACES = glyph_world.TEST_FACES + glyph_world.VALIDATION_FACES  # which GlyphCLIP was not trained on


def write(folder: Path, classes: int = 20, views: int = 10, seed: int = 0) -> dict[str, Any]:
    """Write letters (id/<class>/*.png), arrows and handwritten digits (ood/...); what a profile says of them.

    ``views``: images of each drawing; a class has some thirty. One letter strays among the arrows. The same
    files for the same numbers.
    """
    from .glyph_sets import digits

    known, world = glyph_world.concepts(), glyph_world.world()
    kept = subset(len(known.classes), classes, seed)
    rows = []
    for k in kept:
        name, *others = (world.names[c] for c in (*known.classes[k], *known.twins[k]))
        place = folder / "id" / name.replace(" ", "_")
        _photographs(place, world.pick(known.classes[k][:1], FACES).repeat(views), seed)
        rows.append((place.name, name, "|".join(others)))
    arrows = subset(len(known.sets["arrows"]), 80, seed)
    _photographs(
        folder / "ood" / "arrows", world.pick([known.sets["arrows"][i] for i in arrows], FACES[:1]), seed
    )
    shutil.copy(min((folder / "id").glob("*/000.png")), folder / "ood" / "arrows" / "stray.png")
    made = digits(80, seed).dataset
    _save(folder / "ood" / "digits", np.stack([made[i][0].numpy() / 2 + 0.5 for i in range(len(made))]))
    with (folder / "names.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("folder", "name", "synonyms"), *rows])
    words = np.array(world.names)[subset(len(world.names), 1500, seed)]
    atomic_write(folder / "words.txt", "\n".join(words))
    return {
        "data": "folder",
        "data_root": str(folder / "id"),
        "ood_roots": {name: str(folder / "ood" / name) for name in ("arrows", "digits")},
        "ood_groups": {"digits": "unseen"},
        "names_file": str(folder / "names.csv"),
        "corpus": str(folder / "words.txt"),
        "model": "GlyphCLIP",
        "pretrained": "builtin",
    }


def _photographs(folder: Path, drawings: np.ndarray, seed: int) -> None:
    world = glyph_world.world()
    pool = world.alphas[world.pick(range(0, len(world.names), 50), FACES)]
    keys = drawings + np.arange(len(drawings))
    _save(folder, glyph_world.views(world.alphas[drawings], pool, keys, seed).numpy())


def _save(folder: Path, pictures: np.ndarray) -> None:
    """Pictures (n, 3, H, W) in [0, 1] as numbered PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        pixels = (255 * picture.transpose(1, 2, 0)).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")

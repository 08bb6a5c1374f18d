"""The glyph world: a real image-text data set that every machine with matplotlib already has.

Each character of matplotlib's DejaVu and STIX fonts is a human-made picture with an official name, in up to
16 faces. They are rendered, sorted into ID classes and OoD sets, and photographed ("views").
"""

import hashlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import ImageFont
from scipy.sparse.csgraph import connected_components

from ..errors import UserError
from ..files import replacing

VERSION = 2  # of the view recipe below; part of every fingerprint
CANVAS = 40  # pixels: side of a stored drawing
SIDE = 32  # pixels: side of a view, the model's input
EM = 26  # pixels: font size of a drawing; larger glyphs are shrunk until they fit

_SLANTS = {"Sans": "Oblique", "SansMono": "Oblique", "Serif": "Italic"}
TEXT_FACES = tuple(
    f"DejaVu{family}{style}"
    for family, slant in _SLANTS.items()
    for style in ("", "-Bold", f"-{slant}", f"-Bold{slant}")
)
FACES = TEXT_FACES + ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta")
TEST_FACES = ("DejaVuSans-Oblique", "DejaVuSerif-Italic")  # never trained on; every test image
VALIDATION_FACES = ("DejaVuSans-BoldOblique",)  # never trained on; every choice is made here
TRAIN_FACES = tuple(f for f in FACES if f not in TEST_FACES + VALIDATION_FACES)

_LETTER = re.compile(r"(latin|greek|cyrillic) (small|capital) letter ")
# how the names of each OoD set begin; the first that fits counts
_SETS = {
    "accented": r"latin (small|capital) letter .*with ",
    "val_accented": r"(greek|cyrillic) (small|capital) letter .*with ",
    "scripts": r"((armenian (small|capital)|georgian|hebrew|lao) (capital )?letter|georgian capital)",
    "braille": "braille pattern",
    "syllabics": "canadian syllabics",
    "pictographs": r"playing card|domino tile|.*\bface\b|.*chess |.*die face",
    "arrows": r"(.* )?arrow( |$)",
}
_DRAWING = np.dtype([("codepoint", "i4"), ("face", "i4"), ("alpha", "u1", (CANVAS, CANVAS))])
# what is random in a view, in the order in which it is drawn: name -> how many numbers, uniform in [0, 1)
_DRAWS = {
    "clutter_drawing": 1, "angle": 1, "shift": 2, "scale": 1,
    "clutter_corner": 2, "clutter_angle": 1, "clutter_scale": 1, "clutter_there": 1,
    "dark": 1, "light": 1, "light_on_dark": 1, "ink_tint": 3, "paper_tint": 3, "uneven_light": 4,
    "clutter_colour": 3, "blur": 1, "contrast": 1, "exposure": 1, "noise": 1,
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """Every drawing of every named character.

    ``alphas`` (D, CANVAS, CANVAS) uint8 ink; ``character`` and ``face`` (D,) index into ``names`` /
    ``codepoints`` (C,) and ``FACES``. Sorted by codepoint, then face: the order never changes.
    """

    names: tuple[str, ...]
    codepoints: tuple[int, ...]
    alphas: np.ndarray
    character: np.ndarray
    face: np.ndarray

    def pick(self, characters: Sequence[int], faces: Sequence[str]) -> np.ndarray:
        """Indices (sorted) of the drawings of these characters in these faces."""
        of_face = np.isin(self.face, [FACES.index(f) for f in faces])
        return np.flatnonzero(np.isin(self.character, list(characters)) & of_face)


@dataclass(frozen=True)
class Concepts:
    """Who is in-distribution and who is not; every value is a tuple of character indices of the world.

    ``classes``: one tuple per ID class, look-alikes (same drawing, several names) together, the one with the
    smallest codepoint first. ``twins``: per class the other characters of which a drawing, in whatever face,
    is pixel for pixel one of the class's: its synonyms, in no set, neither negative label nor clutter.
    ``sets``: OoD set -> characters; ``removed``: the same for the twins that would have been in it.
    """

    classes: tuple[tuple[int, ...], ...]
    twins: tuple[tuple[int, ...], ...]
    sets: dict[str, tuple[int, ...]]
    removed: dict[str, tuple[int, ...]]


# group of each OoD set; "validation" sets serve choices and are disjoint from every test set
GROUPS = {
    "accented": "near", "scripts": "near",
    "arrows": "far", "braille": "far", "pictographs": "far", "syllabics": "far",
    "digits": "unseen", "photos": "unseen",
    "val_accented": "validation", "val_symbols": "validation", "val_photos": "validation",
}  # fmt: skip


def _drawable(codepoint: int) -> bool:
    """Named, visible, and standing alone: no control, separator, combining or modifier character."""
    character = chr(codepoint)
    kind = unicodedata.category(character)
    return bool(unicodedata.name(character, "")) and kind[0] in "LNPS" and kind not in ("Lm", "Sk")


def _ink(fonts: Sequence[ImageFont.FreeTypeFont], character: str) -> np.ndarray | None:
    """One drawing (CANVAS, CANVAS) uint8: centred sideways, on a common baseline, shrunk to fit; or None."""
    for font in fonts:
        mask, (_, above) = font.getmask2(character, mode="L", anchor="ls")
        width, height = mask.size
        if width <= CANVAS and height <= CANVAS:
            break
    if not width or not height:
        return None
    pixels = np.frombuffer(bytes(mask), np.uint8).reshape(height, width)
    left = (CANVAS - width) // 2
    top = min(max(int(CANVAS * 0.72) + above, 0), CANVAS - height)  # room for accents above, descenders below
    drawn = np.zeros((CANVAS, CANVAS), np.uint8)
    drawn[top : top + height, left : left + width] = pixels
    return drawn if drawn.max() > 64 else None


def _render() -> np.ndarray:
    """Draw everything: a ``_DRAWING`` record per drawing, sorted by codepoint, then face."""
    from fontTools.ttLib import TTFont
    from PIL import ImageFont

    rows: list[tuple[int, int, np.ndarray]] = []
    for face, path in enumerate(_font_paths()):
        fonts = [ImageFont.truetype(path, size) for size in (EM, 20, 14, 9, 5)]
        for codepoint in filter(_drawable, TTFont(path, lazy=True).getBestCmap()):
            if (ink := _ink(fonts, chr(codepoint))) is not None:
                rows.append((codepoint, face, ink))
    return np.array(sorted(rows, key=lambda row: row[:2]), _DRAWING)


def _font_paths() -> list[Path]:
    import matplotlib

    paths = [Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf" for face in FACES]
    for path in paths:
        if not path.exists():
            raise UserError(f"font {path} is missing; reinstall matplotlib, whose fonts are the glyph world")
    return paths


def _cache_file() -> Path:
    """Where the drawings are kept between processes; named by all that decides them."""
    import PIL

    sizes = [path.stat().st_size for path in _font_paths()]
    deciding = [PIL.__version__, unicodedata.unidata_version, CANVAS, EM, FACES, sizes, _DRAWING]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ood_utils"
    return folder / f"glyphs-{hashlib.sha256(repr(deciding).encode()).hexdigest()[:16]}.npy"


def _drawn() -> np.ndarray:
    """All drawings, mapped from the cache (80 MB, shared by processes), else drawn anew and kept there."""
    path = _cache_file()
    with suppress(Exception):  # missing, truncated by a full disk, foreign: drawing again is always right
        kept = np.load(path, mmap_mode="r")
        if kept.dtype == _DRAWING:
            return kept
    drawn = _render()
    with suppress(UserError), replacing(path) as aside:  # a read-only home costs seconds in every process
        np.save(aside, drawn)
    return drawn


@lru_cache(maxsize=1)
def world() -> World:
    """Every drawable named character of the 16 faces: about 6,900 characters, 49,700 drawings.

    Seconds, then cached. Raises UserError if matplotlib's fonts are missing.
    """
    drawn = _drawn()
    codepoints, character = np.unique(drawn["codepoint"], return_inverse=True)
    return World(
        names=tuple(unicodedata.name(chr(c)).lower() for c in codepoints),
        codepoints=tuple(codepoints.tolist()),
        alphas=drawn["alpha"],
        character=character,
        face=drawn["face"],
    )


def _set_of(codepoint: int, name: str) -> str | None:
    """The OoD set a character's name and block put it in, or None."""
    for label, pattern in _SETS.items():
        if re.match(pattern, name):
            return label
    if 0x2200 <= codepoint < 0x2300 or 0x2500 <= codepoint < 0x2600 or 0x2A00 <= codepoint < 0x2B00:
        return "val_symbols"  # mathematical operators, box drawing, blocks, geometric shapes
    return None


def _same_drawings(everything: World, letters: np.ndarray) -> pd.DataFrame:
    """Every pair of equal drawings: columns character, face, and letter, letter_face of ``letters``."""
    pixels = [alpha.tobytes() for alpha in everything.alphas]
    columns = {"character": everything.character, "face": everything.face, "pixels": pixels}
    drawings = pd.DataFrame(columns)
    of_letters = drawings[drawings["character"].isin(letters)]
    of_letters = of_letters.rename(columns={"character": "letter", "face": "letter_face"})
    return drawings.merge(of_letters, on="pixels").drop(columns="pixels")


@lru_cache(maxsize=1)
def concepts() -> Concepts:
    """Sort the world's characters into ID classes and OoD sets (see ``Concepts``), by name and pixels."""
    everything = world()
    text = everything.character[everything.face < len(TEXT_FACES)]
    whole = np.bincount(text, minlength=len(everything.names)) == len(TEXT_FACES)
    is_letter = [bool(_LETTER.match(name)) and " with " not in name for name in everything.names]
    letters = np.flatnonzero(whole & is_letter)
    same = _same_drawings(everything, letters)
    in_text = same[(same["face"] == same["letter_face"]) & (same["face"] < len(TEXT_FACES))]
    agreed = pd.crosstab(in_text["character"], in_text["letter"]).loc[letters].to_numpy()
    # chained: whoever looks like one of a class belongs to it
    count, group = connected_components(agreed >= len(TEXT_FACES) / 2)
    classes = sorted(tuple(letters[group == k].tolist()) for k in range(count))
    others = same[~same["character"].isin(letters)]
    of_class = [sorted(set(others["character"][others["letter"].isin(group)])) for group in classes]
    twins = set(others["character"])
    sets: dict[str, tuple[int, ...]] = defaultdict(tuple)
    removed: dict[str, tuple[int, ...]] = defaultdict(tuple)
    for i in np.setdiff1d(range(len(everything.names)), letters).tolist():
        if label := _set_of(everything.codepoints[i], everything.names[i]):
            (removed if i in twins else sets)[label] += (i,)
    return Concepts(tuple(classes), tuple(map(tuple, of_class)), dict(sets), dict(removed))


def _random(seed: int, keys: Sequence[int]) -> tuple[SimpleNamespace, torch.Tensor]:
    """What is random in views: ``_DRAWS`` by name, each (B, width); standard normal noise (B, 3, SIDE, SIDE).

    A row is a function of (seed, its key) alone, independent of its neighbours.
    """
    widths = list(_DRAWS.values())
    uniform = np.empty((len(keys), sum(widths)), np.float32)
    normal = np.empty((len(keys), 3, SIDE, SIDE), np.float32)
    for row, key in enumerate(keys):
        generator = np.random.Generator(np.random.Philox(key=[seed, int(key)]))
        generator.random(out=uniform[row], dtype=np.float32)
        generator.standard_normal(out=normal[row], dtype=np.float32)
    parts = torch.from_numpy(uniform).split(widths, 1)
    return SimpleNamespace(**dict(zip(_DRAWS, parts, strict=True))), torch.from_numpy(normal)


def _warp(alpha: np.ndarray, angle: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Rotate (B, 1) (radians), scale (B, 1), shift (B, 2) (half sides) drawings (B, CANVAS, CANVAS).

    Returns ink (B, 1, SIDE, SIDE) float32 in [0, 1].
    """
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    x, y = shift.split(1, 1)
    theta = torch.cat([cos, -sin, -(cos * x - sin * y), sin, cos, -(sin * x + cos * y)], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(alpha), 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(torch.from_numpy(alpha[:, None]).float() / 255, grid, align_corners=False)


def views(alphas: np.ndarray, distractors: np.ndarray, keys: Sequence[int], seed: int = 0) -> torch.Tensor:
    """Photograph drawings: colours, uneven light, rotation, a distractor glyph in a corner of 70 %, quality.

    Quality (blur, contrast, exposure, noise) is drawn for each image: like photographs, some are good ones.
    ``alphas`` (B, CANVAS, CANVAS) uint8, one per key; ``distractors`` (P, CANVAS, CANVAS) uint8, the pool to
    draw corner glyphs from. Returns (B, 3, SIDE, SIDE) float32 in [0, 1], a function of (seed, key) only.
    """
    draw, normal = _random(seed, keys)
    angle, scale = (2 * draw.angle - 1) * 0.25, 1.0 + 0.35 * draw.scale
    main = _warp(alphas, angle, scale, 0.15 * (2 * draw.shift - 1))
    which = (draw.clutter_drawing[:, 0] * len(distractors)).long().numpy()
    corner = torch.where(draw.clutter_corner < 0.5, -0.68, 0.68)
    angle, scale = (2 * draw.clutter_angle - 1) * 0.5, 0.38 + 0.12 * draw.clutter_scale
    clutter = _warp(distractors[which], angle, scale, corner) * (draw.clutter_there < 0.7)[..., None, None]
    # ink and paper: brightnesses at least 0.35 apart, either one the lighter
    dark, light = 0.05 + 0.25 * draw.dark, 0.65 + 0.3 * draw.light
    inverse = draw.light_on_dark < 0.5
    ink = torch.where(inverse, light, dark) + 0.3 * (draw.ink_tint - 0.5)
    paper = torch.where(inverse, dark, light) + 0.3 * (draw.paper_tint - 0.5)
    corners = paper[..., None, None] + 0.25 * (draw.uneven_light.reshape(-1, 1, 2, 2) - 0.5)
    image = F.interpolate(corners, size=(SIDE, SIDE), mode="bilinear", align_corners=True)
    image = image + clutter * (draw.clutter_colour[..., None, None] - image)
    image = image + main * (ink[..., None, None] - image)
    blur, contrast, exposure, noise = (
        one[..., None, None] for one in (draw.blur, draw.contrast, draw.exposure, draw.noise)
    )
    soft = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    image = image + blur * (soft - image)
    middle = image.mean((1, 2, 3), keepdim=True)
    image = middle + (0.5 + 0.5 * contrast) * (image - middle) + 0.3 * (exposure - 0.5)
    return (image + (0.02 + 0.18 * noise) * normal).clamp(0, 1)

"""The glyph world: a real image-text data set that every machine with matplotlib already has.

matplotlib ships the DejaVu and STIX fonts. Each character they draw is a human-made picture with an
official name (``unicodedata.name``), in up to 16 faces. This module renders those drawings, sorts the
characters into in-distribution (ID) classes, out-of-distribution (OoD) sets and a negative-label
corpus, and turns drawings into small cluttered photographs of themselves ("views").

Nothing here is random without a seed: a view is a function of (seed, key) alone, so that a training
run can be resumed, split over processes, or replayed image by image.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import UserError

if TYPE_CHECKING:
    from PIL import ImageFont

VERSION = 1  # of the view recipe below; part of every fingerprint
CANVAS = 40  # pixels: side of a stored drawing
SIDE = 32  # pixels: side of a view, the model's input
EM = 26  # pixels: font size of a drawing; larger glyphs are shrunk until they fit

TEXT_FACES = tuple(
    f"DejaVu{family}{style}"
    for family, styles in {
        "Sans": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "SansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "Serif": ("", "-Bold", "-Italic", "-BoldItalic"),
    }.items()
    for style in styles
)
FACES = TEXT_FACES + ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta")
TEST_FACES = ("DejaVuSans-Oblique", "DejaVuSerif-Italic")  # never trained on; every test image
VALIDATION_FACES = ("DejaVuSans-BoldOblique",)  # never trained on; every choice is made here
TRAIN_FACES = tuple(f for f in FACES if f not in TEST_FACES + VALIDATION_FACES)

_LETTER = re.compile(r"(latin|greek|cyrillic) (small|capital) letter ")
_SCRIPT = re.compile(
    r"(armenian (small|capital)|georgian|hebrew|lao) (letter|capital letter)|georgian capital"
)
_PICTOGRAPH = re.compile(r"playing card|domino tile|.*\bface\b|.*chess |.*die face")


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

    ``classes``: one tuple per ID class, look-alikes (same drawing, several names) together, the one with
    the smallest codepoint first. ``sets``: OoD set name -> characters. ``removed``: set name ->
    characters left out of that set because they are drawn exactly like an ID letter.
    """

    classes: tuple[tuple[int, ...], ...]
    sets: dict[str, tuple[int, ...]]
    removed: dict[str, tuple[int, ...]]


# group of each OoD set; "validation" sets serve choices and are disjoint from every test set
GROUPS = {
    "accented": "near",
    "scripts": "near",
    "arrows": "far",
    "braille": "far",
    "pictographs": "far",
    "syllabics": "far",
    "digits": "unseen",
    "photos": "unseen",
    "val_accented": "validation",
    "val_symbols": "validation",
}


def _drawable(codepoint: int) -> bool:
    """Named, visible, and standing alone: no control, separator, combining or modifier character."""
    character = chr(codepoint)
    kind = unicodedata.category(character)
    return bool(unicodedata.name(character, "")) and kind[0] in "LNPS" and kind not in ("Lm", "Sk")


def _ink(fonts: Sequence[ImageFont.FreeTypeFont], character: str) -> np.ndarray | None:
    """One drawing (CANVAS, CANVAS) uint8: centred sideways, on a common baseline, shrunk to fit; None if blank."""
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


def _render() -> dict[str, np.ndarray]:
    """Draw everything: arrays ``codepoint``, ``face`` (D,) and ``alphas`` (D, CANVAS, CANVAS), sorted."""
    from fontTools.ttLib import TTFont
    from PIL import ImageFont

    rows: list[tuple[int, int, np.ndarray]] = []
    for index, path in enumerate(_font_paths()):
        fonts = [ImageFont.truetype(path, size) for size in (EM, 20, 14, 9, 5)]
        for codepoint in filter(_drawable, TTFont(path, lazy=True).getBestCmap()):
            ink = _ink(fonts, chr(codepoint))
            if ink is not None:
                rows.append((codepoint, index, ink))
    rows.sort(key=lambda row: row[:2])
    codepoint, face, alphas = zip(*rows, strict=True)
    return {"codepoint": np.array(codepoint), "face": np.array(face), "alphas": np.stack(alphas)}


def _font_paths() -> list[Path]:
    import matplotlib

    paths = [Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf" for face in FACES]
    for path in paths:
        if not path.exists():
            raise UserError(f"font {path} is missing; reinstall matplotlib, whose fonts are the glyph world")
    return paths


def _cache_folder() -> Path:
    """Where the drawings are kept between processes; named by all that decides them."""
    import PIL

    sizes = [path.stat().st_size for path in _font_paths()]
    deciding = [PIL.__version__, unicodedata.unidata_version, CANVAS, EM, FACES, sizes]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ood_utils"
    return folder / f"glyphs-{hashlib.sha256(repr(deciding).encode()).hexdigest()[:16]}"


def _drawn() -> dict[str, np.ndarray]:
    """The rendered arrays, mapped from the cache (80 MB, shared by all processes), else drawn anew and kept if possible."""
    folder = _cache_folder()
    try:
        return {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("codepoint", "face", "alphas")
        }
    except (
        Exception
    ):  # missing, truncated by a full disk, or foreign: drawing again costs seconds and is always right
        drawn = _render()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent))
        for name, array in drawn.items():
            np.save(aside / f"{name}.npy", array)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
    except OSError:
        pass  # a read-only home or a full disk costs every process the rendering, nothing else
    return drawn


@lru_cache(maxsize=1)
def world() -> World:
    """Every drawable named character of the 16 faces (about 6,900 characters, 49,700 drawings; seconds, then cached).

    Raises UserError if matplotlib's fonts are missing.
    """
    drawn = _drawn()
    codepoints, character = np.unique(drawn["codepoint"], return_inverse=True)
    return World(
        names=tuple(unicodedata.name(chr(c)).lower() for c in codepoints),
        codepoints=tuple(int(c) for c in codepoints),
        alphas=drawn["alphas"],
        character=character,
        face=drawn["face"],
    )


def _set_of(codepoint: int, name: str) -> str | None:
    """The OoD set a character's name and block put it in, or None."""
    if _LETTER.match(name) and " with " in name:
        return "accented" if name.startswith("latin") else "val_accented"
    if _SCRIPT.match(name):
        return "scripts"
    if name.startswith("braille pattern"):
        return "braille"
    if name.startswith("canadian syllabics"):
        return "syllabics"
    if _PICTOGRAPH.match(name):
        return "pictographs"
    if "arrow" in name.split():
        return "arrows"
    if 0x2200 <= codepoint < 0x2300 or 0x2500 <= codepoint < 0x2600 or 0x2A00 <= codepoint < 0x2B00:
        return "val_symbols"  # mathematical operators, box drawing, blocks, geometric shapes
    return None


def _agreement(everything: World, characters: Sequence[int]) -> dict[int, dict[int, float]]:
    """Character -> {one of ``characters`` -> share of their common text faces in which both are the same pixels}."""
    text = np.flatnonzero(everything.face < len(TEXT_FACES))
    same: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    faces: dict[int, set[int]] = defaultdict(set)
    for d in text:
        character, face = int(everything.character[d]), int(everything.face[d])
        same[face, everything.alphas[d].tobytes()].append(character)
        faces[character].add(face)
    wanted, count = set(characters), Counter()
    for group in same.values():
        count.update((a, b) for a in group for b in group if a != b and b in wanted)
    shares: dict[int, dict[int, float]] = defaultdict(dict)
    for (a, b), agreed in count.items():
        shares[a][b] = agreed / len(faces[a] & faces[b])
    return shares


@lru_cache(maxsize=1)
def concepts() -> Concepts:
    """Sort the world's characters into ID classes and OoD sets (see ``Concepts``); found from names and pixels only."""
    everything = world()
    in_faces = defaultdict(set)
    for character, face in zip(everything.character, everything.face, strict=True):
        in_faces[int(character)].add(int(face))
    letters = [
        i
        for i, name in enumerate(everything.names)
        if _LETTER.match(name) and " with " not in name and set(range(len(TEXT_FACES))) <= in_faces[i]
    ]
    agreement = _agreement(everything, letters)
    twins = {a: {b for b, share in others.items() if share >= 0.5} for a, others in agreement.items()}
    classes: list[tuple[int, ...]] = []
    placed: set[int] = set()
    for letter in letters:  # ascending codepoint, so the first name of a class is its oldest
        if letter not in placed:
            group, frontier = {letter}, [letter]
            while frontier:
                fresh = twins.get(frontier.pop(), set()) - group
                group |= fresh
                frontier += fresh
            placed |= group
            classes.append(tuple(sorted(group)))
    sets: dict[str, list[int]] = defaultdict(list)
    removed: dict[str, list[int]] = defaultdict(list)
    for i, (codepoint, name) in enumerate(zip(everything.codepoints, everything.names, strict=True)):
        label = None if i in placed else _set_of(codepoint, name)
        if label:
            (removed if i in agreement else sets)[label].append(i)  # equal to an ID letter in any face
    return Concepts(
        tuple(classes), {k: tuple(v) for k, v in sets.items()}, {k: tuple(v) for k, v in removed.items()}
    )


def _random_rows(
    seed: int, keys: Sequence[int], uniforms: int, normals: int
) -> tuple[np.ndarray, np.ndarray]:
    """Per key, independent of its neighbours: ``uniforms`` numbers in [0,1) and ``normals`` standard normal numbers."""
    flat, noise = np.empty((len(keys), uniforms), np.float32), np.empty((len(keys), normals), np.float32)
    for row, key in enumerate(keys):
        generator = np.random.Generator(np.random.Philox(key=[seed, int(key)]))
        generator.random(out=flat[row], dtype=np.float32)
        generator.standard_normal(out=noise[row], dtype=np.float32)
    return flat, noise


def _warp(alpha: torch.Tensor, angle: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Rotate (radians), scale and shift (fraction of half a side) ink (B, CANVAS, CANVAS) into (B, SIDE, SIDE)."""
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.stack(
        [
            torch.stack([cos, -sin, -(cos * shift[:, 0] - sin * shift[:, 1])], -1),
            torch.stack([sin, cos, -(sin * shift[:, 0] + cos * shift[:, 1])], -1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [len(alpha), 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(alpha[:, None], grid, align_corners=False)[:, 0]


def views(
    alphas: np.ndarray, distractors: np.ndarray, keys: Sequence[int], seed: int = 0, noise: float = 0.12
) -> torch.Tensor:
    """Photograph drawings: colours, uneven light, rotation, a distractor glyph in a corner of 70 %, noise.

    ``alphas`` (B, CANVAS, CANVAS) uint8, one per key; ``distractors`` (P, CANVAS, CANVAS) uint8, the pool to
    draw corner glyphs from. Returns (B, 3, SIDE, SIDE) float32 in [0, 1], a function of (seed, key) only.
    """
    u, pixels = _random_rows(seed, keys, 28, 3 * SIDE * SIDE)
    extra = torch.from_numpy(distractors[(u[:, 0] * len(distractors)).astype(int)]).float() / 255
    u, ink = torch.from_numpy(u), torch.from_numpy(alphas).float() / 255
    centred = 2 * u[:, 1:4] - 1
    main = _warp(ink, centred[:, 0] * 0.25, 1.0 + 0.35 * u[:, 4], 0.15 * centred[:, 1:3])
    corner = torch.where(u[:, 5:7] < 0.5, -0.68, 0.68)
    small = _warp(extra, (2 * u[:, 7] - 1) * 0.5, 0.38 + 0.12 * u[:, 8], corner)
    small = small * (u[:, 9] < 0.7)[:, None, None]
    # foreground and background colours: brightnesses at least 0.35 apart, either one the lighter
    dark, light = 0.05 + 0.25 * u[:, 10], 0.65 + 0.3 * u[:, 11]
    swap = (u[:, 12] < 0.5)[:, None]
    tint = 0.3 * (u[:, 13:19] - 0.5)
    fore = torch.where(swap, light[:, None], dark[:, None]) + tint[:, :3]
    back = torch.where(swap, dark[:, None], light[:, None]) + tint[:, 3:]
    corners = back[:, :, None, None] + 0.25 * (u[:, 19:23].reshape(-1, 1, 2, 2) - 0.5)
    image = F.interpolate(corners, size=(SIDE, SIDE), mode="bilinear", align_corners=True)
    image = image + small[:, None] * (u[:, 23:26, None, None] - image)
    image = image + main[:, None] * (fore[:, :, None, None] - image)
    return (image + noise * torch.from_numpy(pixels).reshape(-1, 3, SIDE, SIDE)).clamp(0, 1)


def datasheet() -> str:
    """The world's datasheet as Markdown (docs/DATASHEET.md is this text): counts, faces, licences, overlaps."""
    everything, known = world(), concepts()
    named = {"ID classes, first name of each": [group[0] for group in known.classes], **known.sets}
    rows = []
    for name, characters in named.items():
        group = GROUPS.get(name, "id")
        drawn = everything.pick(characters, VALIDATION_FACES if group == "validation" else TEST_FACES)
        rows.append(f"| {name} | {group} | {len(characters)} | {len(drawn)} |")
    merged = [[everything.names[c] for c in group] for group in known.classes if len(group) > 1]
    gone = {name: [everything.names[c] for c in characters] for name, characters in known.removed.items()}
    return (Path(__file__).parents[1] / "assets" / "datasheet.md").read_text().format(
        characters=len(everything.names), drawings=len(everything.alphas), faces=len(FACES),
        train_faces=", ".join(TRAIN_FACES), validation_faces=", ".join(VALIDATION_FACES),
        test_faces=", ".join(TEST_FACES), rows="\n".join(rows), letters=sum(map(len, known.classes)),
        classes=len(known.classes), merged=len(merged), groups="\n".join("- " + " = ".join(m) for m in merged),
        removed="\n".join(f"- {name}: {', '.join(names)}" for name, names in gone.items()),
    )  # fmt: skip


if __name__ == "__main__":
    print(datasheet(), end="")

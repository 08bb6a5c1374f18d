"""In-distribution and out-of-distribution image sets: the glyph world, a user's folders, ImageNet.

Everything downstream sees one shape, a ``Study``. Training images are asked for by *key* = epoch * n + index, and
the random view is a function of (seed, key) alone: workers, processes and resumed runs all see the same pictures.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import glyphs, words
from .errors import UnreadableImage, UserError

if TYPE_CHECKING:
    from .run import Profile

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class ImageSet:
    """Some images and what is known of them.

    ``dataset``: map-style, item -> (float32 (3, H, W) normalised, label); ``labels`` (n,) int64, -1 for OoD;
    ``ids``: a name per image; ``group``: id, near, far, unseen or validation; ``fingerprint``: hash of all that
    decides the pixels.
    """

    name: str
    group: str
    dataset: Dataset
    labels: np.ndarray
    ids: list[str]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Study:
    """One ID problem with its OoD sets, and the words from which negative labels are mined.

    ``validation`` sets serve every choice and share no image, class or name with the test sets in ``ood``.
    ``corpus``: (word, part of speech) pairs; it contains OoD names, as WordNet does for ImageNet.
    """

    class_names: list[str]
    synonyms: list[list[str]]
    train: ImageSet
    id_val: ImageSet
    id_test: ImageSet
    ood: dict[str, ImageSet]
    validation: dict[str, ImageSet]
    corpus: list[tuple[str, str]] = field(repr=False)

    @property
    def sets(self) -> dict[str, ImageSet]:
        """Every set that is embedded: id_val, id_test, the OoD test sets and the validation OoD sets."""
        return {"id_val": self.id_val, "id_test": self.id_test, **self.ood, **self.validation}


def _digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()[:16]


# --- the glyph world ---------------------------------------------------------------------------------------------


class GlyphViews(Dataset):
    """Views of drawings (see ``glyphs.views``), in [-1, 1]; item KEY -> (image, label of drawing key % n)."""

    def __init__(self, alphas: np.ndarray, labels: np.ndarray, pool: np.ndarray, seed: int) -> None:
        self.alphas, self.labels, self.pool, self.seed = alphas, labels, pool, seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int) -> tuple[Tensor, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int]) -> list[tuple[Tensor, int]]:
        rows = np.asarray(keys) % len(self)
        images = (glyphs.views(self.alphas[rows], self.pool, keys, self.seed) - 0.5) / 0.5
        return list(zip(images, self.labels[rows].tolist(), strict=True))


def _glyph_set(name: str, group: str, drawings: np.ndarray, labels: np.ndarray, seed: int) -> ImageSet:
    """Views of the world's drawings; the corner glyphs come from characters that are in no set at all."""
    world = glyphs.world()
    alphas, pool = world.alphas[drawings], _neutral_drawings()
    ids = [
        f"{world.names[c]} · {glyphs.FACES[f]}"
        for c, f in zip(world.character[drawings], world.face[drawings], strict=True)
    ]
    return _views(name, group, alphas, labels, ids, pool, seed)


def _views(
    name: str, group: str, alphas: np.ndarray, labels: np.ndarray, ids: list[str], pool: np.ndarray, seed: int
) -> ImageSet:
    labels = np.asarray(labels, dtype=np.int64)
    set_seed = (seed << 32) + int(hashlib.sha256(name.encode()).hexdigest()[:7], 16)
    dataset = GlyphViews(alphas, labels, pool, set_seed)
    return ImageSet(
        name, group, dataset, labels, ids, _digest(name, alphas, labels, pool, set_seed, glyphs.VERSION)
    )


@lru_cache(maxsize=1)
def _neutral_drawings() -> np.ndarray:
    """Training-face drawings of characters that are neither ID nor in an OoD set: clutter that tells nothing."""
    world, known = glyphs.world(), glyphs.concepts()
    taken = {c for group in [*known.classes, *known.sets.values(), *known.removed.values()] for c in group}
    free = [c for c in range(len(world.names)) if c not in taken]
    return world.alphas[world.pick(free, glyphs.TRAIN_FACES)]


def _subset(count: int, most: int, seed: int) -> np.ndarray:
    """Sorted indices of at most ``most`` of ``count`` things (0 = all), drawn without replacement."""
    if most <= 0 or most >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, count]).permutation(count)[:most])


def _unseen_sets(most: int, pool: np.ndarray, seed: int) -> dict[str, ImageSet]:
    """What no caption ever named: scikit-learn's handwritten digits and patches of its two photographs."""
    from PIL import Image
    from sklearn.datasets import load_digits, load_sample_images

    edge, inside = (glyphs.CANVAS - 24) // 2, (24, 24)  # as tall as a capital letter
    digits = load_digits()
    chosen = _subset(len(digits.images), most, seed)
    drawn = [
        np.asarray(Image.fromarray((d * 15.9).astype(np.uint8)).resize(inside, 3))
        for d in digits.images[chosen]
    ]
    ink = [np.pad(d, edge) for d in drawn]
    ids = [f"handwritten digit {digits.target[i]} · number {i}" for i in chosen]
    result = {"digits": _views("digits", "unseen", np.stack(ink), np.full(len(ids), -1), ids, pool, seed)}
    photos, rng, patches, names = load_sample_images(), np.random.default_rng([seed, 1]), [], []
    for number in range(most or 800):
        which = number % len(photos.images)
        photo, size = photos.images[which], int(rng.integers(48, 160))
        y, x = (int(rng.integers(0, length - size)) for length in photo.shape[:2])
        patch = Image.fromarray(photo[y : y + size, x : x + size]).resize((glyphs.SIDE, glyphs.SIDE), 3)
        patches.append(np.asarray(patch))
        names.append(f"photograph of {Path(photos.filenames[which]).stem} · patch {x},{y} of {size} px")
    pixels = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).float() / 127.5 - 1
    dataset = torch.utils.data.TensorDataset(pixels, torch.full((len(pixels),), -1))
    labels = np.full(len(names), -1, dtype=np.int64)
    result["photos"] = ImageSet("photos", "unseen", dataset, labels, names, _digest(pixels.numpy()))
    return result


def _glyph_study(profile: Profile, classes: int) -> Study:
    """The embedded world of ``glyphs``; ``classes`` > 0 keeps that many ID classes, drawn with the data seed."""
    world, known, seed = glyphs.world(), glyphs.concepts(), profile.data_seed
    groups = [known.classes[i] for i in _subset(len(known.classes), profile.id_classes, seed)]
    if classes:
        groups = [groups[i] for i in _subset(len(groups), classes, seed)]
    label = {c: k for k, group in enumerate(groups) for c in group}
    first = [group[0] for group in groups]

    def id_set(name: str, characters: Sequence[int], faces: Sequence[str], repeats: int) -> ImageSet:
        drawings = world.pick(characters, faces)
        if name == "train":
            drawings = drawings[_subset(len(drawings), profile.train_images, seed)]
        drawings = np.repeat(drawings, repeats)
        return _glyph_set(name, "id", drawings, np.array([label[c] for c in world.character[drawings]]), seed)

    def ood_set(name: str, faces: Sequence[str]) -> ImageSet:
        drawings = world.pick(known.sets[name], faces)
        drawings = drawings[_subset(len(drawings), profile.ood_images, seed)]
        return _glyph_set(name, glyphs.GROUPS[name], drawings, np.full(len(drawings), -1), seed)

    drawn = {n: ood_set(n, glyphs.TEST_FACES) for n in glyphs.GROUPS if glyphs.GROUPS[n] in ("near", "far")}
    validation = {
        n: ood_set(n, glyphs.VALIDATION_FACES) for n in glyphs.GROUPS if glyphs.GROUPS[n] == "validation"
    }
    return Study(
        class_names=[world.names[c] for c in first],
        synonyms=[[world.names[c] for c in group[1:]] for group in groups],
        train=id_set("train", sorted(label), glyphs.TRAIN_FACES, 1),
        id_val=id_set("id_val", first, glyphs.VALIDATION_FACES, profile.id_views),
        id_test=id_set("id_test", first, glyphs.TEST_FACES, profile.id_views),
        ood=drawn | _unseen_sets(profile.ood_images, _neutral_drawings(), seed),
        validation=validation,
        corpus=_corpus(profile, [(name, "noun") for name in world.names]),
    )


# --- images on disk ----------------------------------------------------------------------------------------------


class ImageFiles(Dataset):
    """Images of a list of files; item KEY -> (transformed image, label of file key % n).

    A random transform draws from a generator seeded by (seed, key). Raises UnreadableImage naming the file.
    """

    def __init__(
        self, paths: Sequence[Path], labels: np.ndarray, transform: Callable, seed: int | None = None
    ) -> None:
        self.paths, self.labels, self.transform, self.seed = [str(p) for p in paths], labels, transform, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int) -> tuple[Tensor, int]:
        from PIL import Image

        row = int(key) % len(self)
        try:
            with Image.open(self.paths[row]) as file:
                image = file.convert(
                    "RGB"
                )  # before any resize: palette and CMYK files must not be resampled as such
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
            raise UnreadableImage(self.paths[row], str(fault)) from None
        if self.seed is None:
            return self.transform(image), int(self.labels[row])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed << 40) ^ int(key))
            return self.transform(image), int(self.labels[row])


def _files_set(
    name: str,
    group: str,
    root: Path,
    paths: list[Path],
    labels: np.ndarray | None,
    transform: Callable,
    seed: int | None,
) -> ImageSet:
    if not paths:
        raise UserError(f"image set {name!r} is empty: no image ({', '.join(IMAGE_SUFFIXES)}) below {root}")
    labels = np.full(len(paths), -1) if labels is None else np.asarray(labels)
    ids = [str(p.relative_to(root)) for p in paths]
    sizes = [p.stat().st_size for p in paths]
    fingerprint = _digest(name, ids, sizes, labels.astype(np.int64), repr(transform), seed)
    dataset = ImageFiles(paths, labels.astype(np.int64), transform, seed)
    return ImageSet(name, group, dataset, labels.astype(np.int64), ids, fingerprint)


def _images_below(folder: Path, what: str) -> list[Path]:
    """Every image file below a folder, sorted; UserError if the folder is missing."""
    if not folder.is_dir():
        raise UserError(f"{what}: folder {folder} does not exist; set data_root or ood_roots in the profile")
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _list_rows(list_file: Path, name: str) -> list[tuple[str, int]]:
    """(relative path, label) of every line of an OpenOOD image list; UserError names a line that is not that."""
    if not list_file.is_file():
        raise UserError(f"{name}: image list {list_file} does not exist; get OpenOOD's benchmark_imglist.zip")
    rows = []
    for number, line in enumerate(list_file.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            path, label = line.decode().rsplit(maxsplit=1)
            rows.append((path, int(label)))
        except ValueError:  # one word only, a label that is no number, or bytes that are no text
            shown = line[:60].decode(errors="replace")
            raise UserError(
                f"{name}: line {number} of image list {list_file} is {shown!r}, not a path and a whole number; "
                "unpack OpenOOD's benchmark_imglist.zip again"
            ) from None
    return rows


def _image_list(list_file: Path, root: Path, name: str) -> tuple[list[Path], np.ndarray]:
    """(paths, labels) of an OpenOOD image list below ``root``; UserError if one of its files is missing."""
    rows = _list_rows(list_file, name)
    paths = [root / row[0] for row in rows]
    missing = [p for p in paths if not p.is_file()]
    if missing:
        raise UserError(
            f"{list_file} names {len(missing)} missing files, the first {missing[0]}; complete the download"
        )
    return paths, np.array([row[1] for row in rows], dtype=np.int64)


def _class_folders(folder: Path, what: str) -> tuple[list[str], list[Path], np.ndarray]:
    """(sorted class folder names, image paths, labels) of an ImageFolder layout; UserError for a class without one."""
    if not folder.is_dir():
        raise UserError(f"{what}: folder {folder} does not exist; set data_root in the profile")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    files = [_images_below(folder / name, what) for name in names]
    if void := [name for name, found in zip(names, files, strict=True) if not found]:
        raise UserError(f"{what}: class folder {folder / void[0]} holds no image; fill it or move it away")
    labels = np.repeat(np.arange(len(names)), [len(f) for f in files])
    return names, [p for f in files for p in f], labels


def _folder_study(profile: Profile, classes: int) -> Study:
    """A user's own images: ``data_root`` in ImageFolder layout, ``ood_roots`` folders of anything else.

    ``data_root`` either holds train/, val/ and test/, or class folders that are split 60/20/20 by the data seed.
    """
    from . import models

    train_view, view = models.transforms(profile.model, profile.pretrained, tuple(profile.crop_scale))
    root, seed = Path(profile.data_root).expanduser(), profile.data_seed
    if not profile.data_root:
        raise UserError("data_root is empty; set it to the folder of your ID images (one sub-folder a class)")
    if (root / "train").is_dir():
        parts = {part: _class_folders(root / part, part) for part in ("train", "val", "test")}
        if len({tuple(p[0]) for p in parts.values()}) > 1:
            raise UserError(
                f"{root}: train, val and test have different class folders; give each class to all three"
            )
    else:
        names, paths, labels = _class_folders(root, "data_root")
        cut = np.random.default_rng(seed).permutation(len(paths)) / max(1, len(paths))
        masks = {"train": cut < 0.6, "val": (cut >= 0.6) & (cut < 0.8), "test": cut >= 0.8}
        parts = {
            k: (names, [p for p, m in zip(paths, mask, strict=True) if m], labels[mask])
            for k, mask in masks.items()
        }
    names = parts["train"][0]
    if len(names) < 2:
        raise UserError(f"{root} has {len(names)} class folders; OoD detection needs at least 2 ID classes")
    kept = _subset(len(names), classes or profile.id_classes, seed)

    def id_set(name: str, part: str, transform: Callable, set_seed: int | None) -> ImageSet:
        _, paths, labels = parts[part]
        index = np.flatnonzero(np.isin(labels, kept))
        return _files_set(
            name,
            "id",
            root,
            [paths[i] for i in index],
            np.searchsorted(kept, labels[index]),
            transform,
            set_seed,
        )

    ood, validation = {}, {}
    for name, folder in profile.ood_roots.items():
        group = profile.ood_groups.get(name, "far")
        below = Path(folder).expanduser()
        paths = _images_below(below, f"ood_roots[{name}]")
        paths = [paths[i] for i in _subset(len(paths), profile.ood_images, seed)]
        (validation if group == "validation" else ood)[name] = _files_set(
            name, group, below, paths, None, view, None
        )
    if not ood:
        raise UserError("ood_roots names no test set; give at least one folder of OoD images")
    return Study(
        class_names=[names[i].replace("_", " ") for i in kept],
        synonyms=[[] for _ in kept],
        train=id_set("train", "train", train_view, seed),
        id_val=id_set("id_val", "val", view, None),
        id_test=id_set("id_test", "test", view, None),
        ood=ood,
        validation=validation,
        corpus=_corpus(profile, None),
    )


# --- ImageNet ----------------------------------------------------------------------------------------------------

# set -> (group, folder below data_root, OpenOOD list or "", images expected); core_methods 8.1 and 8.2
IMAGENET_SETS = {
    "SSB-hard": ("near", "images_largescale", "test_ssb_hard.txt", 49_000),
    "NINCO": ("near", "images_largescale", "test_ninco.txt", 5_879),
    "iNaturalist": ("far", "MOS/iNaturalist", "", 10_000),
    "SUN": ("far", "MOS/SUN", "", 10_000),
    "Places": ("far", "MOS/Places", "", 10_000),
    "Textures": ("far", "MOS/dtd/images", "", 5_640),
    "iNaturalist-OpenOOD": ("far", "images_largescale", "test_inaturalist.txt", 10_000),
    "Textures-OpenOOD": ("far", "images_classic", "test_textures.txt", 5_160),
    "OpenImage-O": ("far", "images_largescale", "test_openimage_o.txt", 15_869),
    "val_openimage_o": ("validation", "images_largescale", "val_openimage_o.txt", 1_763),
}


def imagenet_wnids() -> list[str]:
    """The 1,000 wnids in class order (sorted), from timm's package data."""
    text = importlib.resources.files("timm.data").joinpath("_info/imagenet_synsets.txt").read_text()
    return text.split()


def _check_wnids(folder: Path, names: list[str], expected: list[str], why: str) -> None:
    """The class folders must be exactly the expected wnids: labels are positions in the sorted list."""
    foreign = sorted(set(names) - set(imagenet_wnids()))
    if foreign:
        raise UserError(
            f"{folder} has {len(foreign)} folders that are no ImageNet-1k wnid, first {foreign[0]!r}; move them away"
        )
    if gone := sorted(set(expected) - set(names)):
        raise UserError(
            f"{folder} has {len(names)} class folders, not {len(expected)} ({why}); complete it, "
            f"{gone[0]!r} is missing for one"
        )


def _imagenet_study(profile: Profile, classes: int) -> Study:
    """ImageNet-1k with the MOS and OpenOOD v1.5 sets below ``data_root`` (layout: docs/DATA.md).

    Where OpenOOD's lists are present, its 5,000 validation images are id_val and the other 45,000 id_test, so that
    no choice touches a test image; ``id_classes`` > 0 draws that many of the wnids found (for small copies).
    """
    from open_clip import IMAGENET_CLASSNAMES

    from . import models

    train_view, view = models.transforms(profile.model, profile.pretrained, tuple(profile.crop_scale))
    root, lists = (
        Path(profile.data_root).expanduser(),
        Path(profile.data_root).expanduser() / "benchmark_imglist/imagenet",
    )
    wnids = imagenet_wnids()
    names, paths, labels = _class_folders(root / "imagenet/train", "ImageNet train")
    val_names, val_paths, val_labels = _class_folders(root / "imagenet/val", "ImageNet val")
    wanted, why = wnids, "id_classes = 0 takes all"
    if profile.id_classes:
        wanted, why = sorted({*names, *val_names} & set(wnids)), "train and val together"
    for folder, found in ((root / "imagenet/train", names), (root / "imagenet/val", val_names)):
        _check_wnids(folder, found, wanted, why)
    if len(names) < profile.id_classes:
        raise UserError(
            f"{root / 'imagenet/train'} has {len(names)} class folders, fewer than id_classes = {profile.id_classes}; "
            "complete train and val, or lower id_classes"
        )
    kept = _subset(len(names), classes or profile.id_classes, profile.data_seed)
    chosen = np.isin(labels, kept)
    train = [p for p, c in zip(paths, chosen, strict=True) if c]
    base = root / "imagenet/train"
    train_set = _files_set(
        "train", "id", base, train, np.searchsorted(kept, labels[chosen]), train_view, profile.data_seed
    )
    held = _openood_validation(lists, val_paths)
    inside = np.isin(val_labels, kept)
    picks = {"id_val": held & inside, "id_test": ~held & inside}
    id_sets = {}
    for name, mask in picks.items():
        files = [p for p, m in zip(val_paths, mask, strict=True) if m]
        positions = np.searchsorted(kept, val_labels[mask])
        id_sets[name] = _files_set(name, "id", root / "imagenet/val", files, positions, view, None)
    ood: dict[str, ImageSet] = {}
    for name, (group, folder, listed, _) in IMAGENET_SETS.items():
        files = (
            _image_list(lists / listed, root / folder, name)[0]
            if listed
            else _images_below(root / folder, name)
        )
        files = [files[i] for i in _subset(len(files), profile.ood_images, profile.data_seed)]
        ood[name] = _files_set(name, group, root / folder, files, None, view, None)
    position, chosen_wnids = {w: i for i, w in enumerate(wnids)}, [names[i] for i in kept]
    return Study(
        class_names=[IMAGENET_CLASSNAMES[position[names[i]]] for i in kept],
        synonyms=words.synonyms(profile.corpus, chosen_wnids)
        if Path(profile.corpus).is_dir()
        else [[] for _ in kept],
        train=train_set,
        id_val=id_sets["id_val"],
        id_test=id_sets["id_test"],
        ood={k: v for k, v in ood.items() if v.group != "validation"},
        validation={k: v for k, v in ood.items() if v.group == "validation"},
        corpus=_corpus(profile, None),
    )


def _openood_validation(lists: Path, val_paths: list[Path]) -> np.ndarray:
    """Mask of the val images that OpenOOD's val_imagenet.txt names (5,000 of 50,000)."""
    held = {Path(path).name for path, _ in _list_rows(lists / "val_imagenet.txt", "id_val")}
    return np.array([p.name in held for p in val_paths])


# --- the words ---------------------------------------------------------------------------------------------------


def _corpus(profile: Profile, names: list[tuple[str, str]] | None) -> list[tuple[str, str]]:
    """(word, part of speech) candidates, at most ``profile.corpus_words`` of them, in the source's order."""
    whole = _whole_corpus(profile, names)
    return [whole[i] for i in _subset(len(whole), profile.corpus_words, profile.data_seed)]


def _whole_corpus(profile: Profile, names: list[tuple[str, str]] | None) -> list[tuple[str, str]]:
    """The world's names, a WordNet ``dict`` folder, or a text file of nouns."""
    if profile.corpus == "names":
        if names is not None:
            return names
        from open_clip import IMAGENET_CLASSNAMES

        return [(name, "noun") for name in sorted(set(IMAGENET_CLASSNAMES))]
    path = Path(profile.corpus).expanduser()
    if path.is_dir():
        return (
            words.conjugate(words.wordnet(path, words.CSP_LEFT_OUT))
            if profile.conjugated
            else words.wordnet(path)
        )
    if not path.is_file():
        raise UserError(
            f"corpus {profile.corpus!r} is neither 'names', a WordNet dict folder nor a text file"
        )
    return [
        (word, "noun") for word in sorted({line.strip() for line in path.read_text().splitlines()} - {""})
    ]


def load(profile: Profile, classes: int = 0) -> Study:
    """The study a profile describes; ``classes`` > 0 keeps only that many of its ID classes (an ablation).

    Raises UserError naming the folder, list or set that is missing or does not fit.
    """
    makers = {"glyphs": _glyph_study, "folder": _folder_study, "imagenet": _imagenet_study}
    return makers[profile.data](profile, classes)


def picture(image_set: ImageSet, index: int) -> np.ndarray:
    """One image of a set for looking at: (H, W, 3) float in [0, 1], its normalisation undone by its own range."""
    pixels = image_set.dataset[index][0].permute(1, 2, 0).numpy()
    low, high = pixels.min(), pixels.max()
    return (pixels - low) / max(high - low, 1e-6)


def examples(image_set: ImageSet, count: int) -> list[np.ndarray]:
    """``count`` readable images spread evenly over a set, as ``picture`` gives them."""
    found = []
    for start in np.linspace(0, len(image_set) - 1, min(count, len(image_set))).astype(int):
        for index in range(start, min(start + 10, len(image_set))):
            with suppress(UnreadableImage):  # counted and listed where the set is embedded
                found.append(picture(image_set, index))
                break
    return found

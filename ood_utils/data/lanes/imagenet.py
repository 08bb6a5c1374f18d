"""ImageNet-1k with the MOS and OpenOOD v1.5 sets below ``data_root`` (layout: docs/DATA.md)."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UserError
from ..corpus import load_corpus, synonyms
from ..paths import class_folders, folder_need, images_below, list_rows, listed_images
from ..study import ImageSet, Need, Study, subset

if TYPE_CHECKING:
    from ...config import Profile

LISTS = "benchmark_imglist/imagenet"
# set -> (group, folder below data_root, OpenOOD list or "", images expected); core_methods 8.1 and 8.2
SETS = {
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
IMAGENET = "image-net.org after registration; ImageNet terms of access: non-commercial research"
OPENOOD = "OpenOOD v1.5's download script (github.com/Jingkang50/OpenOOD)"
WISC = "pages.cs.wisc.edu/~huangrui/imagenet_ood_dataset"
# path below data_root -> size, where it is obtained, licence; "est." = reckoned from the image count
SOURCES = {
    "imagenet/train": f"138 GB; {IMAGENET}",
    "imagenet/val": f"6.3 GB; {IMAGENET}",
    "MOS/iNaturalist": f"est. 2 GB; {WISC}/iNaturalist.tar.gz; photographers' CC BY-NC etc.; research",
    "MOS/SUN": f"est. 2 GB; {WISC}/SUN.tar.gz; research only",
    "MOS/Places": f"est. 2 GB; {WISC}/Places.tar.gz; research only",
    "MOS/dtd/images": "0.6 GB; www.robots.ox.ac.uk/~vgg/data/dtd; research only",
    LISTS: f"30 MB; {OPENOOD}, file 1lI1j0_fDDvjIt9JlWAw09X8ks-yrR_H1; MIT",
    "images_largescale": f"est. 10 GB besides ImageNet; {OPENOOD}, "
    "NINCO: zenodo.org/records/8013288; see there",
    "images_classic": f"est. 1 GB; {OPENOOD}, file 1OSz1m3hHfVWbRdmMwKbUzoU8Hg9UKcam; research only",
}


def wnids() -> list[str]:
    """The 1,000 wnids in class order (sorted), from timm's package data (timm itself would import torch)."""
    package = Path(importlib.util.find_spec("timm").origin).parent
    return (package / "data" / "_info" / "imagenet_synsets.txt").read_text().split()


def needs(profile: Profile) -> Iterator[Need]:
    """Folders and lists; class folders are counted, images are not (that would take minutes)."""
    root = Path(profile.data_root or "DATA_ROOT").expanduser()
    yield folder_need("data_root", profile.data_root, "give -p data_root=FOLDER, or write it in the profile")
    if root.is_dir():
        yield Need(None, f"{shutil.disk_usage(root).free / 2**30:.0f} GiB free at {root}")
    known, wanted = set(wnids()), profile.id_classes or 1000
    for part in ("imagenet/train", "imagenet/val"):
        names = {e.name for e in os.scandir(root / part) if e.is_dir()} if (root / part).is_dir() else set()
        if foreign := sorted(names - known):  # labels are positions: one foreign folder would shift them
            first = f"{len(foreign)} folders whose names are no ImageNet-1k wnid, first '{foreign[0]}'"
            remedy = "name each class folder by its wnid (n01440764, ...) and move all others away"
            yield Need(False, f"{root / part}: {first}", remedy, "WRONG")
        found = len(names & known)
        enough = found >= wanted if profile.id_classes else found == wanted
        yield Need(enough, f"{root / part}: {found} of {wanted} class folders", SOURCES[part])
    listed = ["val_imagenet.txt", *(row[2] for row in SETS.values() if row[2])]
    gone = [name for name in listed if not (root / LISTS / name).is_file()]
    what = f"{len(listed) - len(gone)} of {len(listed)} image lists in {root / LISTS}"
    yield Need(not gone, what + (f" (not {', '.join(gone)})" if gone else ""), SOURCES[LISTS])
    for name, (group, folder, _, count) in SETS.items():
        there = (root / folder).is_dir() and any(os.scandir(root / folder))
        yield Need(there, f"{name} ({group}, {count:,} images) in {root / folder}", SOURCES[folder])


def count(profile: Profile) -> int:
    """About how many images a run embeds with each model: the validation images and all OoD sets."""
    return 50_000 + sum(min(size, profile.ood_images or size) for *_, size in SETS.values())


def study(profile: Profile, classes: int) -> Study:
    """Train, validation and test images of the ID classes, and every OoD set.

    Of the val images OpenOOD's list takes 5,000 for id_val; the other 45,000 are id_test, so that no choice
    touches a test image. ``id_classes`` > 0 draws that many of the wnids found (for small copies).
    """
    from open_clip import IMAGENET_CLASSNAMES

    from ...models import transforms
    from ..images import files_set

    train_view, view = transforms(profile.model, profile.pretrained, profile.crop_scale)
    root, seed = Path(profile.data_root).expanduser(), profile.data_seed
    train, val = root / "imagenet/train", root / "imagenet/val"
    names, paths, labels = class_folders(train, "ImageNet train")
    val_names, val_paths, val_labels = class_folders(val, "ImageNet val")
    _check_wnids(profile, {train: names, val: val_names})
    kept = subset(len(names), classes or profile.id_classes, seed)

    def id_set(name: str, base: Path, files: list[Path], labels: np.ndarray, mask: np.ndarray) -> ImageSet:
        chosen = np.flatnonzero(mask & np.isin(labels, kept))
        files, positions = [files[i] for i in chosen], np.searchsorted(kept, labels[chosen])
        if name == "train":
            return files_set(name, "id", base, files, train_view, positions, seed)
        return files_set(name, "id", base, files, view, positions)

    held = {Path(path).name for path, _ in list_rows(root / LISTS / "val_imagenet.txt", "id_val")}
    is_held = np.array([p.name in held for p in val_paths])
    sets: dict[str, ImageSet] = {}
    for name, (group, folder, listed, _) in SETS.items():
        base = root / folder
        files = listed_images(root / LISTS / listed, base, name) if listed else images_below(base, name)
        files = [files[i] for i in subset(len(files), profile.ood_images, seed)]
        sets[name] = files_set(name, group, base, files, view)
    kept_wnids, position = [names[i] for i in kept], {w: i for i, w in enumerate(wnids())}
    return Study(
        class_names=[IMAGENET_CLASSNAMES[position[wnid]] for wnid in kept_wnids],
        synonyms=synonyms(profile.corpus, kept_wnids)
        if Path(profile.corpus).is_dir()
        else [[] for _ in kept],
        train=id_set("train", train, paths, labels, np.full(len(paths), True)),
        id_val=id_set("id_val", val, val_paths, val_labels, is_held),
        id_test=id_set("id_test", val, val_paths, val_labels, ~is_held),
        ood={name: s for name, s in sets.items() if s.group != "validation"},
        validation={name: s for name, s in sets.items() if s.group == "validation"},
        corpus=load_corpus(profile),
    )


def _check_wnids(profile: Profile, found: dict[Path, list[str]]) -> None:
    """UserError unless train and val hold exactly the same wnids: labels are positions in the sorted list."""
    known = set(wnids())
    wanted, why = known, "id_classes = 0 takes all"
    if profile.id_classes:
        wanted, why = set().union(*found.values()) & known, "train and val together"
    for folder, names in found.items():
        if foreign := sorted(set(names) - known):
            first = f"first {foreign[0]!r}; move them away"
            raise UserError(f"{folder} has {len(foreign)} folders that are no ImageNet-1k wnid, {first}")
        if gone := sorted(wanted - set(names)):
            raise UserError(
                f"{folder} has {len(names)} class folders, not {len(wanted)} ({why}); complete it, "
                f"{gone[0]!r} is missing for one"
            )
        if len(names) < profile.id_classes:
            raise UserError(
                f"{folder} has {len(names)} class folders, fewer than id_classes = {profile.id_classes}; "
                "complete train and val, or lower id_classes"
            )

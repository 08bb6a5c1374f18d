"""ImageNet-1k with the MOS and OpenOOD v1.5 sets below ``data_root`` (layout: docs/DATA.md)."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...config import Profile
from ...errors import UserError
from ..corpus import load_corpus, synonyms
from ..paths import class_folders, folder_need, images_below, listed, listed_images
from ..study import Need, Study, by_use, subset

PARTS = ("imagenet/train", "imagenet/val")
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
    yield from _class_needs(profile, root)
    lists = ["val_imagenet.txt", *(row[2] for row in SETS.values() if row[2])]
    gone = [name for name in lists if not (root / LISTS / name).is_file()]
    what = f"{len(lists) - len(gone)} of {len(lists)} image lists in {root / LISTS}"
    yield Need(not gone, what + (f" (not {', '.join(gone)})" if gone else ""), SOURCES[LISTS])
    for name, (group, folder, _, count) in SETS.items():
        there = any((root / folder).glob("*"))
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
    from ..images import class_set, files_set

    train_view, view = transforms(profile.model, profile.pretrained, profile.crop_scale)
    root, seed = Path(profile.data_root).expanduser(), profile.data_seed
    train, val = (root / part for part in PARTS)
    names, paths, labels = class_folders(train)
    _, val_paths, val_labels = class_folders(val)
    if lacking := [need for need in _class_needs(profile, root) if not need.ok]:
        raise UserError(f"{lacking[0].what}; {lacking[0].remedy}")
    kept = subset(len(names), classes or profile.id_classes, seed)
    held = {Path(path).name for path in listed(root / LISTS / "val_imagenet.txt")}
    is_held = np.array([p.name in held for p in val_paths])
    sets = []
    for name, (group, folder, list_file, _) in SETS.items():
        base = root / folder
        files = listed_images(root / LISTS / list_file, base) if list_file else images_below(base)
        files = files[subset(len(files), profile.ood_images, seed)]
        sets.append(files_set(name, group, base, files, view))
    kept_wnids, name_of = [names[i] for i in kept], dict(zip(wnids(), IMAGENET_CLASSNAMES, strict=True))
    has_wordnet = Path(profile.corpus).is_dir()
    return Study(
        class_names=[name_of[wnid] for wnid in kept_wnids],
        synonyms=synonyms(profile.corpus, kept_wnids) if has_wordnet else [[] for _ in kept],
        train=class_set("train", train, paths, labels, kept, train_view, seed),
        id_val=class_set("id_val", val, val_paths[is_held], val_labels[is_held], kept, view),
        id_test=class_set("id_test", val, val_paths[~is_held], val_labels[~is_held], kept, view),
        corpus=load_corpus(profile),
        **by_use(sets),
    )


def _class_needs(profile: Profile, root: Path) -> Iterator[Need]:
    """Whether train and val hold the same wnids, and enough of them: labels are positions in their list."""
    train, val = ({p.name for p in (root / part).glob("*") if p.is_dir()} for part in PARTS)
    known = set(wnids())
    wanted = (train | val) & known if profile.id_classes else known
    for name, found in zip(PARTS, (train, val), strict=True):
        if foreign := sorted(found - known):
            first = f"{len(foreign)} folders whose names are no ImageNet-1k wnid, first '{foreign[0]}'"
            remedy = "name each class folder by its wnid (n01440764, ...) and move all others away"
            yield Need(False, f"{root / name}: {first}", remedy, "WRONG")
        gone, most = sorted(wanted - found), max(len(wanted), profile.id_classes)
        has = f"{root / name}: {len(found & known)} of {most} class folders"
        lacks = f" ('{gone[0]}' is missing for one)" if gone else ""
        yield Need(len(found & known) == most, has + lacks, SOURCES[name])

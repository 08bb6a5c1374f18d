"""ImageNet-1k with the MOS and OpenOOD v1.5 sets below ``data_root`` (layout: docs/DATA.md)."""

import importlib.util
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...config import Profile
from ...errors import UserError
from ..corpus import load_corpus, synonyms
from ..paths import class_folders, folder_need, images_below, listed, listed_images, unopened
from ..study import Need, Study, by_use, refuse, subset

PARTS = {"imagenet/train": 1_281_167, "imagenet/val": 50_000}  # images expected
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


def _synsets() -> Path:
    """The file of the 1,000 wnids in class order (sorted): timm's package data (timm would import torch)."""
    return Path(importlib.util.find_spec("timm").origin).parent / "data/_info/imagenet_synsets.txt"


def wnids() -> list[str]:
    """The 1,000 wnids in class order (sorted)."""
    return _synsets().read_text().split()


def needs(profile: Profile) -> Iterator[Need]:
    """Every folder, list and set with the number of its images; the first and last image are decoded."""
    root = Path(profile.data_root or "DATA_ROOT").expanduser()
    yield folder_need("data_root", profile.data_root, "give -p data_root=FOLDER, or write it in the profile")
    if root.is_dir():
        yield Need(None, f"{shutil.disk_usage(root).free / 2**30:.0f} GiB free at {root}")
    yield from _class_needs(profile, root)
    yield from _val_needs(root)
    for name in SETS:
        yield _set_need(name, root)


def _files(name: str, root: Path) -> np.ndarray:
    """The images of an OoD set; UserError for a list that is missing, damaged or names a missing image."""
    _, folder, list_file, _ = SETS[name]
    place = root / folder
    return listed_images(root / LISTS / list_file, place) if list_file else images_below(place)


def _set_need(name: str, root: Path) -> Need:
    group, folder, list_file, expected = SETS[name]
    title, source = f"{name} ({group})", SOURCES[folder]
    if list_file and not (root / LISTS / list_file).is_file():
        return Need(False, f"{title}: image list {root / LISTS / list_file}", SOURCES[LISTS])
    try:
        return _images_need(f"{title} in {root / folder}", _files(name, root), expected, source)
    except UserError as fault:
        return Need(False, f"{title}: {fault}", f"{folder}: {source}", "WRONG")


def _images_need(title: str, files: np.ndarray, expected: int, source: str) -> Need:
    """Whether there are images, as many as there should be (0: not known), and two that can be decoded."""
    whole = expected in (0, len(files))
    what = f"{title}: {len(files):,}{f' of {expected:,}' if expected else ''} images"
    if not len(files):
        return Need(False, what, source)
    faults = unopened(files)
    said = "; its first or last image cannot be decoded: " + " and ".join(faults) if faults else ""
    if len(faults) == len({files[0], files[-1]}):
        return Need(False, what + said, "unpack it again", "WRONG")
    part = "" if whole else ", not the published number"
    return Need(True if whole and not faults else None, what + part + said)


def count(profile: Profile) -> int:
    """About how many images a run embeds with each model: the validation images and all OoD sets."""
    return 50_000 + sum(min(size, profile.ood_images or size) for *_, size in SETS.values())


def study(profile: Profile, classes: int) -> Study:
    """Train, validation and test images of the ID classes, and every OoD set.

    Of the val images OpenOOD's list takes 5,000 for id_val; the other 45,000 are id_test, so that no choice
    touches a test image, or, with ``id_test`` "all", all 50,000, as in the paper. ``id_classes`` > 0 draws
    that many of the wnids found (for small copies). UserError for the first of the needs that is not met.
    """
    from open_clip import IMAGENET_CLASSNAMES

    from ...models import transforms
    from ..images import class_set, files_set

    refuse(need for need in needs(profile) if need.ok is False)
    train_view, view = transforms(profile.model, profile.pretrained, profile.crop_scale)
    root, seed = Path(profile.data_root).expanduser(), profile.data_seed
    train, val = (root / part for part in PARTS)
    names, paths, labels = class_folders(train)
    _, val_paths, val_labels = class_folders(val)
    kept = subset(len(names), classes or profile.id_classes, seed)
    is_held = _held(root, val_paths)
    tested = ~is_held if profile.id_test == "held-out" else np.ones_like(is_held)
    sets = []
    for name, (group, folder, *_) in SETS.items():
        files = _files(name, root)
        files = files[subset(len(files), profile.ood_images, seed)]
        sets.append(files_set(name, group, root / folder, files, view))
    kept_wnids, name_of = [names[i] for i in kept], dict(zip(wnids(), IMAGENET_CLASSNAMES, strict=True))
    has_wordnet = Path(profile.corpus).is_dir()
    return Study(
        class_names=[name_of[wnid] for wnid in kept_wnids],
        synonyms=synonyms(profile.corpus, kept_wnids) if has_wordnet else [[] for _ in kept],
        train=class_set("train", train, paths, labels, kept, train_view, seed),
        id_val=class_set("id_val", val, val_paths[is_held], val_labels[is_held], kept, view),
        id_test=class_set("id_test", val, val_paths[tested], val_labels[tested], kept, view),
        corpus=load_corpus(profile),
        **by_use(sets),
    )


def _class_needs(profile: Profile, root: Path) -> Iterator[Need]:
    """Whether train and val hold the same wnids, and enough of them: labels are positions in their list."""
    train, val = ({p.name for p in (root / part).glob("*") if p.is_dir()} for part in PARTS)
    known = set(wnids())
    wanted = (train | val) & known if profile.id_classes else known
    for (name, images), found in zip(PARTS.items(), (train, val), strict=True):
        if foreign := sorted(found - known):
            first = f"{len(foreign)} folders whose names are no ImageNet-1k wnid, first '{foreign[0]}'"
            remedy = "name each class folder by its wnid (n01440764, ...) and move all others away"
            yield Need(False, f"{root / name}: {first}", remedy, "WRONG")
        gone, most = sorted(wanted - found), max(len(wanted), profile.id_classes)
        has = f"{root / name}: {len(found & known)} of {most} class folders"
        if not found and (flat := len([p for p in (root / name).glob("*.JPEG")])):
            what = f"{root / name}: {flat:,} images lie flat, as the tar unpacks them, not in class folders"
            yield Need(False, what, _sorting(root), "WRONG")
        elif len(found & known) != most:
            yield Need(False, has + (f" ('{gone[0]}' is missing for one)" if gone else ""), SOURCES[name])
        elif found and not foreign:
            try:
                files = class_folders(root / name)[1]
            except UserError as fault:
                yield Need(False, str(fault), SOURCES[name], "WRONG")
            else:
                expected = images if most == len(known) else 50 * most if "val" in name else 0
                yield _images_need(has, files, expected, SOURCES[name])


def _sorting(root: Path) -> str:
    """The two lines of shell that move val's images into class folders, by OpenOOD's lists."""
    lists = " ".join(shlex.quote(str(root / LISTS / f"{part}_imagenet.txt")) for part in ("val", "test"))
    wnid = 'NR==FNR {w[FNR-1]=$1; next} {n=split($1,p,"/"); print w[$2], p[n]}'
    move = "while read d f; do mkdir -p $d && mv $f $d/; done"
    lines = f"cd {shlex.quote(str(root / 'imagenet/val'))}", f"awk '{wnid}' {_synsets()} {lists} | {move}"
    return "sort them with these two lines:\n" + "\n".join(lines)


def _held(root: Path, paths: np.ndarray) -> np.ndarray:
    """(n,) bool: which of val's images OpenOOD's list takes for validation."""
    held = {os.path.basename(path) for path in listed(root / LISTS / "val_imagenet.txt")}
    return np.array([os.path.basename(path) in held for path in paths], dtype=bool)


def _val_needs(root: Path) -> Iterator[Need]:
    """Whether OpenOOD's list of validation images names some of val's, and leaves some for the test."""
    file = root / LISTS / "val_imagenet.txt"
    if not file.is_file():
        yield Need(False, f"id_val: image list {file}", SOURCES[LISTS])
        return
    try:
        names, paths = listed(file), images_below(root / "imagenet/val")
        found = int(_held(root, paths).sum())
    except UserError as fault:
        yield Need(False, str(fault), SOURCES[LISTS], "WRONG")
        return
    what = f"id_val: {found:,} of the {len(names):,} images that {file} names"
    if not len(paths) or (names and 0 < found < len(paths)):
        yield Need(found == len(names) or None, what)
        return
    first = f"; it names '{os.path.basename(names[0])}'" if names else ""
    both = f"{first}, imagenet/val holds '{os.path.basename(paths[0])}'"
    both = both if found < len(paths) else ", which are all of imagenet/val"
    remedy = "keep ILSVRC's file names in imagenet/val, or name a part of its files in that list"
    yield Need(False, what + both, remedy, "WRONG")

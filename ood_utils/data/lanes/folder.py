"""A user's own images: ``data_root`` in ImageFolder layout, ``ood_roots`` folders of anything else."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...config import Profile
from ...errors import UserError
from ..corpus import load_corpus
from ..paths import class_folders, copies, folder_need, images_below, overlaps
from ..study import Need, Study, by_use, check_classes, subset


def needs(profile: Profile) -> Iterator[Need]:
    """The ID folder and at least one folder of OoD images."""
    remedy = "give -p data_root=FOLDER, or write it in a copy of the profile"
    yield folder_need("data_root", profile.data_root, remedy)
    for name, root in profile.ood_roots.items():
        yield folder_need(f"ood_roots {name}", root, "correct the folder in the profile")
    if not profile.ood_roots:
        remedy = "give -p 'ood_roots={name: FOLDER}', or write it in the profile"
        yield Need(False, "ood_roots names no OoD set", remedy)
    yield from overlaps(profile.data_root, profile.ood_roots)
    if os.path.isdir(profile.data_root):
        try:
            names, _, _, (_, labels) = _split(Path(profile.data_root), profile.data_seed)
            check_classes(names, labels)
        except UserError as fault:
            what, _, remedy = str(fault).rpartition("; ")
            yield Need(False, what, remedy, "WRONG")


def count(profile: Profile) -> int:
    """About how many images a run embeds with each model: the files below the folders."""
    roots = [Path(root).expanduser() for root in (profile.data_root, *profile.ood_roots.values()) if root]
    return sum(len(files) for root in roots for _, _, files in os.walk(root))


def study(profile: Profile, classes: int) -> Study:
    """``data_root`` holds train/, val/, test/, or class folders that are split 60/20/20 by the data seed."""
    from ...models import transforms
    from ..images import check_apart, class_set, files_set

    train_view, view = transforms(profile.model, profile.pretrained, profile.crop_scale)
    root, seed = Path(profile.data_root).expanduser(), profile.data_seed
    if not profile.data_root:
        raise UserError("data_root is empty; set it to the folder of your ID images (one sub-folder a class)")
    names, train, val, test = _split(root, seed)
    if len(names) < 2:
        raise UserError(f"data_root {root} has {len(names)} class folders; give at least 2 ID classes")
    kept = subset(len(names), classes or profile.id_classes, seed)
    sets = []
    for name, folder in profile.ood_roots.items():
        below = Path(folder).expanduser()
        files = images_below(below)
        files = files[subset(len(files), profile.ood_images, seed)]
        sets.append(files_set(name, profile.ood_groups.get(name, "far"), below, files, view))
    others = by_use(sets)
    if not others["ood"]:
        raise UserError("ood_roots names no test set; give at least one folder of OoD images")
    study = Study(
        class_names=[names[i].replace("_", " ") for i in kept],
        synonyms=[[] for _ in kept],
        train=class_set("train", root, *train, kept, train_view, seed),
        id_val=class_set("id_val", root, *val, kept, view),
        id_test=class_set("id_test", root, *test, kept, view),
        corpus=load_corpus(profile),
        **others,
    )
    check_apart([study.train, *study.sets.values()])
    return study


def _split(root: Path, seed: int) -> tuple:
    """Class names, then (paths, labels) of train, val and test: as the folders say, or 60/20/20."""
    if (root / "train").is_dir():
        found = [class_folders(root / part) for part in ("train", "val", "test")]
        if len({tuple(names) for names, *_ in found}) > 1:
            raise UserError(f"train, val and test of {root} have different class folders; give all to each")
        return found[0][0], *(part[1:] for part in found)
    names, paths, labels = class_folders(root)
    place = np.random.default_rng(seed).permutation(len(paths)) / max(1, len(paths))
    part_of = np.digitize(place, [0.6, 0.8])[copies(paths)]  # the same image again stays in its part
    return names, *((paths[part_of == k], labels[part_of == k]) for k in range(3))

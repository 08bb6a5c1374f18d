"""A user's own images: ``data_root`` in ImageFolder layout, ``ood_roots`` folders of anything else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UserError
from ..corpus import load_corpus
from ..paths import class_folders, folder_need, images_below
from ..study import ImageSet, Need, Study, subset

if TYPE_CHECKING:
    from ...config import Profile

PARTS = ("train", "val", "test")


def needs(profile: Profile) -> Iterator[Need]:
    """The ID folder and at least one folder of OoD images."""
    remedy = "give -p data_root=FOLDER, or write it in a copy of the profile"
    yield folder_need("data_root", profile.data_root, remedy)
    for name, root in profile.ood_roots.items():
        yield folder_need(f"ood_roots {name}", root, "correct the folder in the profile")
    if not profile.ood_roots:
        remedy = "give -p 'ood_roots={name: FOLDER}', or write it in the profile"
        yield Need(False, "ood_roots names no OoD set", remedy)


def count(profile: Profile) -> int:
    """About how many images a run embeds with each model: the files below the folders."""
    roots = [Path(root).expanduser() for root in (profile.data_root, *profile.ood_roots.values()) if root]
    return sum(len(files) for root in roots for _, _, files in os.walk(root))


def study(profile: Profile, classes: int) -> Study:
    """``data_root`` holds train/, val/, test/, or class folders that are split 60/20/20 by the data seed."""
    from ...models import transforms
    from ..images import files_set

    train_view, view = transforms(profile.model, profile.pretrained, profile.crop_scale)
    root, seed = Path(profile.data_root).expanduser(), profile.data_seed
    if not profile.data_root:
        raise UserError("data_root is empty; set it to the folder of your ID images (one sub-folder a class)")
    names, parts = _split(root, seed)
    if len(names) < 2:
        raise UserError(f"{root} has {len(names)} class folders; OoD detection needs at least 2 ID classes")
    kept = subset(len(names), classes or profile.id_classes, seed)

    def id_set(name: str, part: str) -> ImageSet:
        paths, labels = parts[part]
        chosen = np.flatnonzero(np.isin(labels, kept))
        files, positions = [paths[i] for i in chosen], np.searchsorted(kept, labels[chosen])
        if part == "train":
            return files_set(name, "id", root, files, train_view, positions, seed)
        return files_set(name, "id", root, files, view, positions)

    sets: dict[str, ImageSet] = {}
    for name, folder in profile.ood_roots.items():
        below = Path(folder).expanduser()
        paths = images_below(below, f"ood_roots[{name}]")
        paths = [paths[i] for i in subset(len(paths), profile.ood_images, seed)]
        sets[name] = files_set(name, profile.ood_groups.get(name, "far"), below, paths, view)
    ood = {name: s for name, s in sets.items() if s.group != "validation"}
    if not ood:
        raise UserError("ood_roots names no test set; give at least one folder of OoD images")
    return Study(
        class_names=[names[i].replace("_", " ") for i in kept],
        synonyms=[[] for _ in kept],
        train=id_set("train", "train"),
        id_val=id_set("id_val", "val"),
        id_test=id_set("id_test", "test"),
        ood=ood,
        validation={name: s for name, s in sets.items() if s.group == "validation"},
        corpus=load_corpus(profile),
    )


def _split(root: Path, seed: int) -> tuple[list[str], dict[str, tuple[list[Path], np.ndarray]]]:
    """Class names, and part -> (paths, labels): as the folders say, or 60/20/20."""
    if (root / "train").is_dir():
        found = {part: class_folders(root / part, part) for part in PARTS}
        if len({tuple(names) for names, *_ in found.values()}) > 1:
            raise UserError(
                f"{root}: train, val and test have different class folders; give each class to all three"
            )
        return found["train"][0], {part: (paths, labels) for part, (_, paths, labels) in found.items()}
    names, paths, labels = class_folders(root, "data_root")
    place = np.random.default_rng(seed).permutation(len(paths)) / max(1, len(paths))
    part_of = np.digitize(place, [0.6, 0.8])
    rows = {part: np.flatnonzero(part_of == k) for k, part in enumerate(PARTS)}
    return names, {part: ([paths[i] for i in index], labels[index]) for part, index in rows.items()}

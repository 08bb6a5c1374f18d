"""A user's own images: ``data_root`` holds a folder per ID class, ``ood_roots`` folders of anything else."""

import csv
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...config import Profile
from ...errors import UserError, nearest, quoted
from ..corpus import load_corpus
from ..paths import class_folders, copies, folder_need, images_below, overlaps, printable
from ..study import Need, Study, by_use, check_classes, of_classes, subset, wrong

PARTS = ("train", "val", "test")
HELD_OUT, VALIDATION = "held_out", "val_"
SMOKE = (
    "GlyphCLIP knows only glyphs: on photographs its numbers mean nothing",
    "give an open_clip model (-p model=ViT-B-32-quickgelu pretrained=openai, downloaded once) or local "
    "weights, or -p smoke_test=true to try the machinery with it",
)


@dataclass(frozen=True)
class Listing:
    """Files of a study by use; ``out``: set -> (files, kinds drawn together or None); notes: sentences."""

    names: list[str]
    synonyms: list[list[str]]
    parts: list[tuple[np.ndarray, np.ndarray]]
    out: dict[str, tuple[np.ndarray, np.ndarray | None]]
    notes: list[str]


def needs(profile: Profile) -> Iterator[Need]:
    """The folders, what is in them, and a model that knows photographs."""
    remedy = "give -p data_root=FOLDER, or write it in a copy of the profile"
    correct = "correct the folder in the profile"
    folders = [folder_need("data_root", profile.data_root, remedy)]
    folders += [folder_need(f"ood_roots {name}", at, correct) for name, at in profile.ood_roots.items()]
    yield from folders
    yield from overlaps(profile.data_root, profile.ood_roots)
    if profile.model == "GlyphCLIP" and not profile.smoke_test:
        yield Need(False, *SMOKE, "WRONG")
    if not all(folder.ok for folder in folders):
        return
    try:
        found = listing(profile)
    except UserError as fault:
        yield wrong(fault)
    else:
        both = zip(PARTS, found.parts, strict=True), found.out.items()
        parts, sets = (", ".join(f"{name} {len(paths)}" for name, (paths, _) in one) for one in both)
        yield Need(True, f"{len(found.names)} ID classes, images: {parts}; OoD: {sets}")
        yield from (Need(None, note) for note in found.notes)


def count(profile: Profile) -> int:
    """How many images a run embeds with each model; 0 where the folders do not fit."""
    try:
        found = listing(profile)
    except UserError:
        return 0
    return sum(len(paths) for paths, _ in (*found.parts[1:], *found.out.values()))


def study(profile: Profile, classes: int) -> Study:
    """``data_root`` holds train/, val/, test/, or class folders, each split 60/20/20 by the data seed.

    ``held_out`` classes play OoD; without ``ood_roots`` a fifth of them do. Where no OoD set serves for
    choices, half of each OoD folder does. ``notes`` say so. UserError for what does not fit.
    """
    from ...models import transforms
    from ..images import class_set, files_set

    train_view, view = transforms(profile.model, profile.pretrained, profile.crop_scale)
    root, seed, found = Path(profile.data_root).expanduser(), profile.data_seed, listing(profile)
    kept = subset(len(found.names), classes or profile.id_classes, seed)
    sets = []
    for name, (files, kinds) in found.out.items():
        base = Path(profile.ood_roots.get(name.removeprefix(VALIDATION), root)).expanduser()
        made = files_set(name, _group(profile, name), base, files, view)
        sets.append(made if kinds is None else replace(made, clusters=kinds))
    train, val, test = found.parts
    return Study(
        class_names=[found.names[i] for i in kept],
        synonyms=[found.synonyms[i] for i in kept],
        train=class_set("train", root, *train, kept, train_view, seed),
        id_val=class_set("id_val", root, *val, kept, view),
        id_test=class_set("id_test", root, *test, kept, view),
        corpus=load_corpus(profile),
        notes=found.notes,
        **by_use(sets),
    )


def _group(profile: Profile, name: str) -> str:
    if name in profile.ood_groups:
        return profile.ood_groups[name]
    return "validation" if name.startswith(VALIDATION) else "near" if name == HELD_OUT else "far"


def listing(profile: Profile) -> Listing:
    """Which file is what; UserError for a folder, class or list of names that does not fit."""
    root, rng = Path(profile.data_root).expanduser(), np.random.default_rng(profile.data_seed)
    if not profile.data_root:
        raise UserError("data_root is empty; set it to the folder of your ID images (one sub-folder a class)")
    folders, parts, notes = _split(root, rng)
    _say_nested(folders, parts, notes)
    held = profile.held_out
    if held is None:
        held = 0 if profile.ood_roots else max(2, round(len(folders) / 5))
    if len(folders) - held < 2:
        why = f", of which {held} would be held out to play OoD" if held and folders else ""
        other = "" if not held else ", or a smaller held_out" if profile.held_out else ", or ood_roots"
        remedy = f"give at least {2 + held - len(folders)} more{other}"
        raise UserError(f"data_root {root} has {len(folders) or 'no'} class folders{why}; {remedy}")
    chosen = rng.permutation(len(folders))[:held]
    out = _held_out(parts, chosen, folders, notes)
    for name, folder in profile.ood_roots.items():
        if name == HELD_OUT or name.startswith(VALIDATION):  # would take the place of such a set
            fault = f"{HELD_OUT} and names that begin with {VALIDATION} are the lane's own"
            raise UserError(f"OoD set {name!r}: {fault}; rename it in ood_roots")
        files = images_below(Path(folder).expanduser())
        if not len(files):
            raise UserError(
                f"OoD set {name!r} is empty: {folder} is missing or has no image; correct ood_roots"
            )
        if len(files) < 2:  # an interval of one image would have no width
            raise UserError(f"OoD set {name!r} has one image, {printable(files[0])}; give two or more")
        out[name] = files, _kinds(files)
    if "validation" not in {_group(profile, name) for name in out}:
        out = _halves(out, rng, notes)
    if all(_group(profile, name) == "validation" for name in out):
        raise UserError("every OoD set is of group validation; give at least one for the test in ood_roots")
    drawn = {}
    for name, (files, kinds) in out.items():
        some = subset(len(files), profile.ood_images, profile.data_seed)
        drawn[name] = files[some], None if kinds is None else kinds[some]
        if len(some) < len(files):
            notes.append(f"Of {name} {len(some):,} of {len(files):,} images are used (ood_images).")
    kept = np.setdiff1d(np.arange(len(folders)), chosen)
    parts = [of_classes(part, kept) for part in parts]
    own = [folders[i] for i in kept]
    check_classes(own, parts[2][1])
    _say_copies([*zip(PARTS, parts, strict=True), *drawn.items()], notes)
    names, synonyms = _names(profile.names_file, own, folders)
    return Listing(names, synonyms, parts, drawn, notes)


def _split(root: Path, rng: np.random.Generator) -> tuple[list[str], list, list[str]]:
    """Class folders, (paths, labels) of train, val and test, and how they came about."""
    if (root / "train").is_dir():
        found = [class_folders(root / part) for part in PARTS]
        if len({tuple(names) for names, *_ in found}) > 1:
            raise UserError(f"train, val and test of {root} need the same class folders; give all to each")
        return found[0][0], [part[1:] for part in found], ["Split: by the folders train, val and test."]
    names, paths, labels = class_folders(root)
    part_of = np.empty(len(labels), int)
    for k, name in enumerate(names):  # each class by itself, so that all parts have all classes
        rows = np.flatnonzero(labels == k)
        # the same image again stays in its part
        same = np.unique(copies(paths[rows]), return_inverse=True)[1]
        if (count := same.max() + 1) < 3:
            raise UserError(f"class folder {root / name} holds {count} different images; give it 3 or more")
        fifth = max(1, count // 5)
        drawn = rng.permutation(np.repeat([0, 1, 2], [count - 2 * fifth, fifth, fifth]))
        part_of[rows] = drawn[same]
    split = [(paths[part_of == k], labels[part_of == k]) for k in range(3)]
    return names, split, ["Split: each class 60/20/20 into train, validation and test, drawn by data_seed."]


def _say_nested(folders: Sequence[str], parts: list, notes: list[str]) -> None:
    """A note naming class folders that hold folders, which may have been meant as the classes."""
    every = [row for part in parts for row in zip(*part, strict=True)]
    inner = {(folders[k], os.path.basename(os.path.dirname(path))) for path, k in every}
    if nested := sorted({name for name, place in inner if place != name}):
        which = ", ".join(nested[:10]) + f" and {len(nested) - 10:,} more" * (len(nested) > 10)
        notes.append(f"Class folders that hold folders, whose images count as the class: {which}.")


def _held_out(parts: list, chosen: np.ndarray, folders: Sequence[str], notes: list[str]) -> dict:
    """The sets that held-out classes make: the first half, rounded up, for the test, the rest for choices."""
    out = {}
    half = math.ceil(len(chosen) / 2)
    for name, some in ((HELD_OUT, chosen[:half]), (VALIDATION + HELD_OUT, chosen[half:])):
        if len(some):
            held = [of_classes(part, np.sort(some)) for part in parts]
            out[name] = tuple(np.concatenate(column) for column in zip(*held, strict=True))
            use = "choices" if name.startswith(VALIDATION) else "the test"
            which = ", ".join(sorted(folders[i] for i in some)[:10])
            which += f" and {len(some) - 10:,} more (table own_split)" * (len(some) > 10)
            notes.append(f"Held out, so unknown to the models, to play OoD in {use}: {which}.")
    return out


def _halves(out: dict, rng: np.random.Generator, notes: list[str]) -> dict:
    """Each set as two: half its images for choices, half for the test."""
    split = {}
    for name, (files, kinds) in out.items():
        first = np.zeros(len(files), bool)
        first[rng.permutation(len(files))[: len(files) // 2]] = True
        for part, rows in ((name, ~first), (VALIDATION + name, first)):
            split[part] = files[rows], None if kinds is None else kinds[rows]
    notes.append(
        "No OoD set is of group validation: half of each folder's images serves for choices, the other half "
        "for the test. OoD of another kind may be told apart worse."
    )
    return split


def _say_copies(sets: Sequence[tuple[str, tuple[np.ndarray, Any]]], notes: list[str]) -> None:
    """A note where the bytes of one image lie in two sets."""
    both = [(name, path) for name, (files, _) in sets for path in files]
    first = copies([path for _, path in both])
    twice = [(both[i], both[k]) for k, i in enumerate(first) if both[i][0] != both[k][0]]
    if twice:
        (one, path), (other, again) = twice[0]
        notes.append(
            f"The same image in two sets, byte for byte, {len(twice)} times; the first: {printable(path)} "
            f"({one}) and {printable(again)} ({other}). Leave each image in one set."
        )


def _kinds(files: np.ndarray) -> np.ndarray | None:
    """(n,) the folder of each file, as a number, where there are several: its images are alike."""
    kinds = np.unique([os.path.dirname(path) for path in files], return_inverse=True)[1]
    return kinds if kinds.any() else None


def _names(file: str, folders: list[str], known: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Class names and their synonyms: of a CSV file (folder, name, synonyms a | b), else the folders' own."""
    given: dict[str, tuple[str, list[str]]] = {}
    if file:
        try:
            with Path(file).expanduser().open(encoding="utf-8-sig", newline="") as lines:
                rows = list(csv.DictReader(lines))
        except (OSError, UnicodeDecodeError, csv.Error) as fault:
            why = f"cannot be read ({getattr(fault, 'strerror', fault)}); give a UTF-8 CSV file"
            raise UserError(f"names_file {Path(file).expanduser().absolute()} {why}") from None
        if not rows or not {"folder", "name"} <= rows[0].keys():
            found = f"its columns are {quoted([*rows[0]])}" if rows else "it has no line below its first"
            remedy = (
                "write folder,name,synonyms in its first line, with commas, and then a line for each class"
            )
            raise UserError(f"names_file {file} lacks the columns folder and name: {found}; {remedy}")
        for row in rows:
            if row["folder"] not in known:
                raise UserError(
                    f"names_file {file} names the folder {row['folder']!r}, which is not in data_root"
                    f"{nearest(str(row['folder']), known)}"
                )
            if not (row["name"] or "").strip() or None in row or row["folder"] in given:
                fault = f"the folder {row['folder']!r} has no name, two lines, or more than three columns"
                raise UserError(f"names_file {file}: {fault}; write folder,name,synonym | synonym")
            words = (row.get("synonyms") or "").split("|")
            given[row["folder"]] = row["name"].strip(), [word.strip() for word in words if word.strip()]
    both = [given.get(folder, (folder.replace("_", " "), [])) for folder in folders]
    name, count = Counter(name.casefold() for name, _ in both).most_common(1)[0]
    if count > 1:
        raise UserError(f"names_file {file}: {count} classes are called {name!r}; give them different names")
    return [name for name, _ in both], [synonyms for _, synonyms in both]

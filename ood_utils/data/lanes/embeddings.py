"""Image and text embeddings that a user already has: ``data_root`` is a study.yaml or its folder."""

from collections.abc import Iterator

import numpy as np

from ...config import Profile
from ...errors import UserError
from ...vectors import ID_SETS, Rows, VectorStudy
from ..corpus import load_corpus
from ..study import ImageSet, Need, Study, by_use, check_classes, digest, subset


def needs(profile: Profile) -> Iterator[Need]:
    """The files that study.yaml names; where all are there they are read, and the sets are counted."""
    remedy = "give -p data_root=FOLDER, or write it in a copy of the profile; docs/DATA.md has the layouts"
    try:
        given = VectorStudy(profile.data_root)
    except UserError as fault:
        yield Need(False, str(fault), remedy)
        return
    yield Need(True, f"{given.path}: embeddings of {given.file.model}")
    gone = [r for r in given.references() if not given.place(r)[0].exists()]
    for reference in gone:
        yield Need(False, f"{reference}: {given.place(reference)[0]}", "put it there or correct study.yaml")
    if gone:
        return
    try:
        found = _rows(given, profile)
        _check_prompts(given, profile)
        check_classes(given.class_names, found["id_test"].labels)
        count, words = len(given.texts()[0]), len(given.corpus[0])
    except UserError as fault:
        yield Need(False, str(fault), "correct study.yaml or the files that it names", "WRONG")
        return
    sizes = ", ".join(f"{name} {len(rows.labels):,} ({rows.group})" for name, rows in found.items())
    yield Need(True, f"{len(given.classes)} classes, {words:,} words, {count:,} texts; {sizes}")
    if unused := given.unused(found.values()):
        yield Need(None, f"{unused:,} rows of {given.file.images} are in no set")
    if not given.file.train:
        shares = "/".join(f"{100 * share:g}" for share in given.file.split)
        yield Need(None, f"one ID set: split {shares} % by class and data_seed into {', '.join(ID_SETS)}")


def reads(profile: Profile) -> list[str]:
    """The files and folders that study.yaml names; none where there is no study."""
    try:
        given = VectorStudy(profile.data_root)
    except UserError:
        return []
    return [str(given.place(reference)[0].resolve()) for reference in given.references()]


def count(profile: Profile) -> int:
    """How many rows a run embeds with each model, all sets but the training set."""
    try:
        found = _rows(VectorStudy(profile.data_root), profile)
    except UserError:
        return 0
    return sum(len(rows.labels) for name, rows in found.items() if name != "train")


def study(profile: Profile, classes: int) -> Study:
    """The study of a study.yaml, its embeddings as vectors of length 1. Errors as ``vectors.VectorStudy``."""
    if profile.corpus != "names":
        raise UserError(f"corpus = {profile.corpus!r}: study.yaml has the words; leave corpus = names")
    given, seed = VectorStudy(profile.data_root), profile.data_seed
    _check_prompts(given, profile)
    kept = subset(len(given.classes), profile.id_classes, seed)
    kept = kept[subset(len(kept), classes, seed)]
    found = _rows(given, profile)
    for name in ID_SETS:
        rows = found[name].take(np.flatnonzero(np.isin(found[name].labels, kept)))
        if name == "train":
            rows = rows.take(subset(len(rows.labels), profile.train_images, seed))
            if len(void := np.setdiff1d(kept, rows.labels)):
                fault = f"class {given.class_names[void[0]]!r} has no row in the training set"
                raise UserError(f"{given.path}: {fault}; correct its label or take the class out")
        found[name] = rows._replace(labels=np.searchsorted(kept, rows.labels))
    sets = {name: _image_set(name, rows) for name, rows in found.items()}
    return Study(
        class_names=[given.class_names[k] for k in kept],
        synonyms=[given.file.synonyms.get(given.class_names[k], []) for k in kept],
        corpus=load_corpus(profile, given.corpus[0]),
        **{name: sets.pop(name) for name in ID_SETS},
        **by_use(sets.values()),
    )


def _rows(given: VectorStudy, profile: Profile) -> dict[str, Rows]:
    """Every set by name, OoD sets cut to ``ood_images``."""
    ood = given.ood_sets()
    for name, rows in ood.items():
        ood[name] = rows.take(subset(len(rows.labels), profile.ood_images, profile.data_seed))
    return given.id_sets(profile.data_seed) | ood


def _check_prompts(given: VectorStudy, profile: Profile) -> None:
    """UserError where the profile would ask for texts by other prompts than the study's."""
    for name in ("prompt", "negative_prompt", "adjective_prompt"):
        own, asked = getattr(given.file, name), getattr(profile, name)
        used = name != "adjective_prompt" or any(part == "adj" for _, part in given.corpus[0])
        if used and own != asked:
            fault = f"has {name} {own!r}, the profile {asked!r}"
            raise UserError(f"{given.path} {fault}; write the study's in the profile, or correct the study")


def _image_set(name: str, rows: Rows) -> ImageSet:
    from ..vector_rows import VectorRows

    dataset = VectorRows(rows.images, rows.labels)
    fingerprint = digest(name, rows.images.shape, rows.images, rows.labels)
    return ImageSet(name, rows.group, dataset, rows.labels, rows.ids, fingerprint, rows.clusters)

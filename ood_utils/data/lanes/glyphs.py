"""The embedded glyph world: letters are ID; other glyphs, digits and photographs OoD. Needs no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..corpus import load_corpus
from ..study import ImageSet, Need, Study, subset

if TYPE_CHECKING:
    from ...config import Profile


def needs(profile: Profile) -> Iterator[Need]:
    """Nothing: fonts come with matplotlib, the model with the package."""
    yield from ()


def count(profile: Profile) -> int:
    """About how many images a run embeds with each model: an upper bound of all sets with their views."""
    return 20_000


def study(profile: Profile, classes: int) -> Study:
    """Views of the world's drawings, and two sets unseen by pretraining; test faces are never trained on."""
    from .. import glyph_sets, glyph_world

    world, known, seed = glyph_world.world(), glyph_world.concepts(), profile.data_seed
    groups = [known.classes[i] for i in subset(len(known.classes), profile.id_classes, seed)]
    if classes:
        groups = [groups[i] for i in subset(len(groups), classes, seed)]
    label = {c: k for k, group in enumerate(groups) for c in group}
    first = [group[0] for group in groups]

    def id_set(name: str, characters: Sequence[int], faces: Sequence[str], repeats: int) -> ImageSet:
        drawings = world.pick(characters, faces)
        if name == "train":
            drawings = drawings[subset(len(drawings), profile.train_images, seed)]
        drawings = np.repeat(drawings, repeats)
        return glyph_sets.drawn(
            name, "id", drawings, np.array([label[c] for c in world.character[drawings]]), seed
        )

    def ood_set(name: str, group: str) -> ImageSet:
        faces = glyph_world.VALIDATION_FACES if group == "validation" else glyph_world.TEST_FACES
        drawings = world.pick(known.sets[name], faces)
        drawings = drawings[subset(len(drawings), profile.ood_images, seed)]
        return glyph_sets.drawn(name, group, drawings, np.full(len(drawings), -1), seed)

    sets = {name: ood_set(name, group) for name, group in glyph_world.GROUPS.items() if group != "unseen"}
    ood = {name: s for name, s in sets.items() if s.group != "validation"}
    unseen = (glyph_sets.digits(profile.ood_images, seed), glyph_sets.photos(profile.ood_images, seed))
    return Study(
        class_names=[world.names[c] for c in first],
        synonyms=[[world.names[c] for c in group[1:]] for group in groups],
        train=id_set("train", sorted(label), glyph_world.TRAIN_FACES, 1),
        id_val=id_set("id_val", first, glyph_world.VALIDATION_FACES, profile.id_views),
        id_test=id_set("id_test", first, glyph_world.TEST_FACES, profile.id_views),
        ood=ood | {s.name: s for s in unseen},
        validation={name: s for name, s in sets.items() if s.group == "validation"},
        corpus=load_corpus(profile, [(name, "noun") for name in world.names]),
    )

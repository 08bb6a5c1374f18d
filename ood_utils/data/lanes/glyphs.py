"""The embedded glyph world: letters are ID; other glyphs, digits and photographs OoD. Needs no files."""

from collections.abc import Iterator, Sequence

import numpy as np

from ...config import Profile
from ..corpus import load_corpus
from ..study import ImageSet, Need, Study, by_use, subset


def needs(profile: Profile) -> Iterator[Need]:
    """Nothing: fonts come with matplotlib, the model with the package."""
    yield from ()


def count(profile: Profile) -> int:
    """About how many images a run embeds with each model: an upper bound of all sets with their views."""
    return 20_000


def study(profile: Profile, classes: int) -> Study:
    """Views of the world's drawings, and two sets unseen by pretraining; test faces are never trained on."""
    from ..glyph_sets import digits, drawn, photos, validation_photos
    from ..glyph_world import GROUPS, TEST_FACES, TRAIN_FACES, VALIDATION_FACES, concepts, world

    known, names, seed = concepts(), world().names, profile.data_seed
    kept = subset(len(known.classes), profile.id_classes, seed)
    kept = kept[subset(len(kept), classes, seed)]
    groups = [known.classes[i] for i in kept]
    label = {c: k for k, group in enumerate(groups) for c in group}
    first = [group[0] for group in groups]

    def views(
        name: str, characters: Sequence[int], faces: Sequence[str], most: int = 0, repeats: int = 1
    ) -> ImageSet:
        drawings = world().pick(characters, faces)
        drawings = np.repeat(drawings[subset(len(drawings), most, seed)], repeats)
        labels = np.array([label.get(c, -1) for c in world().character[drawings]])
        return drawn(name, GROUPS.get(name, "id"), drawings, labels, seed)

    faces = dict.fromkeys(GROUPS.values(), TEST_FACES) | {"validation": VALIDATION_FACES}
    most, named = profile.ood_images, [name for name in GROUPS if name in known.sets]
    sets = [views(name, known.sets[name], faces[GROUPS[name]], most) for name in named]
    return Study(
        class_names=[names[c] for c in first],
        synonyms=[[names[c] for c in (*known.classes[i][1:], *known.twins[i])] for i in kept],
        train=views("train", sorted(label), TRAIN_FACES, profile.train_images),
        id_val=views("id_val", first, VALIDATION_FACES, repeats=profile.id_views),
        id_test=views("id_test", first, TEST_FACES, repeats=profile.id_views),
        corpus=load_corpus(profile, [(name, "noun") for name in names]),
        **by_use([*sets, digits(most, seed), photos(most, seed), validation_photos(most, seed)]),
    )

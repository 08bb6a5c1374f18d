"""The glyph world's datasheet: ``python -m ood_utils.tools.datasheet`` writes docs/DATASHEET.md."""

from collections import Counter

from ..config import PACKAGE, ROOT
from ..data import glyph_sets
from ..data import glyph_world as glyphs
from ..files import atomic_write


def datasheet() -> str:
    """The datasheet as Markdown (assets/datasheet.md filled in): counts, faces, licences, overlaps."""
    world, known = glyphs.world(), glyphs.concepts()

    def names(characters: tuple[int, ...], between: str) -> str:
        return between.join(world.names[c] for c in characters)

    rows = []
    first = {"ID classes, first name of each": tuple(group[0] for group in known.classes)}
    for name, characters in (first | known.sets).items():
        group = glyphs.GROUPS.get(name, "id")
        faces = glyphs.VALIDATION_FACES if group == "validation" else glyphs.TEST_FACES
        rows.append(f"| {name} | {group} | {len(characters)} | {len(world.pick(characters, faces))} |")
    merged = [group for group in known.classes if len(group) > 1]
    twins = {c for group in known.twins for c in group}
    blocks = Counter(world.names[c].split()[0] for c in twins).most_common(6)
    return (PACKAGE / "assets" / "datasheet.md").read_text("utf-8").format(
        characters=len(world.names), drawings=len(world.alphas), faces=len(glyphs.FACES),
        train_faces=", ".join(glyphs.TRAIN_FACES), validation_faces=", ".join(glyphs.VALIDATION_FACES),
        test_faces=", ".join(glyphs.TEST_FACES), rows="\n".join(rows),
        letters=sum(map(len, known.classes)), classes=len(known.classes), merged=len(merged),
        groups="\n".join("- " + names(group, " = ") for group in merged),
        twins=len(twins), twin_blocks=", ".join(f"{word} {count}" for word, count in blocks) + ", ...",
        patch=glyph_sets.PATCH, photos=len(glyph_sets.photos(0, 0)),
        val_photos=len(glyph_sets.validation_photos(0, 0)),
        removed="\n".join(f"- {name}: {names(gone, ', ')}" for name, gone in known.removed.items()),
    )  # fmt: skip


if __name__ == "__main__":
    print(atomic_write(ROOT / "docs" / "DATASHEET.md", datasheet()))

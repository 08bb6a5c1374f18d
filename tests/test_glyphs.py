"""The glyph world: deterministic, disjoint, fair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ood_utils.data import glyph_world as glyphs
from ood_utils.tools.datasheet import datasheet


def test_the_world_has_the_size_the_datasheet_states() -> None:
    world = glyphs.world()
    assert 6_500 < len(world.names) < 7_200 and 48_000 < len(world.alphas) < 51_000
    assert len(set(world.names)) == len(world.names)
    assert (world.alphas.reshape(len(world.alphas), -1).max(1) > 64).all(), "a drawing without ink"


def test_rendering_is_deterministic(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    drawn, world = glyphs._render(), glyphs.world()
    assert np.array_equal(drawn["alpha"], world.alphas) and np.array_equal(drawn["face"], world.face)


@pytest.mark.parametrize("content", [b"half a file", np.arange(3)])
def test_a_broken_or_foreign_cache_is_drawn_again(monkeypatch: pytest.MonkeyPatch, tmp_path, content) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh = np.zeros(3, glyphs._DRAWING)
    monkeypatch.setattr(glyphs, "_render", lambda: fresh)
    file = glyphs._cache_file()
    file.parent.mkdir(parents=True)
    file.write_bytes(content) if isinstance(content, bytes) else np.save(file, content)
    assert np.array_equal(glyphs._drawn(), fresh)
    assert np.array_equal(np.load(file), fresh) and list(file.parent.iterdir()) == [file]
    assert isinstance(glyphs._drawn(), np.memmap)


def test_without_a_place_for_the_cache_every_process_draws(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "a file").write_text("where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    monkeypatch.setattr(glyphs, "_render", lambda: np.zeros(3, glyphs._DRAWING))
    assert len(glyphs._drawn()) == 3


def test_id_classes_merge_look_alikes() -> None:
    world, known = glyphs.world(), glyphs.concepts()
    names = [{world.names[c] for c in group} for group in known.classes]
    assert 325 <= sum(map(len, names)) <= 340 and 260 <= len(names) <= 275
    together = {"latin capital letter a", "greek capital letter alpha", "cyrillic capital letter a"}
    assert any(together <= group for group in names)
    drawn = {}  # what is left apart is drawn apart, in at least one text face
    for group in known.classes:
        drawings = world.pick([group[0]], glyphs.TEXT_FACES)
        assert drawn.setdefault(world.alphas[drawings].tobytes(), group) == group


def test_sets_are_disjoint_and_contain_no_id_drawing() -> None:
    world, known = glyphs.world(), glyphs.concepts()
    letters = {c for group in known.classes for c in group}
    seen = set(letters)
    shapes = {world.alphas[d].tobytes() for d in world.pick(sorted(letters), ["DejaVuSans"])}
    for name, characters in known.sets.items():
        assert not seen & set(characters), name
        seen |= set(characters)
        same = [d for d in world.pick(characters, ["DejaVuSans"]) if world.alphas[d].tobytes() in shapes]
        assert len(same) <= 0.01 * len(characters), (name, [world.names[world.character[d]] for d in same])
    assert {"accented", "scripts", "arrows", "braille", "pictographs", "syllabics"} <= set(known.sets)


def test_faces_are_split() -> None:
    parts = [set(glyphs.TRAIN_FACES), set(glyphs.VALIDATION_FACES), set(glyphs.TEST_FACES)]
    assert set.union(*parts) == set(glyphs.FACES) and sum(map(len, parts)) == len(glyphs.FACES) == 16


def test_a_view_s_random_numbers_are_those_of_the_shipped_model() -> None:
    """28 uniform numbers, then the noise: another order is another world for the pretrained weights."""
    draw, normal = glyphs._random(3, [11])
    generator = np.random.Generator(np.random.Philox(key=[3, 11]))
    flat = generator.random(28, np.float32)
    assert np.array_equal(torch.cat(list(vars(draw).values()), 1)[0].numpy(), flat)
    assert draw.angle.item() == flat[1] and draw.clutter_colour[0].tolist() == flat[23:26].tolist()
    assert np.array_equal(normal.ravel().numpy(), generator.standard_normal(3 * 32 * 32, np.float32))


def test_a_view_depends_on_seed_and_key_alone() -> None:
    rng = np.random.default_rng(0)
    alphas = rng.integers(0, 256, (6, glyphs.CANVAS, glyphs.CANVAS), dtype=np.uint8)
    together = glyphs.views(alphas, alphas, [5, 9, 2, 7, 11, 3], seed=1)
    alone = glyphs.views(alphas[2:3], alphas, [2], seed=1)
    assert torch.equal(together[2:3], alone)
    assert together.shape == (6, 3, glyphs.SIDE, glyphs.SIDE) and 0 <= together.min() and together.max() <= 1
    assert not torch.equal(
        glyphs.views(alphas, alphas, range(6), seed=2), glyphs.views(alphas, alphas, range(6), seed=3)
    )


def test_the_datasheet_is_up_to_date() -> None:
    written = Path(__file__).parents[1] / "docs" / "DATASHEET.md"
    assert written.read_text() == datasheet(), "run: python -m ood_utils.tools.datasheet"

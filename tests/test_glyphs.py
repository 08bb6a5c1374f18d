"""The glyph world: deterministic, disjoint, fair."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ood_utils import config, data, negatives
from ood_utils.data import glyph_sets
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


def test_sets_are_disjoint_and_without_id_letters() -> None:
    known = glyphs.concepts()
    seen = {c for group in known.classes for c in group}
    for name, characters in known.sets.items():
        assert not seen & set(characters), name
        seen |= set(characters)
    assert {"accented", "scripts", "arrows", "braille", "pictographs", "syllabics"} <= set(known.sets)


def test_no_twin_by_pixels_is_a_negative_or_clutter_or_in_an_ood_set() -> None:
    world, study = glyphs.world(), data.load(config.load_profile("glyphs"))
    letters = [c for group in glyphs.concepts().classes for c in group]
    shapes = {world.alphas[d].tobytes() for d in world.pick(letters, glyphs.FACES)}
    twins = {
        world.names[c]
        for c, alpha in zip(world.character, world.alphas, strict=True)
        if alpha.tobytes() in shapes
    }
    assert {"kelvin sign", "mathematical bold capital a", "lisu letter a"} <= twins
    words = [word for word, _ in study.corpus]
    usable = negatives.clean(words, study.class_names, study.synonyms)
    assert usable.sum() > 5_000 and not twins & {word for word, use in zip(words, usable, strict=True) if use}
    assert not shapes & {alpha.tobytes() for alpha in glyph_sets._neutral_drawings()}
    for name, one in (study.ood | study.validation).items():
        if isinstance(one.dataset, glyph_sets.GlyphViews):
            assert not shapes & {alpha.tobytes() for alpha in one.dataset.alphas}, name


def test_patches_of_photographs_do_not_overlap_and_blocks_hold_at_most_four() -> None:
    for chosen in (glyph_sets.photos(0, 0), glyph_sets.validation_photos(0, 0)):
        corners = [re.search(r"of (.+) · patch (\d+),(\d+) of (\d+) px", one).groups() for one in chosen.ids]
        assert len(set(corners)) == len(chosen) > 100
        assert all(int(x) % int(side) == int(y) % int(side) == 0 for _, x, y, side in corners)
        assert np.bincount(chosen.clusters).max() == 4


def test_faces_are_split() -> None:
    parts = [set(glyphs.TRAIN_FACES), set(glyphs.VALIDATION_FACES), set(glyphs.TEST_FACES)]
    assert set.union(*parts) == set(glyphs.FACES) and sum(map(len, parts)) == len(glyphs.FACES) == 16


def test_a_view_s_random_numbers_are_those_of_the_shipped_model() -> None:
    """30 uniform numbers, then the noise: another order is another world for the pretrained weights."""
    draw, normal = glyphs._random(3, [11])
    generator = np.random.Generator(np.random.Philox(key=[3, 11]))
    flat = generator.random(30, np.float32)
    assert np.array_equal(torch.cat(list(vars(draw).values()), 1)[0].numpy(), flat)
    assert (
        draw.angle.item() == flat[1]
        and draw.clutter_colour[0].tolist() == flat[23:26].tolist()
        and draw.noise.item() == flat[29]
    )
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

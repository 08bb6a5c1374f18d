"""The lanes of data: the glyph world, a user's folders, and a miniature ImageNet in the real layouts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import mini_imagenet
import numpy as np
import pytest
import torch

from ood_utils import data, registry
from ood_utils.config import Profile
from ood_utils.data import glyph_world as glyphs
from ood_utils.data import paths as disk
from ood_utils.data.lanes.imagenet import LISTS, SETS, wnids
from ood_utils.errors import UserError


def _profile(**values) -> Profile:
    return Profile(**({"id_classes": 20, "id_views": 1, "ood_images": 30} | values))


def _with(profile: Profile, **values) -> Profile:
    """The profile with values that it would itself refuse, too."""
    return profile.model_copy(update=values)


def test_a_lane_is_a_file_found_by_its_name() -> None:
    files = Path(data.__file__).parent.glob("lanes/[!_]*.py")
    assert registry.names("data/lanes") == sorted(file.stem for file in files)
    for name in registry.names("data/lanes"):
        lane = registry.find("data/lanes", name)
        assert callable(lane.study) and callable(lane.needs), name
    with pytest.raises(UserError, match="data = 'glyps' is refused.*did you mean glyphs"):
        Profile(data="glyps")


@pytest.fixture(scope="module")
def study() -> data.Study:
    return data.load(_profile())


def test_glyph_sets_have_the_groups_and_sizes_asked_for(study) -> None:
    assert len(study.class_names) == len(study.synonyms) == 20
    assert set(study.ood) | set(study.validation) == set(glyphs.GROUPS)
    assert all(0 < len(s) <= 30 for s in [*study.ood.values(), *study.validation.values()])
    assert len(study.id_test) == 20 * len(glyphs.TEST_FACES) and set(study.id_test.labels) == set(range(20))
    for image_set in study.sets.values():
        image, label = image_set.dataset[len(image_set) - 1]
        assert image.shape == (3, glyphs.SIDE, glyphs.SIDE) and image.dtype == torch.float32
        assert abs(image).max() <= 1
        assert label == image_set.labels[-1] and len(image_set.ids) == len(image_set)


def test_no_face_and_no_name_is_shared_between_training_validation_and_test(study) -> None:
    faces = {
        name: {i.split(" · ")[1] for i in s.ids} for name, s in {"train": study.train, **study.sets}.items()
    }
    tests = ["id_test", "accented", "scripts", "arrows", "braille", "pictographs", "syllabics"]
    assert all(faces[name] <= set(glyphs.TEST_FACES) for name in tests)
    drawn = ["id_val", "val_accented", "val_symbols"]
    assert all(faces[name] <= set(glyphs.VALIDATION_FACES) for name in drawn)
    assert set(study.validation) == {*drawn[1:], "val_photos"}
    assert faces["train"] <= set(glyphs.TRAIN_FACES)
    names = {name: {i.split(" · ")[0] for i in s.ids} for name, s in (study.ood | study.validation).items()}
    for one in names:
        assert not names[one] & set(study.class_names), one
        assert all(not names[one] & names[other] for other in names if other != one), one


def test_loading_twice_gives_the_same_fingerprints_and_pixels(study) -> None:
    again = data.load(_profile())
    for name, image_set in study.sets.items():
        assert image_set.fingerprint == again.sets[name].fingerprint
        assert torch.equal(image_set.dataset[3][0], again.sets[name].dataset[3][0])
    other = data.load(_profile(data_seed=1))
    assert other.id_test.fingerprint != study.id_test.fingerprint


def test_training_views_are_a_function_of_the_key(study) -> None:
    n = len(study.train)
    (one, label), (next_epoch, same) = study.train.dataset[4], study.train.dataset[4 + n]
    assert label == same and not torch.equal(one, next_epoch)
    batch = study.train.dataset.__getitems__([9, 4 + n, 4])
    assert torch.equal(batch[2][0], one) and torch.equal(batch[1][0], next_epoch)


def test_fewer_classes_are_a_part_of_all(study) -> None:
    part = data.load(_profile(), classes=7)
    assert set(part.class_names) < set(study.class_names) and len(part.class_names) == 7
    assert part.ood["arrows"].fingerprint == study.ood["arrows"].fingerprint


def test_glyphs_need_nothing_and_a_corpus_its_file(tmp_path: Path) -> None:
    assert list(data.needs(_profile())) == []
    missing = list(data.needs(_profile(corpus=str(tmp_path / "words.txt"))))
    assert [need.ok for need in missing] == [False] and "wordnet-base" in missing[0].remedy
    (tmp_path / "words.txt").write_text("anchor\n")
    there = list(data.needs(_profile(corpus=str(tmp_path / "words.txt"))))
    assert [need.ok for need in there] == [True] and "words.txt" in str(there[0])


# --- folders ---


@pytest.fixture
def folders(tmp_path: Path) -> Profile:
    for k, name in enumerate(("red_fox", "wolf")):
        for i in range(10):
            mini_imagenet.noise(tmp_path / "id" / name / f"{i}.jpg", seed=10 * k + i)
    for i in range(4):
        mini_imagenet.noise(tmp_path / "ood" / "deep" / f"{i}.png", seed=100 + i)
        mini_imagenet.noise(tmp_path / "val" / f"{i}.jpg", seed=200 + i)
    roots = {"cars": str(tmp_path / "ood"), "held": str(tmp_path / "val")}
    groups = {"cars": "far", "held": "validation"}
    return _profile(
        data="folder", data_root=str(tmp_path / "id"), ood_roots=roots, ood_groups=groups, id_classes=0,
        model="RN50", pretrained="random",
    )  # fmt: skip


def test_a_folder_of_classes_is_split(folders) -> None:
    study = data.load(folders)
    assert study.class_names == ["red fox", "wolf"]
    sizes = [len(study.train), len(study.id_val), len(study.id_test)]
    assert sum(sizes) == 20 and sizes[0] == 12
    assert not set(study.train.ids) & set(study.id_test.ids)
    assert set(study.ood) == {"cars"} and set(study.validation) == {"held"}
    image, label = study.ood["cars"].dataset[0]
    assert image.shape == (3, 224, 224) and label == -1
    assert torch.equal(study.train.dataset[5][0], study.train.dataset[5][0])
    assert not torch.equal(study.train.dataset[5][0], study.train.dataset[5 + len(study.train)][0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data_root": ""}, "data_root is empty"),
        ({"data_root": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"ood_roots": {}}, "2 class folders, of which 2 would be held out .* or ood_roots"),
        ({"ood_groups": {"cars": "validation", "held": "validation"}}, "at least one for the test"),
        ({"names_file": "/no/file.csv"}, "names_file /no/file.csv cannot be read"),
        ({"ood_roots": {"cars": "/not/there"}}, "/not/there"),
        ({"corpus": "/not/a/corpus"}, "corpus"),
    ],
)
def test_wrong_folders_are_named(folders, change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        data.load(_with(folders, **change))


def test_missing_folders_are_needs_not_met(folders) -> None:
    assert [need.ok for need in data.needs(folders)] == [True] * 4 + [None]
    wrong = _with(folders, data_root="/nowhere", ood_roots={"cars": "/not/there"})
    assert ["/nowhere" in str(need) or "/not/there" in str(need) for need in data.needs(wrong)] == [
        True,
        True,
    ]
    assert not any(need.ok for need in data.needs(wrong))
    (lacking,) = (need for need in data.needs(_with(folders, ood_roots={})) if need.ok is False)
    assert "2 class folders, of which 2 would be held out to play OoD" in lacking.what


def test_each_class_is_in_every_part_and_the_split_is_the_seeds(folders) -> None:
    study, again = data.load(folders), data.load(folders)
    for part, size in ((study.train, 6), (study.id_val, 2), (study.id_test, 2)):
        assert np.bincount(part.labels).tolist() == [size, size]
    assert study.train.ids == again.train.ids != data.load(_with(folders, data_seed=1)).train.ids
    assert study.notes == again.notes and "60/20/20" in study.notes[0]


def test_classes_play_ood_where_there_is_none(folders, tmp_path) -> None:
    for name in ("lynx", "dog", "a_cat"):
        shutil.copytree(tmp_path / "id" / "wolf", tmp_path / "id" / name)
    study = data.load(_with(folders, ood_roots={}, ood_groups={}))
    assert len(study.class_names) == 3 and len(study.ood["held_out"]) == 10
    assert (study.ood["held_out"].group, [*study.validation]) == ("near", ["val_held_out"])
    folders_of = {
        Path(name).parent.name for made in study.sets.values() for name in made.ids if made.group != "id"
    }
    assert len(folders_of) == 2 and not {name.replace("_", " ") for name in folders_of} & {*study.class_names}
    assert [note for note in study.notes if note.startswith("Held out")] == [
        f"Held out, so unknown to the models, to play OoD in {use}: {Path(made.ids[0]).parent.name}."
        for use, made in (("the test", study.ood["held_out"]), ("choices", study.validation["val_held_out"]))
    ]
    both = data.load(_with(folders, held_out=1))
    assert {*both.ood} == {"cars", "held_out"} and {*both.validation} == {"held"}


def test_without_a_validation_set_half_of_each_folder_serves_for_choices(folders, tmp_path) -> None:
    mini_imagenet.noise(tmp_path / "ood" / "other" / "0.png", seed=7)
    study = data.load(_with(folders, ood_groups={}, ood_images=0))
    assert {name: len(made) for name, made in study.ood.items()} == {"cars": 3, "held": 2}
    assert {name: len(made) for name, made in study.validation.items()} == {"val_cars": 2, "val_held": 2}
    assert not {*study.ood["cars"].ids} & {*study.validation["val_cars"].ids}
    assert "No OoD set is of group validation" in study.notes[-1]
    kinds = [*zip(study.ood["cars"].ids, study.ood["cars"].clusters, strict=True)]
    assert len({(Path(name).parent, kind) for name, kind in kinds}) == len({kind for _, kind in kinds})
    assert study.ood["held"].clusters is None


def test_a_csv_file_names_the_classes(folders, tmp_path) -> None:
    file = tmp_path / "names.csv"
    file.write_text("folder,name,synonyms\nred_fox,a fox,reynard | vixen\n")
    study = data.load(_with(folders, names_file=str(file)))
    assert study.class_names == ["a fox", "wolf"] and study.synonyms == [["reynard", "vixen"], []]
    file.write_text("folder,name\nred_foxes,a fox\n")
    with pytest.raises(
        UserError, match="folder 'red_foxes', which is not in data_root; did you mean red_fox"
    ):
        data.load(_with(folders, names_file=str(file)))
    asked = "; write folder,name,synonyms in its first line, with commas, and then a line for each class"
    for text, said in (
        ("", "it has no line below its first"),
        ("folder,name\n", "it has no line below its first"),
        ("folder;name\nred_fox;a fox\n", r"its columns are \['folder;name'\]"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=f"names.csv lacks the columns folder and name: {said}{asked}"):
            data.load(_with(folders, names_file=str(file)))


def test_glyphclip_on_photographs_is_refused_unless_wanted(folders) -> None:
    glyphs = _with(folders, model="GlyphCLIP", pretrained="builtin")
    assert "knows only glyphs" in next(need.what for need in data.needs(glyphs) if need.ok is False)
    assert all(need.ok is not False for need in data.needs(_with(glyphs, smoke_test=True)))


def test_an_empty_folder_and_a_single_class_are_refused(folders, tmp_path) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="empty"):
        data.load(_with(folders, ood_roots={"void": str(tmp_path / "void")}))
    for path in (tmp_path / "id" / "wolf").iterdir():
        path.unlink()
    (tmp_path / "id" / "wolf").rmdir()
    with pytest.raises(UserError, match="has 1 class folders; give at least 1 more"):
        data.load(folders)
    bare = _with(folders, data_root=str(tmp_path / "val"), ood_roots={}, ood_groups={})
    with pytest.raises(UserError, match="has no class folders; give at least 4 more, or ood_roots"):
        data.load(bare)


def test_folders_within_a_class_folder_are_said(folders, tmp_path) -> None:
    assert not [note for note in data.load(folders).notes if "hold folders" in note]
    shutil.copytree(tmp_path / "id" / "wolf", tmp_path / "id" / "red_fox" / "wolf")
    note = "Class folders that hold folders, whose images count as the class: red_fox."
    assert note in data.load(folders).notes
    assert note in [need.what for need in data.needs(folders)]


def test_a_relative_folder_that_is_not_there_is_said_with_where_it_was_looked_for(folders, tmp_path) -> None:
    (need, *_) = data.needs(_with(folders, data_root="photos"))
    assert need.what == f"data_root = 'photos' is no folder: looked at {Path.cwd() / 'photos'}"


def test_an_ood_set_of_one_image_is_refused(folders, tmp_path) -> None:
    mini_imagenet.noise(tmp_path / "one" / "0.jpg", seed=5)
    with pytest.raises(UserError, match="OoD set 'one' has one image, .*0.jpg; give two or more"):
        data.load(_with(folders, ood_roots={"one": str(tmp_path / "one")}, ood_groups={}))


@pytest.mark.parametrize("name", ["held_out", "val_cars"])
def test_an_ood_set_cannot_take_the_name_of_one_of_the_lanes_own(folders, tmp_path, name: str) -> None:
    with pytest.raises(UserError, match=f"OoD set '{name}': held_out and names that .* rename it"):
        data.load(_with(folders, ood_roots={name: str(tmp_path / "ood")}, ood_groups={}))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("wolf", "'wolf' has no name"),
        ("wolf, ", "'wolf' has no name"),
        ("wolf,grey,a,b", "'wolf' .* more than three columns"),
        ("wolf,grey\nwolf,white", "'wolf' .* two lines"),
        ("wolf,Red Fox", "2 classes are called 'red fox'; give them different names"),
    ],
)
def test_a_names_file_with_a_wrong_line_is_refused(folders, tmp_path, line: str, said: str) -> None:
    file = tmp_path / "names.csv"
    file.write_text(f"folder,name,synonyms\n{line}\n", encoding="utf-8-sig")
    with pytest.raises(UserError, match=f"names.csv: .*{said}"):
        data.load(_with(folders, names_file=str(file)))


def test_hidden_folders_are_no_classes_and_a_part_of_a_set_is_said(folders, tmp_path) -> None:
    shutil.copytree(tmp_path / "id" / "wolf", tmp_path / "id" / ".ipynb_checkpoints")
    study = data.load(_with(folders, ood_images=2))
    assert len(study.class_names) == 2
    assert any(re.fullmatch(r"Of cars 2 of \d+ images are used \(ood_images\)\.", n) for n in study.notes)


def test_a_class_folder_without_images_is_named(folders, tmp_path) -> None:
    (tmp_path / "id" / "lynx").mkdir()
    (tmp_path / "id" / "lynx" / "notes.txt").write_text("none yet")
    with pytest.raises(UserError, match=r"id/lynx holds no image"):
        data.load(folders)


@pytest.mark.parametrize("link", ["nowhere.jpg", "itself.jpg"])
def test_a_broken_link_is_named_and_a_circle_is_walked_once(folders, tmp_path, link: str) -> None:
    fox = tmp_path / "id" / "red_fox"
    (fox / "up").symlink_to(tmp_path / "id")  # back up: not walked again
    (tmp_path / "id" / "dog").symlink_to(tmp_path / "ood")  # aside: a class
    study = data.load(
        folders.model_copy(
            update={"ood_roots": {"held": str(tmp_path / "val")}, "ood_groups": {}, "data_seed": 3}
        )
    )
    assert study.class_names == ["dog", "red fox", "wolf"]
    assert len(study.train) + len(study.id_val) + len(study.id_test) == 24
    (tmp_path / "id" / "all").symlink_to(tmp_path)
    with pytest.raises(UserError, match="id/all is a link back up, in a circle; take it away"):
        data.load(folders)
    (tmp_path / "id" / "all").unlink()
    (fox / "nothing.txt").symlink_to("gone.txt")  # no image: nobody asks
    (fox / link).symlink_to(link if link == "itself.jpg" else "gone.jpg")
    with pytest.raises(
        UserError, match=rf"red_fox/{link} is no file but a link that leads nowhere or in a circle"
    ):
        data.load(folders)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (b"caf\xe9", rb"class folder .*id/caf\\xe9: the name is not UTF-8 or has control char"),
        (b"a\nb", rb"class folder .*id/a\\nb: the name is not UTF-8 or has control characters; rename it"),
        (b"red fox", rb"'red fox' and 'red_fox' of .*id are one name to a model, 'red fox'; rename one"),
        (b"Wolf", rb"'Wolf' and 'wolf' of .*id are one name"),
        ("e\u0301".encode(), rb"'e\\u0301' and '\\xe9' of .*id are one name"),
    ],
)
def test_class_folders_that_cannot_be_told_apart_are_refused(
    folders, tmp_path, name: bytes, said: bytes
) -> None:
    for new in {name, "\u00e9".encode()}:
        shutil.copytree(tmp_path / "id" / "wolf", tmp_path / "id" / os.fsdecode(new))
    with pytest.raises(UserError, match=said.decode()) as caught:
        data.load(folders)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


def test_the_same_image_in_two_sets_is_said_and_copies_stay_in_one_part(folders, tmp_path) -> None:
    wolf = tmp_path / "id" / "wolf"
    for i in range(10):
        shutil.copy(wolf / f"{i}.jpg", wolf / f"copy {i}.jpg")
    study = data.load(folders)  # as it is split, both go the same way
    parts = [{i.replace("copy ", "") for i in s.ids} for s in (study.train, study.id_val, study.id_test)]
    assert sum(map(len, parts)) == 20 and not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    shutil.copy(wolf / "3.jpg", tmp_path / "ood" / "not a wolf.jpg")
    (said,) = (note for note in data.load(folders).notes if note.startswith("The same image"))
    assert "byte for byte, 1 times" in said and "wolf/3.jpg (" in said and "not a wolf.jpg (cars)" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ood_roots": {"wolves": "id"}}, "ood_roots wolves = '.*id' shares images with data_root"),
        ({"ood_roots": {"wolves": "id/wolf"}}, "wolves = .* shares images with data_root"),
        ({"ood_roots": {"wolves": "."}}, "wolves = .* shares images with data_root"),
        (
            {"ood_roots": {"cars": "ood", "more": "ood"}},
            "ood_roots more = .* shares images with ood_roots cars",
        ),
        ({"data_seed": 0}, "id/lynx holds 1 different images; give it 3 or more"),
    ],
)
def test_what_a_series_would_only_notice_later_is_a_need_not_met(folders, tmp_path, change, said) -> None:
    if "ood_roots" in change:
        change = {
            "ood_groups": {},
            "ood_roots": {k: str(tmp_path / v) for k, v in change["ood_roots"].items()},
        }
    else:
        mini_imagenet.noise(tmp_path / "id" / "lynx" / "0.jpg", seed=77)
    with pytest.raises(UserError, match=f"^profile mine: wrong: .*{said}.*; `python -m ood_utils check"):
        data.require(_with(folders, **change), "mine")


def test_what_lies_beside_train_val_and_test_may_be_ood(folders, tmp_path) -> None:
    whole = tmp_path / "whole"
    for part in ("train", "val", "test"):
        shutil.copytree(tmp_path / "id", whole / part)
        for path in whole.joinpath(part).glob("*/*.jpg"):
            path.write_bytes(path.read_bytes() + part.encode())  # after the image's end
    shutil.move(tmp_path / "ood", whole / "ood")
    roots = {"cars": str(whole / "ood")}
    data.require(_with(folders, data_root=str(whole), ood_roots=roots, ood_groups={}), "mine")
    assert len(data.load(_with(folders, data_root=str(whole), ood_roots=roots, ood_groups={})).train) == 20
    with pytest.raises(UserError, match="shares images with data_root"):
        roots = {"cars": str(whole / "val" / "wolf")}
        data.require(_with(folders, data_root=str(whole), ood_roots=roots, ood_groups={}), "mine")
    shutil.copy(whole / "train/wolf/3.jpg", whole / "test/wolf/x.jpg")
    alone = _with(folders, data_root=str(whole), ood_roots={"held": str(tmp_path / "val")}, ood_groups={})
    assert any("train/wolf/3.jpg (train) and" in note for note in data.load(alone).notes)
    for path in whole.joinpath("test", "wolf").iterdir():
        path.rename(tmp_path / path.name)
    (whole / "test/wolf/y.jpg").symlink_to(tmp_path / "3.jpg")
    assert len(data.load(alone).id_test) == 11


# --- a miniature ImageNet ---


@pytest.fixture
def imagenet(tmp_path: Path) -> Profile:
    mini_imagenet.build(tmp_path)
    return _profile(data="imagenet", data_root=str(tmp_path), id_classes=3, model="RN50", pretrained="random")


def test_the_imagenet_layouts_are_read(imagenet) -> None:
    study = data.load(imagenet)
    assert study.class_names[:2] == ["tench", "goldfish"]
    assert len(study.id_val) == 3 and len(study.id_test) == 9 and len(study.train) == 12
    assert {"SSB-hard", "NINCO", "SUN", "Places", "OpenImage-O"} <= set(study.ood)
    assert set(study.validation) == {"val_openimage_o"} and set(study.ood) | set(study.validation) == set(
        SETS
    )
    assert len(wnids()) == 1000 == len(set(wnids()))


def test_what_is_missing_of_imagenet_is_said_with_its_source(imagenet, tmp_path) -> None:
    assert all(need.ok is not False for need in data.needs(imagenet))
    shutil.rmtree(tmp_path / "MOS/SUN")
    (tmp_path / "benchmark_imglist/imagenet/test_ninco.txt").unlink()
    shutil.rmtree(tmp_path / "imagenet/train/n01440764")
    (tmp_path / "imagenet/val/strangers").mkdir()
    faults = {need.what: need for need in data.needs(imagenet) if need.ok is False}
    said = " ".join(faults)
    assert len(faults) == 4 and "MOS/SUN: 0 of 10,000 images" in said and "image list" in said
    assert f"NINCO (near): image list {tmp_path / LISTS}/test_ninco.txt" in said
    assert "imagenet/train: 2 of 3 class folders" in said
    assert [need.fault for need in faults.values() if "first 'strangers'" in need.what] == ["WRONG"]
    assert all(need.remedy for need in faults.values())


def test_wrong_imagenet_copies_are_refused(imagenet, tmp_path) -> None:
    with pytest.raises(UserError, match="train: 3 of 1000 class folders"):
        data.load(_with(imagenet, id_classes=0))
    for part in ("train", "val"):
        mini_imagenet.noise(tmp_path / "imagenet" / part / "n99999999/0.jpg")
        with pytest.raises(
            UserError, match=rf"{part}: 1 folders whose names are no ImageNet-1k wnid.*n99999999"
        ):
            data.load(imagenet)
        shutil.rmtree(tmp_path / "imagenet" / part / "n99999999")
    (tmp_path / "images_largescale/NINCO/1.jpg").unlink()
    with pytest.raises(UserError, match=r"NINCO/1\.jpg"):
        data.load(imagenet)
    (tmp_path / "benchmark_imglist/imagenet/test_ninco.txt").unlink()
    with pytest.raises(UserError, match=r"test_ninco\.txt"):
        data.load(imagenet)


@pytest.mark.parametrize("part", ["train", "val"])
def test_999_of_1000_classes_name_the_missing_one(imagenet, tmp_path, part: str) -> None:
    whole = _with(imagenet, id_classes=0)
    for folder in ("train", "val"):
        for wnid in wnids()[3:]:
            path = tmp_path / "imagenet" / folder / wnid / "0.JPEG"
            path.parent.mkdir()
            path.write_bytes(b"only its name is read here")
    assert len(data.load(whole).class_names) == 1000
    gone = wnids()[500]
    shutil.rmtree(tmp_path / "imagenet" / part / gone)
    said = rf"imagenet/{part}: 999 of 1000 class folders .*'{gone}' is missing"
    with pytest.raises(UserError, match=said):
        data.load(whole)


def test_train_and_val_must_hold_the_same_classes(imagenet, tmp_path) -> None:
    *_, last, other = wnids()[:4]
    train, val = tmp_path / "imagenet/train", tmp_path / "imagenet/val"
    (val / last).rename(val / other)  # as many folders, all wnids, and every label of the last class wrong
    said = rf"train: 3 of 4 class folders .*'{other}' is missing"
    with pytest.raises(UserError, match=said):
        data.load(imagenet)
    shutil.rmtree(val / other)
    with pytest.raises(UserError, match=rf"imagenet/val: 2 of 3 class folders .*'{last}'"):
        data.load(imagenet)
    shutil.rmtree(train / last)
    with pytest.raises(UserError, match="imagenet/train: 2 of 3 class folders; "):
        data.load(imagenet)


def test_an_empty_or_incomplete_train_is_blamed_itself(imagenet, tmp_path) -> None:
    first, second, _ = wnids()[:3]
    train = tmp_path / "imagenet/train"
    for file in (train / first).iterdir():
        file.unlink()
    with pytest.raises(UserError, match=rf"imagenet/train/{first} holds no image"):
        data.load(imagenet)
    (train / first).rmdir()
    with pytest.raises(UserError, match=rf"imagenet/train: 2 of 3 class folders .*'{first}'"):
        data.load(imagenet)
    shutil.rmtree(train)
    train.mkdir()
    with pytest.raises(UserError, match="imagenet/train: 0 of 3 class folders"):
        data.load(imagenet)


def test_an_empty_mos_set_is_named(imagenet, tmp_path) -> None:
    shutil.rmtree(tmp_path / "MOS/SUN/SUN")
    with pytest.raises(UserError, match=r"missing: SUN \(far\) in .*MOS/SUN: 0 of 10,000 images; "):
        data.load(imagenet)


def _faults(profile: Profile) -> list[str]:
    return [f"{need.fault} {need.what}; {need.remedy}" for need in data.needs(profile) if need.ok is False]


def test_every_set_is_counted_and_a_part_is_called_so(imagenet, tmp_path) -> None:
    said = {need.what: need.ok for need in data.needs(imagenet)}
    part = ", not the published number"
    assert said[f"SUN (far) in {tmp_path}/MOS/SUN: 3 of 10,000 images{part}"] is None
    assert said[f"{tmp_path}/imagenet/train: 3 of 3 class folders: 12 images"]
    assert said[f"{tmp_path}/imagenet/val: 3 of 3 class folders: 12 of 150 images{part}"] is None
    assert said[f"id_val: 3 of the 3 images that {tmp_path / LISTS}/val_imagenet.txt names"]
    cut = tmp_path / "MOS/SUN/SUN/2.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    (found,) = [need for need in data.needs(imagenet) if "MOS/SUN" in need.what]
    assert found.ok is None and f"first or last image cannot be decoded: {cut} (" in found.what


def _flat(root: Path) -> None:
    for file in sorted((root / "imagenet/val").glob("*/*")):
        file.rename(root / "imagenet/val" / file.name)
    for folder in (root / "imagenet/val").glob("n*"):
        folder.rmdir()


def _pointers(root: Path) -> None:
    for file in (root / "MOS/SUN/SUN").iterdir():
        file.write_text("version https://git-lfs.github.com/spec/v1\n")


def _strangers(root: Path) -> None:
    (root / LISTS / "val_imagenet.txt").write_text("val/a.JPEG 0\nval/b.JPEG 1\n")


def _all_held(root: Path) -> None:
    names = [f"val/{file.name} 0" for file in (root / "imagenet/val").glob("*/*")]
    (root / LISTS / "val_imagenet.txt").write_text("\n".join(names))


def _emptied(root: Path) -> None:
    for file in (root / "imagenet/train" / wnids()[1]).iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_flat, "WRONG {0}/imagenet/val: 12 images lie flat, as the tar unpacks them, not in class folders"),
        (_pointers, "WRONG SUN (far) in {0}/MOS/SUN: 3 of 10,000 images; its first or last image cannot be "),
        (_strangers, "WRONG id_val: 0 of the 2 images that {1}/val_imagenet.txt names; it names 'a.JPEG', "
         "imagenet/val holds 'ILSVRC2012_val_00.JPEG'; keep ILSVRC's file names"),
        (_all_held, "val_imagenet.txt names, which are all of imagenet/val; "),
        (_emptied, "WRONG class folder {0}/imagenet/train/n01443537 holds no image; fill it or move it away"),
        (lambda root: (root / LISTS / "test_ninco.txt").write_text("\n"),
         "test_ninco.txt names no image; unpack benchmark_imglist.zip again; images_largescale: "),
        (lambda root: shutil.rmtree(root / "images_largescale/NINCO"),
         "WRONG NINCO (near): 0 of the 3 images that {1}/test_ninco.txt names are there, "
         "the first missing one is {0}/images_largescale/NINCO/0.jpg; complete the download"),
    ],
)  # fmt: skip
def test_a_run_refuses_in_the_words_of_check(imagenet, tmp_path, spoil, said: str) -> None:
    data.require(imagenet, "imagenet")
    spoil(tmp_path)
    found = _faults(imagenet)
    assert said.format(tmp_path, tmp_path / LISTS) in " ".join(found), found
    for refused in (lambda: data.require(imagenet, "imagenet"), lambda: data.load(imagenet)):
        with pytest.raises(UserError) as caught:
            refused()
        first = next(need for need in data.needs(imagenet) if need.ok is False)
        assert first.what in str(caught.value) and "\n" not in str(caught.value)


def test_the_two_lines_sort_a_flat_val(imagenet, tmp_path) -> None:
    lists = tmp_path / LISTS
    places = {file.name: file.parent.name for file in (tmp_path / "imagenet/val").glob("*/*")}
    lines = [f"imagenet_1k/val/{name} {wnids().index(wnid)}\n" for name, wnid in places.items()]
    (lists / "val_imagenet.txt").write_text("".join(lines[:3]))
    (lists / "test_imagenet.txt").write_text("".join(lines[3:]))
    _flat(tmp_path)
    (remedy,) = {need.remedy for need in data.needs(imagenet) if "lie flat" in need.what}
    told, *commands = remedy.splitlines()
    assert told == "sort them with these two lines:" and len(commands) == 2
    subprocess.run(["bash", "-ec", "\n".join(commands)], check=True)
    assert {f.name: f.parent.name for f in (tmp_path / "imagenet/val").glob("*/*")} == places
    assert len(data.load(imagenet).id_test) == 9


def test_links_inside_a_set_are_followed(imagenet, tmp_path) -> None:
    (tmp_path / "MOS/SUN/SUN").rename(tmp_path / "elsewhere")
    (tmp_path / "MOS/SUN/SUN").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/round").symlink_to(tmp_path / "MOS")
    assert data.load(imagenet).ood["SUN"].ids == ["SUN/0.jpg", "SUN/1.jpg", "SUN/2.jpg"]


def test_the_test_set_may_be_all_of_val(imagenet) -> None:
    held, whole = data.load(imagenet), data.load(_with(imagenet, id_test="all"))
    assert len(whole.id_test) == 12 and whole.id_val.fingerprint == held.id_val.fingerprint
    assert set(whole.id_test.ids) == {*held.id_test.ids, *held.id_val.ids}


def test_the_list_of_a_big_folder_is_kept_until_a_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b/1.jpg", "a/2.PNG", "a/deep/3.jpg", "a/._4.jpg", "a/notes.txt"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    monkeypatch.setattr(disk, "BIG", 3)
    monkeypatch.setattr(disk.store, "OUTPUTS", tmp_path / "outputs")
    scans = []
    monkeypatch.setattr(disk, "_scan", lambda *how, scan=disk._scan: scans.append(how) or scan(*how))

    def found() -> list[str]:
        return [path[len(str(tmp_path / "set")) + 1 :] for path in disk.images_below(tmp_path / "set")]

    every = ["a/2.PNG", "a/deep/3.jpg", "b/1.jpg"]
    assert found() == every == found() and len(scans) == 2  # changed just now: not kept

    def settle() -> None:
        for folder in [tmp_path / "set", *(tmp_path / "set").glob("**/")]:
            os.utime(folder, ns=(0, time.time_ns() - 10**11 - len(scans)))

    settle()
    assert found() == every == found() and len(scans) == 3
    (tmp_path / "set/a/deep/5.jpg").touch()
    assert found() == [*every[:2], "a/deep/5.jpg", "b/1.jpg"] and len(scans) == 4
    settle()
    found()
    (kept,) = (tmp_path / "outputs/.scans").iterdir()
    kept.write_text("{")
    assert len(found()) == 4 == len(found()) and len(scans) == 6


def test_shared_memory_that_does_not_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 2**30})
    monkeypatch.setattr(data, "disk_usage", lambda _: usage)
    needs = list(data.needs(_profile(workers=4, embed_batch=256, batch=512)))
    assert [need.ok for need in needs] == [False]
    assert needs[0].what == "/dev/shm for 4 data loader processes: up to 2.3 GiB, 1.0 GiB free"
    assert needs[0].remedy.endswith("--shm-size=3g or --ipc=host, or say -p workers=1")
    assert all(need.ok for need in data.needs(_profile(workers=1, embed_batch=256, batch=512)))


def test_a_gpu_that_is_not_there_is_said_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"missing: a CUDA GPU that torch sees; .* or -p device=cpu"):
        data.require(_profile(device="cuda"), "glyphs")


@pytest.mark.parametrize("name", ["test_ninco.txt", "val_imagenet.txt"])
@pytest.mark.parametrize(
    "line", [b"NINCO/2.jpg", b"NINCO/2.jpg fox", b"NINCO/2.jpg 1.5", b"\x89PNG\xff\x00 3"]
)
def test_a_bad_line_of_an_image_list_is_named(imagenet, tmp_path, name: str, line: bytes) -> None:
    file = tmp_path / "benchmark_imglist/imagenet" / name
    file.write_bytes(b"NINCO/0.jpg -1\n\n" + line + b"\nNINCO/1.jpg -1\n")
    with pytest.raises(UserError, match=rf"line 3 of image list .*{name}") as caught:
        data.load(imagenet)
    assert "\n" not in str(caught.value)

"""The lane of given embeddings: two layouts, every fault in one sentence, and the residual model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.numpy import save_file

from ood_utils import __main__ as cli
from ood_utils import config, data, embeddings, models, residual, training, vectors
from ood_utils.data.study import picture
from ood_utils.errors import UserError

D = 12
WORDS = [f"word {k}" for k in range(20)]
CLASSES = ["ant", "bee", "cow"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def cloud(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, D)).astype(np.float32)


def plain(folder: Path, **changes: object) -> Path:
    """A study of every kind of file: one ID set of 30, two OoD sets, labels by number; None drops a key."""
    labels = np.arange(30) % 3
    rows = 3 * cloud(3, 9)[labels] + cloud(30, 0)
    np.savez(folder / "id.npz", images=rows, labels=labels, names=[f"photo {i}" for i in range(30)])
    np.save(folder / "far.npy", cloud(7, 1).astype(np.float16))
    save_file({"rows": cloud(5, 2), "clusters": np.arange(5) // 2}, folder / "held.safetensors")
    pd.DataFrame({"word": WORDS, "embedding": list(cloud(20, 3))}).to_parquet(folder / "words.parquet")
    np.save(folder / "classes.npy", 3 * cloud(3, 9))
    values = {
        "model": "a model", "logit_scale": 50.0, "classes": CLASSES, "class_texts": "classes.npy",
        "words": "words.parquet:word", "word_texts": "words.parquet:embedding",
        "synonyms": {"ant": ["word 3"]},
        "id": {"images": "id.npz:images", "labels": "id.npz:labels", "ids": "id.npz:names"},
        "ood": {"far away": {"group": "far", "images": "far.npy"},
                "held": {"group": "validation", "images": "held.safetensors:rows",
                         "clusters": "held.safetensors:clusters"}},
    } | changes  # fmt: skip
    kept = {key: value for key, value in values.items() if value is not None}
    (folder / "study.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
    return folder


def profile(folder: Path, **changes: object) -> config.Profile:
    return config.load_profile(
        "embeddings", {"data_root": str(folder), "keep": 0.5, "bootstrap": 20} | changes
    )


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# --- the plain layout ---


def test_one_id_set_is_split_by_class_and_seed(tmp_path: Path) -> None:
    study = data.load(profile(plain(tmp_path)))
    parts = study.train, study.id_val, study.id_test
    assert [np.bincount(s.labels).tolist() for s in parts] == [[6, 6, 6], [2, 2, 2], [2, 2, 2]]
    assert sorted(i for s in parts for i in s.ids) == sorted(f"photo {i}" for i in range(30))
    again, other = data.load(profile(tmp_path)), data.load(profile(tmp_path, data_seed=1))
    assert again.train.ids == study.train.ids and again.train.fingerprint == study.train.fingerprint
    assert other.train.ids != study.train.ids
    assert study.class_names == CLASSES and study.synonyms == [["word 3"], [], []]
    assert list(study.ood) == ["far away"] and list(study.validation) == ["held"]
    assert study.corpus == [(word, "noun") for word in WORDS]


def test_the_zero_shot_model_gives_the_embeddings_back(tmp_path: Path) -> None:
    values = profile(plain(tmp_path))
    study = data.load(values)
    found = embeddings.embed(study, values, tmp_path / "cache")
    rows = np.load(tmp_path / "id.npz")["images"]
    place = [int(i.split()[1]) for i in found["id_test"].ids]
    np.testing.assert_allclose(found["id_test"].rows, unit(rows[place]), atol=1e-6)
    half = np.load(tmp_path / "far.npy").astype(np.float32)
    np.testing.assert_allclose(found["far away"].rows, unit(half), atol=1e-6)
    np.testing.assert_allclose(found.class_text, unit(np.load(tmp_path / "classes.npy")), atol=1e-6)
    np.testing.assert_allclose(found.corpus_text, unit(cloud(20, 3)), atol=1e-6)
    assert found.scale == pytest.approx(50, rel=1e-5)
    assert (found["id_test"].labels == (np.array(place) % 3)).all()


def test_three_given_id_sets_and_named_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "names.npy", np.array(CLASSES)[np.arange(30) % 3])
    one = {"images": "id.npz:images", "labels": "names.npy"}
    study = data.load(profile(plain(tmp_path, id=None, train=one, id_val=one, id_test=one)))
    assert study.train.labels.tolist() == (np.arange(30) % 3).tolist() and study.train.ids[4] == "train 4"


def test_sets_of_one_table_are_chosen_by_their_labels(tmp_path: Path) -> None:
    """Labels map to class names, class texts come from the words of these names, other rows are OoD."""
    labels = np.array(["a", "b", "car", ""] * 10)
    np.savez(tmp_path / "all.npz", images=cloud(40, 4), labels=labels)
    top = {
        "images": "all.npz:images",
        "labels": "all.npz:labels",
        "id": None,
        "class_texts": None,
        "synonyms": {},
    }
    ood = {"car": "near", "rest": {"group": "far", "where": {"labels": ""}}}
    study = data.load(profile(plain(tmp_path, classes={"a": "word 4", "b": "word 5"}, ood=ood, **top)))
    assert study.class_names == ["word 4", "word 5"] and {n: len(s) for n, s in study.ood.items()} == {
        "car": 10,
        "rest": 10,
    }
    assert len(study.train) + len(study.id_val) + len(study.id_test) == 20
    values = profile(tmp_path)
    found = embeddings.embed(study, values, tmp_path / "cache", sets=["car"])
    np.testing.assert_allclose(found.class_text, unit(cloud(20, 3)[4:6]), atol=1e-6)


def test_an_ood_set_of_a_shared_table_holds_no_id_row(tmp_path: Path) -> None:
    top = {"images": "id.npz:images", "labels": "id.npz:labels", "id": None, "classes": ["ant", "bee"]}
    plain(tmp_path, **top, class_texts="two.npy", ood={"all": {"group": "far"}})
    np.save(tmp_path / "two.npy", cloud(2, 7))
    with pytest.raises(UserError, match="OoD set 'all' has row 0 of id.npz:images, which is of an ID class"):
        data.load(profile(tmp_path))
    plain(tmp_path, **top, class_texts="two.npy", ood={"cow": {"group": "far", "where": {"labels": 2}}})
    assert [int(i.split()[1]) % 3 for i in data.load(profile(tmp_path)).ood["cow"].ids] == [2] * 10


def test_fewer_classes_keep_their_own_rows(tmp_path: Path) -> None:
    study = data.load(profile(plain(tmp_path)), classes=2)
    assert len(study.class_names) == 2 and set(study.train.labels) == {0, 1}
    first = CLASSES.index(study.class_names[0])
    assert all(
        int(i.split()[1]) % 3 == first
        for i, k in zip(study.train.ids, study.train.labels, strict=True)
        if k == 0
    )


# --- clip-retrieval's layout ---


def retrieval(folder: Path, parts: int = 12) -> Path:
    """img_emb/, text_emb/ and metadata/ in numbered parts of two rows; the image's folder is its class."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir()
    kinds = ["ant", "bee", "car"]
    for part in range(parts):
        number = 2 * part + np.arange(2)
        np.save(folder / f"img_emb/img_emb_{part}.npy", cloud(24, 5)[number])
        np.save(folder / f"text_emb/text_emb_{part}.npy", cloud(3, 6)[number % 3].astype(np.float16))
        frame = {
            "image_path": [f"/x/{kinds[i % 3]}/{i}.jpg" for i in number],
            "caption": [kinds[i % 3] for i in number],
        }
        pd.DataFrame(frame).to_parquet(folder / f"metadata/metadata_{part}.parquet")
    (folder / "study.yaml").write_text("classes: [ant, bee]\nood: {car: far}\n")
    return folder


def test_clip_retrieval_s_folders_need_two_lines(tmp_path: Path) -> None:
    study = data.load(profile(retrieval(tmp_path)))
    assert sorted(study.ood["car"].ids) == sorted(f"/x/car/{i}.jpg" for i in range(2, 24, 3))
    row = int(Path(study.ood["car"].ids[5]).stem)  # parts 10 and 11 come after 9, not after 1
    np.testing.assert_allclose(study.ood["car"].dataset[5][0], unit(cloud(24, 5))[row], atol=1e-6)
    assert study.corpus == [("ant", "noun"), ("bee", "noun"), ("car", "noun")]
    assert [len(s) for s in (study.train, study.id_val, study.id_test)] == [9, 3, 4]


def test_metadata_columns_choose_the_sets(tmp_path: Path) -> None:
    retrieval(tmp_path, 0)
    frame = {"image_path": ["x"] * 24, "caption": ["ant", "bee", "car"] * 8,
             "what": ["ant", "bee", "ant", "car"] * 6,
             "split": ["train"] * 12 + ["id_val"] * 6 + ["id_test"] * 6}  # fmt: skip
    pd.DataFrame(frame).to_parquet(tmp_path / "metadata/metadata_0.parquet")
    np.save(tmp_path / "img_emb/img_emb_0.npy", cloud(24, 5))
    np.save(tmp_path / "text_emb/text_emb_0.npy", cloud(3, 6)[np.arange(24) % 3])
    own = {name: {"where": {"metadata:split": name}} for name in vectors.ID_SETS}
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump({"labels": "metadata:what", "classes": ["ant", "bee"], "ood": {"car": "near"}, **own})
    )
    study = data.load(profile(tmp_path))
    assert [len(s) for s in (study.train, study.id_val, study.id_test)] == [9, 5, 4]
    assert len(study.ood["car"]) == 6


# --- faults ---


def _pickle(folder: Path) -> None:
    np.save(folder / "far.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _npz_pickle(folder: Path) -> None:
    np.savez(folder / "id.npz", images=np.array([None] * 30), labels=np.arange(30) % 3, names=np.arange(30))


def _nan(folder: Path) -> None:
    rows = cloud(7, 1)
    rows[4, 2] = np.nan
    np.save(folder / "far.npy", rows)


def _zero(folder: Path) -> None:
    rows = cloud(7, 1)
    rows[3] = 0
    np.save(folder / "far.npy", rows)


def _wide(folder: Path) -> None:
    np.save(folder / "far.npy", np.ones((4, D + 1)))


def _flat(folder: Path) -> None:
    np.save(folder / "far.npy", np.ones(D))


def _junk(folder: Path) -> None:
    (folder / "id.npz").write_bytes(b"junk")


def _missing(folder: Path) -> None:
    (folder / "held.safetensors").unlink()


ID = {"images": "id.npz:images", "labels": "id.npz:labels"}
TWO_WORDS = {"classes": ["word 1", "word 2"], "class_texts": None, "synonyms": {}}


@pytest.mark.parametrize(
    ("change", "spoil", "said"),
    [
        ({}, _pickle, ["far.npy", "pickle"]),
        ({}, _npz_pickle, ["id.npz", "pickle"]),
        ({}, _nan, ["far.npy", "row 4", "not finite"]),
        ({}, _zero, ["far.npy", "row 3", "zero"]),
        ({}, _wide, ["far.npy is 13 wide but the texts are 12"]),
        ({}, _flat, ["far.npy has shape (12,)"]),
        ({}, _junk, ["id.npz cannot be read"]),
        ({}, _missing, ["held.safetensors does not exist"]),
        ({"id": {"images": "id.npz", "labels": "id.npz:labels"}}, None, ["id.npz:NAME", "images, labels"]),
        ({"id": ID | {"labels": "id.npz:label"}}, None, ["id.npz has no 'label'"]),
        ({"id": ID | {"labels": "words.parquet:word"}}, None, ["word has shape (20,)", "30 rows"]),
        ({"id": {"images": "id.npz:images"}}, None, ["ID set 'id' has no labels"]),
        ({"id": ID | {"labels": "id.npz:names"}}, None, ["id.npz:names has photo 0 in row 0, which is no"]),
        ({"classes": ["ant", "bee"], "class_texts": None}, None, ["lack the class name 'ant'"]),
        ({"classes": ["ant", "bee"]}, None, ["classes.npy has 3 rows for 2 classes"]),
        ({"classes": ["ant", "ant", "bee"]}, None, ["classes must be at least 2 different names"]),
        (TWO_WORDS, None, ["has 2 in row 2", "give 0 to 1"]),
        ({"words": "words.parquet:wort"}, None, ["words.parquet has no 'wort'"]),
        ({"words": None}, None, ["lacks words and word_texts"]),
        ({"word_texts": "far.npy"}, None, ["words.parquet:word has shape (20,), but far.npy has 7 rows"]),
        ({"ood": {}}, None, ["ood names no test set"]),
        ({"ood": {"x": {"images": "far.npy", "group": "farr"}}}, None, ["study.yaml", "ood", "near"]),
        ({"ood": {"x": {"images": "far.csv"}}}, None, ["far.csv does not exist"]),
        ({"ood": {"x": {"images": "far.npy", "where": {"labels": "q"}}}}, None, ["'x' chooses by labels"]),
        ({"ood": {"train": {"images": "far.npy"}}}, None, ["ood = {'train'", "set's name becomes"]),
        ({"ood": {"x": {"images": "far.npy", "group": "id"}}}, None, ["OoD set 'x' has the group id"]),
        ({"synonyms": {"bea": ["b"]}}, None, ["synonyms name 'bea'", "did you mean bee"]),
        ({"train": ID}, None, ["give all of train, id_val, id_test, or id"]),
        ({"split": [0.5, 0.5, 0.5]}, None, ["split = [0.5, 0.5, 0.5]"]),
        ({"classis": ["ant"]}, None, ["unknown parameter 'classis'", "classes"]),
        ({"prompt": "a {}"}, None, ["prompt 'a {}', the profile '{}'"]),
        ({"prompt": "a word"}, None, ["prompt", "once"]),
    ],
)  # fmt: skip
def test_a_fault_is_one_sentence(tmp_path: Path, change: dict, spoil: object, said: list[str]) -> None:
    plain(tmp_path, **change)
    if spoil:
        spoil(tmp_path)
    with pytest.raises(UserError) as fault:
        data.load(profile(tmp_path))
    assert all(part in str(fault.value) for part in said), str(fault.value)
    assert "\n" not in str(fault.value)
    wanting = [need for need in data.needs(profile(tmp_path)) if need.ok is False]
    assert wanting, "`ood check` must see it too"


def test_few_rows_of_a_class_cannot_be_split(tmp_path: Path) -> None:
    plain(tmp_path)
    np.savez(tmp_path / "id.npz", images=cloud(13, 1), labels=[0] * 6 + [1] * 6 + [2], names=np.arange(13))
    with pytest.raises(UserError, match="class 'cow' has 1 of the 13 ID rows, too few to split"):
        data.load(profile(tmp_path))


def test_a_class_without_a_row_is_said(tmp_path: Path) -> None:
    one = {"images": "id.npz:images", "labels": "id.npz:labels"}
    plain(
        tmp_path,
        id=None,
        train=one,
        id_val=one,
        id_test=one,
        classes=[*CLASSES, "dog"],
        class_texts="four.npy",
    )
    np.save(tmp_path / "four.npy", cloud(4, 7))
    with pytest.raises(UserError, match="class 'dog' has no row in the training set"):
        data.load(profile(tmp_path))


def test_parts_of_other_widths_and_mixed_folders(tmp_path: Path) -> None:
    retrieval(tmp_path)
    np.save(tmp_path / "img_emb/img_emb_3.npy", np.ones((2, 5)))
    with pytest.raises(UserError, match=r"the parts of img_emb have different widths"):
        data.load(profile(tmp_path))
    (tmp_path / "img_emb/notes.txt").write_text("x")
    with pytest.raises(UserError, match="img_emb holds several kinds of files"):
        data.load(profile(tmp_path))


def test_a_study_is_there_or_it_is_said_where_it_should_be(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["run", "--profile", "embeddings"]) == 2
    assert "data_root = '' is no study.yaml" in capsys.readouterr().err
    assert cli.main(["run", "--profile", "embeddings", "-p", f"data_root={tmp_path}"]) == 2
    assert "no folder with one" in capsys.readouterr().err
    (tmp_path / "study.yaml").write_text("- a\n- b\n")
    with pytest.raises(UserError, match="no YAML of 'name: value' lines"):
        data.load(profile(tmp_path))
    plain(tmp_path)
    said = [str(need) for need in data.needs(profile(tmp_path))]
    assert (
        "30" not in said[0].split("study.yaml")[1]
        and "train 18 (id)" in said[1]
        and "far away 7 (far)" in said[1]
    )
    assert "split 60/20/20 % by class and data_seed" in said[2]


def test_model_and_lane_belong_together(tmp_path: Path) -> None:
    assert profile(tmp_path).pretrained == str(tmp_path)
    with pytest.raises(UserError, match="does not go with data = 'embeddings'"):
        profile(tmp_path, model="RN50")
    with pytest.raises(UserError, match="does not go with data = 'glyphs'"):
        config.Profile(model="residual-64")
    with pytest.raises(UserError, match="no hidden width"):
        models.load("residual-x", str(plain(tmp_path)))


# --- the model ---


def test_the_model_starts_at_zero_and_learns_both_maps(tmp_path: Path) -> None:
    values = profile(plain(tmp_path), steps=20, warmup=2, lr=1e-2, batch=16)
    study, (model, _, tokenizer) = data.load(values), models.load(values.model, values.pretrained)
    x = torch.nn.functional.normalize(torch.from_numpy(cloud(4, 8)), dim=-1)
    tokens = tokenizer(["cow", "word 7"])
    assert torch.allclose(model.encode_image(3 * x), x, atol=1e-6)
    start = {name: p.clone() for name, p in model.named_parameters()}
    recipe = values.recipe(objective="cma", lam=0.1, seed=0)
    log = training.fine_tune(
        model, tokenizer, study.train, study.class_names, recipe, tmp_path / "run", progress=False
    )
    assert log.positive.iloc[-5:].mean() > log.positive.iloc[:5].mean()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert {n.split(".")[0] for n in moved} == {"visual", "text", "logit_scale"} and len(moved) >= 12
    weights = tmp_path / "run/model.safetensors"
    again, _, reader = models.load(values.model, str(weights))  # needs no study
    assert torch.equal(again.encode_text(reader(["cow", "word 7"])), model.encode_text(tokens))
    before = embeddings.embed(study, values, tmp_path / "cache")
    after = embeddings.embed(study, values, tmp_path / "cache", str(weights))
    gain = (after["id_test"].rows * after.matched_text).sum(1).mean() - (
        before["id_test"].rows * before.matched_text
    ).sum(1).mean()
    assert gain > 0
    assert (
        models.Network(values.model, str(weights)).key != models.Network(values.model, values.pretrained).key
    )


def test_the_cache_sees_a_file_that_changed(tmp_path: Path) -> None:
    values = profile(plain(tmp_path))
    first = embeddings.embed(data.load(values), values, tmp_path / "cache")
    np.save(tmp_path / "classes.npy", cloud(3, 70))
    np.save(tmp_path / "far.npy", cloud(7, 71))
    second = embeddings.embed(data.load(values), values, tmp_path / "cache")
    np.testing.assert_allclose(second.class_text, unit(cloud(3, 70)), atol=1e-6)
    np.testing.assert_allclose(second["far away"].rows, unit(cloud(7, 71)), atol=1e-6)
    assert not np.allclose(first.class_text, second.class_text)


def test_the_tokenizer_knows_its_texts_alone(tmp_path: Path) -> None:
    model, preprocess, tokenizer = models.load("residual-8", str(plain(tmp_path)))
    assert tokenizer(["ant", "word 0", "ant"]).tolist() == [[0], [3], [0]]
    assert tokenizer([]).shape == (0, 1)
    with pytest.raises(UserError, match="has no text 'a zebra'"):
        tokenizer(["ant", "a zebra"])
    with pytest.raises(UserError, match="cannot read images"):
        preprocess(None)
    assert isinstance(model, residual.Residual) and next(model.visual.parameters()).dtype == torch.float32


def test_class_texts_win_over_equal_words_and_others_are_known(tmp_path: Path) -> None:
    (tmp_path / "bare.txt").write_text("ant\nbee\ncow\n")
    np.save(tmp_path / "bare.npy", cloud(3, 33))
    plain(
        tmp_path, prompt="a {}", negative_prompt="a {}", other_texts="bare.txt", other_embeddings="bare.npy"
    )
    values = profile(tmp_path, prompt="a {}", negative_prompt="a {}")
    model, _, tokenizer = models.load(values.model, values.pretrained)
    bare = embeddings.encode_texts(model, tokenizer, data.load(values).class_names)
    np.testing.assert_allclose(bare, unit(cloud(3, 33)), atol=1e-6)
    found = embeddings.embed(data.load(values), values, tmp_path / "cache", sets=[])
    np.testing.assert_allclose(found.class_text, unit(np.load(tmp_path / "classes.npy")), atol=1e-6)


def test_an_embedding_is_shown_as_a_tile(tmp_path: Path) -> None:
    study = data.load(profile(plain(tmp_path)))
    tile = picture(study.id_test, 0)
    row = study.id_test.dataset[0][0].numpy()
    assert tile.shape == (4, 4, 3) and tile.min() == 0 and tile.max() == 1
    assert (tile[..., 0] == tile[..., 2]).all()
    assert np.corrcoef(tile[..., 0].ravel()[:D], row)[0, 1] > 0.999


def test_a_run_is_done_again_when_a_file_of_the_study_changes(tmp_path: Path) -> None:
    from ood_utils.series.state import Inputs

    (tmp_path / "there").mkdir()
    plain(tmp_path / "there")
    (tmp_path / "here").mkdir()
    values = yaml.safe_load((tmp_path / "there/study.yaml").read_text())
    values["ood"]["far away"]["images"] = "../there/far.npy"
    (tmp_path / "there/study.yaml").write_text(yaml.safe_dump(values))
    given = profile(tmp_path / "there" / "study.yaml")
    before = Inputs(given, []).outside
    assert Inputs(given, []).outside == before
    np.save(tmp_path / "there/far.npy", cloud(9, 1))
    assert Inputs(given, []).outside != before


def test_check_reckons_the_disk_and_counts_what_no_set_takes(tmp_path: Path) -> None:
    from ood_utils.series import check

    parts = check.room(profile(plain(tmp_path)))
    assert all(0 <= size < 0.2 for size in parts.values())
    labels = np.array(["a", "b", "car", "boat"] * 10)
    np.savez(tmp_path / "all.npz", images=cloud(40, 4), labels=labels)
    plain(tmp_path, images="all.npz:images", labels="all.npz:labels", id=None, synonyms={},
          classes={"a": "ant", "b": "bee"}, ood={"car": "near"}, class_texts="two.npy")  # fmt: skip
    np.save(tmp_path / "two.npy", cloud(2, 7))
    assert any("10 rows of all.npz:images are in no set" in n.what for n in data.needs(profile(tmp_path)))


@pytest.mark.parametrize("changes", [{"relation": 0.3}, {"relation": 0.3, "image_lr": 0.0}, {"wise": 0.5}])
def test_every_recipe_works_on_a_float16_table(tmp_path: Path, changes: dict) -> None:
    """Distillation, a locked tower and weights half-way leave table and texts as they were."""
    plain(tmp_path)
    for name in ("classes", "words"):
        rows = np.load(tmp_path / "classes.npy") if name == "classes" else cloud(20, 3)
        np.save(tmp_path / f"{name}16.npy", rows.astype(np.float16))
    plain(tmp_path, class_texts="classes16.npy", word_texts="words16.npy")
    values = profile(tmp_path, steps=5, batch=16, lr=1e-2, **changes)
    study, (model, _, tokenizer) = data.load(values), models.load(values.model, values.pretrained)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    assert start["table"].dtype == torch.float16
    recipe = values.recipe(objective="cma", lam=0.01, seed=0)
    where = {"folder": tmp_path / "run", "progress": False, "words": WORDS}
    log = training.fine_tune(model, tokenizer, study.train, study.class_names, recipe, **where)
    assert np.isfinite(log.to_numpy(float)).all() and (log.relation > 0).any() == ("relation" in changes)
    moved = {
        name.split(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, start[name])
    }
    assert moved == {"visual", "text", "logit_scale"} - ({"visual"} if "image_lr" in changes else set())

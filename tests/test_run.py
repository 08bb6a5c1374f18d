"""Profiles, run folders, provenance, seeds and files."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import yaml

from ood_utils import config, files, store
from ood_utils.errors import UserError

matplotlib.use("agg")


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.delenv("OOD_RUNNER", raising=False)
    return tmp_path / "outputs"


@pytest.fixture
def begun(outputs):
    return store.RunFolder(outputs / "here", config.Profile(), "01_first")


# --- profiles ---


@pytest.mark.parametrize("name", ["glyphs", "glyphs-tiny", "folder", "imagenet"])
def test_shipped_profiles_are_valid(name):
    assert config.load_profile(name).title


def test_imagenet_profile_is_the_official_recipe():
    values = config.load_profile("imagenet")
    recipe = dict(
        epochs=10, batch=512, lr=1e-5, warmup=500, weight_decay=0.1, lam=0.001, crop_scale=[0.9, 1.0]
    )
    recipe |= dict(model="ViT-B-16-quickgelu", pretrained="openai", prompt="The nice {}", decay_all=True)
    recipe |= dict(scale_mode="learned", quantile=0.95, keep=0.15, groups=1, temperature=0.01)
    assert {name: getattr(values, name) for name in recipe} == recipe


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lam": 2}, ["lam = 2", "less than or equal to 1"]),
        ({"lams": [0, -0.1]}, ["lams", "greater than or equal to 0"]),
        ({"temperature": 0}, ["temperature = 0", "greater than 0"]),
        ({"id_classes": -1}, ["id_classes = -1"]),
        ({"ood_images": -5}, ["ood_images = -5"]),
        ({"steps": 0}, ["steps = 0"]),
        ({"seeds": [0, 0]}, ["seeds", "different"]),
        ({"lam": "much"}, ["lam = 'much'", "number"]),
        ({"lam": True}, ["lam = True", "number"]),
        ({"steps": 4.5}, ["steps = 4.5", "integer"]),
        ({"lr": float("nan")}, ["lr", "finite"]),
        ({"lr": None}, ["lr = None"]),
        ({"data": "glyph"}, ["data = 'glyph'", "'glyphs', 'folder' or 'imagenet'"]),
        ({"prompt": "a picture"}, ["prompt", "{}"]),
        ({"crop_scale": [1.0, 0.5]}, ["crop_scale"]),
        ({"batch": 128, "processes": 3}, ["batch = 128", "processes = 3"]),
        ({"lamda": 0.1}, ["unknown parameter 'lamda'", "did you mean lam"]),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence(changes, words):
    with pytest.raises(UserError) as refusal:
        config.load_profile("glyphs", changes)
    message = str(refusal.value)
    assert all(word in message for word in ["glyphs", *words]) and "\n" not in message


def test_unknown_profile_names_the_nearest():
    with pytest.raises(UserError, match="unknown profile 'glyhps'; did you mean glyphs"):
        config.load_profile("glyhps")
    with pytest.raises(UserError, match="does not exist"):
        config.load_profile("nowhere/mine.yaml")


@pytest.mark.parametrize("text", ["a: [1, 2", "\t: {", "\x00"])
def test_a_profile_that_is_not_yaml_is_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml.* is not YAML"):
        config.load_profile(tmp_path / "mine.yaml")


def test_a_profile_that_is_a_list_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("- lam\n- lr\n")
    with pytest.raises(UserError, match="name: value"):
        config.load_profile(tmp_path / "mine.yaml")


def test_numbers_are_read_as_people_write_them():
    assert config.parse_yaml("{a: 1e-5, b: 2.5E+3, c: -1e3, d: 7, e: x1e5, f: .5e1}") == {
        **{"a": 1e-5, "b": 2500.0, "c": -1000.0, "d": 7, "e": "x1e5", "f": 5.0}
    }
    with pytest.raises(yaml.YAMLError):
        config.parse_yaml("[1")


def test_relative_paths_count_from_the_profile(tmp_path):
    (tmp_path / "my.images").mkdir()
    (tmp_path / "mine.yaml").write_text(
        "data: folder\ndata_root: ./my.images\nood_roots: {birds: ./my.images}\n"
    )
    values = config.load_profile(tmp_path / "mine.yaml")
    assert values.data_root == values.ood_roots["birds"] == str(tmp_path / "my.images")


def test_key_follows_what_changes_results_and_nothing_else():
    base = config.Profile()
    assert (
        base.key()
        == config.Profile(title="other", minutes={"01": 3}, timeout_minutes=1, workers=4, parallel=1).key()
    )
    assert base.key() != config.Profile(lam=0.01).key()


def test_expected_seconds():
    values = config.Profile(minutes={"01": 2, "02_train": 0.5})
    assert [values.expected_seconds(name) for name in ("01_gap", "02_train", "03_sphere")] == [120, 30, 0]


# --- a run ---


def test_start_notes_interactive_use_from_any_folder(outputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    begun = store.start("01_first", "glyphs-tiny", "mine", {"lam": 0.01})
    record = json.loads((outputs / "mine" / "run.json").read_text())
    assert record["notebooks"]["01_first"]["status"] == "interactive" and record["parameters"]["lam"] == 0.01
    assert record["schema_version"] == store.SCHEMA_VERSION and record["id"] == begun.id
    assert {"commit", "dirty", "versions", "machine", "torch", "time"} <= record["provenance"].keys()
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and begun.id in said and "glyphs-tiny" in said


def test_start_leaves_a_done_notebook_done(outputs):
    store.start("01_first", "glyphs-tiny")
    record = store.read_record(outputs / "glyphs-tiny")
    record["notebooks"]["01_first"]["status"] = "done"
    store.write_record(outputs / "glyphs-tiny", record)
    store.start("01_first", "glyphs-tiny")
    assert store.read_record(outputs / "glyphs-tiny")["notebooks"]["01_first"]["status"] == "done"


def test_start_under_the_runner_writes_nothing(outputs, monkeypatch):
    monkeypatch.setenv("OOD_RUNNER", "1")
    assert store.start("01_first", "glyphs-tiny").folder.name == "glyphs-tiny"
    assert not outputs.exists()


@pytest.mark.parametrize("name", ["../up", "a{b}", "a b", ".hidden", "a/b"])
def test_a_run_name_that_is_no_folder_name_is_refused(name):
    with pytest.raises(UserError, match="run name"):
        store.run_name(name, "glyphs")


def test_a_folder_of_another_version_is_refused(outputs):
    files.atomic_write(outputs / "old" / "run.json", '{"schema_version": 0}')
    with pytest.raises(UserError, match=r"another version.*--force.*--run"):
        store.start("01_first", "glyphs-tiny", "old")
    files.atomic_write(outputs / "old" / "run.json", '{"schema')
    with pytest.raises(UserError, match="cannot be read"):
        store.start("01_first", "glyphs-tiny", "old")


def test_tables_come_back_as_they_were(begun):
    frame = pd.DataFrame({"method": ["FLYP", "CMA"], "auroc": [0.9, 0.1 + 0.2], "lam": [0, 0.003]})
    begun.save_table("methods", frame)
    pd.testing.assert_frame_equal(begun.load_table("methods"), frame)
    assert (
        (begun.folder / "tables" / "methods.csv").read_text().startswith("method,auroc,lam\nFLYP,0.9,0.0\n")
    )
    with pytest.raises(UserError, match="run notebook 02_train first"):
        begun.load_table("absent", made_by="02_train")


def test_figures_carry_the_run_and_their_data(begun):
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(2, 2))
    axes.plot([0, 1])
    path = begun.path("figures", "line.png")
    begun.save_figure("line", figure, pd.DataFrame({"x": [0, 1]}))
    first = path.read_bytes()
    assert [text.get_text() for text in figure.texts] == [begun.id]
    begun.save_figure("line", figure)
    assert path.read_bytes() == first and len(figure.texts) == 1
    assert (begun.folder / "figures" / "line.csv").read_text() == "x\n0\n1\n"
    plt.close(figure)


def test_results_are_plain_json(begun):
    begun.save_results({"gap": np.float32(0.5), "n": np.int64(3), "x": float("nan"), "rows": np.arange(2)})
    saved = begun.load_results("01_first")
    assert saved.pop("provenance").keys() == {"torch"}
    assert saved == {"gap": 0.5, "n": 3, "x": None, "rows": [0, 1]}
    with pytest.raises(UserError, match="run notebook 02_train first"):
        begun.load_results("02_train")


def test_paths_are_made_and_kinds_are_known(begun):
    assert begun.path("checkpoints", "cma-0/model").parent.is_dir() and begun.path("embeddings").is_dir()
    with pytest.raises(ValueError, match="did you mean figures"):
        begun.path("figure")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_refusing_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, monkeypatch, code):
    path = files.atomic_write(tmp_path / "run.json", "old")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(store.os, "replace", refuse)
    with pytest.raises(UserError, match=r"cannot write .*run\.json: .*OOD_OUTPUTS"):
        files.atomic_write(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_fault_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "a.txt") as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_seeds_decide_what_is_drawn():
    def draw():
        store.seed_everything(5)
        return random.random(), np.random.rand()

    assert draw() == draw()


def test_root_does_not_depend_on_the_working_directory(tmp_path):
    code = "from ood_utils import run; print(run.ROOT, run.OUTPUTS)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OOD_")}
    environment["PYTHONPATH"] = str(config.PACKAGE.parent)
    ask = [sys.executable, "-c", code]
    said = subprocess.run(
        ask, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    root = Path(__file__).resolve().parent.parent
    assert said.split() == [str(root), str(root / "outputs")]
    environment |= {"OOD_ROOT": str(tmp_path), "OOD_OUTPUTS": str(tmp_path / "else")}
    said = subprocess.run(ask, cwd="/", env=environment, capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(tmp_path), str(tmp_path / "else")]


def test_progress_is_plain_text_off_a_terminal(capsys):
    assert list(files.progress(range(3), desc="encode")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")  # too short to be worth a bar
    bar = files.progress(total=3, desc="encode")
    bar.start_t, bar.last_print_t = bar.start_t - 10, bar.last_print_t - 10  # as if ten seconds had gone by
    bar.update(3)
    said = capsys.readouterr()
    assert "encode" in said.out and "3/3" in said.out and not said.err
    bar.close()

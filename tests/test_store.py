"""The folder of a run: tables, figures, results, run.json, and how a notebook begins."""

from __future__ import annotations

import json

import matplotlib
import numpy as np
import pandas as pd
import pytest

from ood_utils import config, files, store
from ood_utils.errors import UserError

matplotlib.use("agg")


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.delenv("OOD_RUNNER", raising=False)
    return tmp_path / "outputs"


@pytest.fixture
def begun(outputs):
    return store.RunFolder(outputs / "here", config.Profile(), "01_first")


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
    path = begun.folder / "figures" / "line.png"
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

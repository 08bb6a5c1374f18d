"""The notebooks, run by the runner on the tiny profile; their results asserted, not just their exit
status.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import NAMES, faults

from ood_utils import detector, metrics

ROOT = Path(__file__).parents[1]
TRAINED = ("FLYP", "CMA", "CMA closed")
METHODS = {"zero-shot", *TRAINED, *(f"{name} + relation" for name in TRAINED)}
pytestmark = [pytest.mark.series, pytest.mark.slow, pytest.mark.timeout(900)]


def _ood(outputs: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "ood_utils", *words],
        env=os.environ | {"OOD_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"},
        cwd=outputs.parent,  # any working directory will do
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("series") / "outputs"
    outputs.mkdir()
    done = _ood(outputs, "run", "--profile", "glyphs-tiny")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return outputs / "glyphs-tiny"


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, dict]:
    return {name: json.loads((folder / "results" / f"{name}.json").read_text()) for name in NAMES}


def test_every_notebook_is_done_and_says_from_what(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    assert {n: e["status"] for n, e in record["notebooks"].items()} == dict.fromkeys(NAMES, "done")
    assert record["status"] == "done" and record["provenance"]["versions"]["torch"]
    for name in NAMES:
        cells = json.loads((folder / "notebooks" / f"{name}.ipynb").read_text())["cells"]
        counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
        assert counts == list(range(1, len(counts) + 1)), name
        assert (folder / "notebooks" / f"{name}.ipynb").stat().st_size < 2_000_000
    assert (folder / "index.html").stat().st_size > 5_000


def test_the_report_is_whole(folder: Path) -> None:
    assert faults(folder) == []


def test_the_modality_gap_is_clips(results: dict) -> None:
    found = results["01_modality_gap"]
    assert 0.70 <= found["centroid_gap"] <= 0.95
    assert 0.5 <= found["zero_shot_accuracy"] <= 0.98  # 40 classes of 267: easier than the card's
    assert found["separability"] > 0.99 and found["rmg"] > 0.4
    assert 0.3 < found["centroid_share"] < 0.95
    assert 0.80 <= found["neglabel_auroc"] <= 0.999


def test_alignment_closes_the_gap_more_the_larger_lam_is(folder: Path, results: dict) -> None:
    sweep = pd.read_parquet(folder / "tables" / "sweep.parquet")
    gap = sweep[sweep.method.str.match("FLYP$|CMA")].sort_values("lam").centroid_gap
    assert gap.iloc[-1] < gap.iloc[0] - 0.05
    found = results["02_train_aligned"]
    assert found["CMA closed_centroid_gap"] < found["FLYP_centroid_gap"] and found["relation"] == 0.3
    table = pd.read_parquet(folder / "tables" / "before_after.parquet")
    assert set(table.method) == METHODS and table.notna().all().all()


def test_only_the_exact_map_draws_the_gap(folder: Path, results: dict) -> None:
    found = results["03_hypersphere"]
    assert found["gap error gap-latitude"] < 0.15 < found["gap error DOSNES"]
    errors = pd.read_parquet(folder / "tables" / "picture_errors.parquet")
    assert len(errors) == 6 and errors.notna().all().all()
    page = (folder / "figures" / "globe.html").read_text()
    assert "plotly" in page.lower() and 'src="http' not in page


def test_the_leaderboard_is_whole_and_agrees_with_the_metrics(folder: Path) -> None:
    board = pd.read_parquet(folder / "tables" / "leaderboard.parquet")
    assert set(board.method) == METHODS
    assert set(board.score) == {"MSP", "MaxLogit", "Energy", "MCM", "NegLabel", "P - beta N"}
    assert board.groupby(["method", "seed", "score"]).size().nunique() == 1
    values = board[[*metrics.METRICS]].to_numpy()
    assert np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()
    far = board[(board.set == "average far") & (board.score == "NegLabel")]
    near = board[(board.set == "average near") & (board.score == "NegLabel")]
    assert far.auroc.mean() > near.auroc.mean() > 0.6
    differences = pd.read_parquet(folder / "tables" / "differences.parquet")
    assert (differences.low <= differences.high).all() and set(differences.verdict) <= {
        "better",
        "worse",
        "not settled",
        "exploratory",
    }


def test_every_list_and_tower_is_in_its_table(folder: Path) -> None:
    lists = pd.read_parquet(folder / "tables" / "negative_list.parquet")
    assert {"in use", "synonyms and twins left in", "OoD names out (looks at the test)"} <= set(lists.method)
    whole = lists.set_index(["method", "score", "set"]).auroc
    for model in ("zero-shot", "FLYP", "CMA"):  # P / (N + P) orders images as P / N does
        both = (whole[name, model, "average all"] for name in ("in use", "all ID names added"))
        assert np.isclose(*both, atol=0.02)
    swaps = pd.read_parquet(folder / "tables" / "towers.parquet")
    assert set(swaps.towers) == {"zero-shot", "FLYP", "FLYP texts only", "FLYP images only"}
    moved = pd.read_parquet(folder / "tables" / "who_moved.parquet").groupby(["method", "what"]).moved.mean()
    assert moved["FLYP + relation", "far images"] < moved["FLYP", "far images"]


def test_the_gallery_measures_every_kind_of_method_by_one_protocol(folder: Path) -> None:
    board = pd.read_parquet(folder / "tables" / "gallery.parquet")
    listed = pd.read_parquet(folder / "tables" / "gallery_methods.parquet").set_index("kind").name
    assert set(listed["adaptations"]) <= set(board.model) and set(listed["adaptive"]) <= set(board.score)
    own = pd.read_parquet(folder / "tables" / "leaderboard.parquet").query("set == 'average all'")
    zero = own.query("method == 'zero-shot'").set_index("score").auroc
    rows = board.query("model == 'zero-shot' and test_time == 'no'").set_index("score")["auroc all"]
    assert all(rows[name] == pytest.approx(zero[name], abs=1e-9) for name in ("MCM", "NegLabel", "Energy"))
    flyp = own.query("method == 'FLYP' and score == 'NegLabel' and seed == 0").auroc.item()
    assert board.query("model == 'FLYP' and score == 'NegLabel'")["auroc all"].item() == pytest.approx(
        flyp, abs=1e-9
    )
    failed = pd.read_csv(folder / "tables" / "gallery_failed.csv")
    assert failed.reason.str.contains(" needs ").all()  # what a model lacks, and nothing that broke
    streams = pd.read_parquet(folder / "tables" / "streams.parquet").query("group == 'all'")
    assert streams.groupby(["model", "score"]).size().eq(6).all()
    assert set(streams.score) == {*listed["adaptive"], "NegLabel"} and set(streams.model) == {
        "zero-shot",
        "CMA",
    }
    claims = pd.read_parquet(folder / "tables" / "gallery_claims.parquet")
    assert set(claims.verdict) <= {"holds", "the reverse", "not settled"} and len(claims) > 20
    combined = pd.read_parquet(folder / "tables" / "gallery_combined.parquet")
    assert combined.validation.is_monotonic_decreasing and {"yes", "no"} == set(combined.test_time)


def words(folder: Path) -> dict[str, list[str]]:
    """Notebook -> what it says in Markdown and which verdicts it gives, without the numbers."""
    said = {}
    for name in (name for name in NAMES if not name.startswith("05")):
        cells = json.loads((folder / "notebooks" / f"{name}.ipynb").read_text())["cells"]
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        texts = ["".join(data["text/markdown"]) for data in outputs if "text/markdown" in data]
        said[name] = [re.sub(r"[-+]?\d[\d,.]*(e-\d+)?", "#", text) for text in texts]
    verdicts = pd.read_parquet(folder / "tables" / "differences.parquet").query("family")
    return said | {"verdicts": verdicts[["a", "b", "score", "group", "verdict"]].to_numpy().tolist()}


def test_another_cpu_says_the_same_words(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers move within rounding, and training makes that more; no claim may turn on it."""
    for setting in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.setenv(setting, "default" if setting.startswith("ATEN") else "SSE41")
    (outputs := tmp_path / "outputs").mkdir()
    speaking = [name for name in NAMES if not name.startswith("05")]  # its tables and figures speak, no prose
    done = _ood(outputs, "run", "--profile", "glyphs-tiny", "--only", *speaking)
    assert done.returncode == 0, done.stderr[-3000:]
    assert words(outputs / "glyphs-tiny") == words(folder)


def test_the_saved_detector_accepts_id_and_rejects_far(folder: Path) -> None:
    guard = detector.Detector.load(folder / "detector")
    images = np.random.default_rng(0).random((3, 40, 50, 3))
    from PIL import Image

    found = guard.score([Image.fromarray((255 * i).astype(np.uint8)) for i in images])
    assert found["score"].shape == (3,) and set(found["nearest"]) <= set(guard.class_names)
    carried = pd.read_parquet(folder / "tables" / "acceptance.parquet")
    assert ((carried.low <= carried.share) & (carried.share <= carried.high)).all()
    assert (carried.share[1:] - carried.expected[1:]).abs().max() < 0.03  # within a split the rule is right


def test_your_images_end_in_a_detector_that_can_be_moved(folder: Path, results: dict, tmp_path: Path) -> None:
    own, sets = results["06_your_images"], pd.read_parquet(folder / "tables" / "own_sets.parquet")
    assert own["copies"] == 1  # the letter that strayed among the arrows
    assert "answer" not in own  # the report opens with the paper's question, not with the demo
    assert set(sets["split"]) == {"validation", "test"} and set(sets["use"]) <= {"yes", "no", "not settled"}
    split = pd.read_parquet(folder / "tables" / "own_split.parquet")
    assert split["image"].is_unique and all((folder / image).is_file() for image in split["image"])
    moved = tmp_path / "moved"
    shutil.copytree(folder / "own_detector", moved)
    test = [str(folder / image) for image in split[split["set"] == "id_test"]["image"]]
    asked = ["score", *test, "--detector", str(moved), "--csv", str(tmp_path / "found.csv")]
    done = _ood(folder.parent, *asked)
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(tmp_path / "found.csv")
    assert len(found) == len(test) and found["is_id"].mean() == pytest.approx(own["accepted"], abs=0.02)


def test_figures_are_small_and_come_with_their_data(folder: Path) -> None:
    figures = sorted((folder / "figures").glob("*.png"))
    assert len(figures) >= 18
    for path in figures:
        assert path.stat().st_size < 500_000, path.name
        assert path.with_suffix(".csv").stat().st_size > 0, path.name


def test_a_second_call_runs_nothing(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (folder / "notebooks").glob("*.ipynb")}
    again = _ood(folder.parent, "run", "--profile", "glyphs-tiny")
    assert again.returncode == 0, again.stderr
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "notebooks").glob("*.ipynb")}

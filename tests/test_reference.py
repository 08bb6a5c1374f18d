"""The committed run is small, whole, and what the README quotes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from pages import faults

from ood_utils import config, store
from ood_utils.errors import UserError
from ood_utils.tools import reference

ROOT = Path(__file__).parents[1]


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run "mine" of one set, and a README with marks."""
    folder = tmp_path / "outputs" / "mine"
    for name in ("notebooks", "figures", "tables", "results", "checkpoints"):
        (folder / name).mkdir(parents=True)
    record = {"schema_version": store.SCHEMA_VERSION, "status": "done", "notebooks": {}}
    (folder / "run.json").write_text(json.dumps(record))
    links = '<p><a href="tables/claims.csv">csv</a>, <a href="tables/claims.parquet">parquet</a></p>'
    (folder / "index.html").write_text(f'<b>report</b>{links} <a href="figures/x.csv">data</a>')
    (folder / "figures" / "globe.html").write_text("plotly" * 1_000_000)
    (folder / "checkpoints" / "w.safetensors").write_text("weights")
    row = {"group": "far", "score": "NegLabel", "CMA": "12.3 [10.0, 15.0]"}
    pd.DataFrame([row]).to_csv(folder / "tables" / "answer.csv", index=False)
    pd.DataFrame([{"statistic": "centroid gap", "this model": 0.8123}]).to_csv(
        folder / "tables" / "stand_in.csv", index=False
    )
    (folder / "results" / "04_ood_detection.json").write_text(json.dumps({"answer": ["**Yes.**"]}))
    pd.DataFrame({"claim": ["- **far**: the order holds."]}).to_csv(
        folder / "tables" / "claims.csv", index=False
    )
    (tmp_path / "README.md").write_text(
        f"# Title\n{reference.MARKS[0]}\nstale text\n{reference.MARKS[1]}\nend\n"
    )
    monkeypatch.setattr(store, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(config, "ROOT", tmp_path)
    return tmp_path / "outputs"


def test_a_run_is_copied_without_its_bulk_and_quoted(outputs: Path) -> None:
    reference.main(["mine"])
    kept = {
        str(p.relative_to(outputs / "reference")) for p in (outputs / "reference").rglob("*") if p.is_file()
    }
    assert kept == {
        "index.html",
        "run.json",
        "figures/globe.html",
        "tables/answer.csv",
        "tables/claims.csv",
        "tables/stand_in.csv",
        "results/04_ood_detection.json",
    }
    text = (outputs.parent / "README.md").read_text()
    assert (
        "| group | score | CMA |\n| --- | --- | --- |\n| far | NegLabel | 12.3 [10.0, 15.0] |" in text
        and "| statistic | GlyphCLIP |" in text
        and "| centroid gap | 0.81 |" in text
        and "**Yes.**" in text
        and "stale" not in text
        and text.endswith("end\n")
    )
    assert "the order holds" in text
    index = (outputs / "reference" / "index.html").read_text()
    assert index == '<b>report</b><p><a href="tables/claims.csv">csv</a></p>' and not faults(
        outputs / "reference"
    )


def test_a_mistake_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ood_utils.tools.reference", "nothing"]
    environment = os.environ | {"OOD_OUTPUTS": str(tmp_path)}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.returncode == 2 and said.stdout == ""
    assert said.stderr.startswith("reference: run ") and said.stderr.count("\n") == 1


def test_an_unfinished_or_large_run_is_refused(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "LIMIT", 100)
    with pytest.raises(UserError, match="MB, more than"):
        reference.main(["mine"])
    record = json.loads((outputs / "mine" / "run.json").read_text()) | {"status": "failed"}
    (outputs / "mine" / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="not done"):
        reference.main(["mine"])


def test_the_readme_quotes_the_committed_run() -> None:
    folder = ROOT / "outputs" / "reference"
    assert reference.headline_table(folder) in (ROOT / "README.md").read_text()
    assert (folder / "figures" / "headline.png").exists() and (folder / "index.html").exists()
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= reference.LIMIT
    assert json.loads((folder / "run.json").read_text())["provenance"]["commit"]


def test_the_committed_report_is_whole() -> None:
    assert faults(ROOT / "outputs" / "reference") == []

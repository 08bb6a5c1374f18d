"""The imagenet profile end to end by papermill, on a miniature ImageNet and a small model by path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mini_imagenet
import pandas as pd
import pytest
from pages import NAMES

from ood_utils import config, data, models, training
from ood_utils.data.lanes.imagenet import SETS
from ood_utils.series import report

pytestmark = [pytest.mark.series, pytest.mark.slow, pytest.mark.timeout(900)]
BROKEN = ("MOS/SUN/SUN/1.jpg", "imagenet/val/n01443537/ILSVRC2012_val_15.JPEG")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Two images are broken; the weights have learnt the colours of the classes, on other
    seeds.
    """
    root = tmp_path_factory.mktemp("paper")
    mini_imagenet.build(root / "data", 6, 8, 6)
    for name in BROKEN:
        (root / "data" / name).write_bytes(b"\xff\xd8 cut")
    changes = {
        "data_root": str(root / "data"), "corpus": str(mini_imagenet.wordnet(root / "dict")), "id_classes": 6,
        "model": "GlyphCLIP", "pretrained": "builtin", "device": "cpu", "precision": "fp32", "workers": 0,
        "epochs": 1, "batch": 16, "warmup": 1, "lr": 1e-4, "lams": [0, 0.1], "seeds": [0],
        "relations": [0.3], "image_lrs": [],
        "keep": 0.5, "keep_counts": {"adj": 6, "noun": 5}, "max_unreadable": 0.2, "points": 10,
        "bootstrap": 20,
        "projections": ["gap-latitude", "PCA"], "embed_batch": 16, "parallel": 0, "timeout_minutes": 10,
        "gallery_steps": 0.002,
    }  # fmt: skip
    profile = config.load_profile("imagenet", changes)
    study, (model, _, tokenizer) = data.load(profile), models.load("GlyphCLIP", "builtin")
    texts = [profile.prompt.format(name) for name in study.class_names]
    recipe = config.Recipe(lam=0, steps=80, batch=24, lr=1e-3, warmup=5, seed=9)
    training.fine_tune(model, tokenizer, study.train, texts, recipe, root / "start", progress=False)
    changes |= {"pretrained": str(root / "start" / "model.safetensors")}
    values = [f"{n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in changes.items()]
    done = subprocess.run(
        [sys.executable, "-m", "ood_utils", "run", "--profile", "imagenet", "-p", *values],
        env=os.environ | {"OOD_OUTPUTS": str(root / "outputs"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return root / "outputs" / "imagenet"


def test_the_four_notebooks_are_done_on_every_set_of_the_paper(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    assert {n: e["status"] for n, e in record["notebooks"].items()} == dict.fromkeys(NAMES, "done")
    board = pd.read_parquet(folder / "tables" / "leaderboard.parquet")
    tests = {name for name, (group, *_) in SETS.items() if group != "validation"}
    assert tests < set(board.set) and "val_openimage_o" not in set(board.set)
    trained = {"FLYP", "CMA", "CMA closed"}
    assert set(board.method) == {"zero-shot", *trained, *(f"{name} + relation" for name in trained)}
    assert board.auroc.between(0, 1).all()
    found = json.loads((folder / "results" / "02_train_aligned.json").read_text())
    assert found["CMA_centroid_gap"] < found["FLYP_centroid_gap"]


def test_the_paper_s_numbers_stand_beside_ours_and_never_for_ours(folder: Path) -> None:
    table = pd.read_parquet(folder / "tables" / "against_paper.parquet")
    assert {"iNaturalist", "SUN", "Places", "Textures"} <= set(table.set)
    board = pd.read_parquet(folder / "tables" / "leaderboard.parquet").query(
        "method == 'CMA' and score == 'NegLabel'"
    )
    ours = board.set_index("set").fpr95_id
    row = table.query("set == 'SUN' and method == 'CMA' and score == 'NegLabel'").iloc[0]
    assert row.paper == pytest.approx(0.1684) and row.ours == pytest.approx(ours["SUN"], abs=1e-9)
    assert set(table.verdict) == {"not comparable"}
    assert row.differs.startswith(
        "model GlyphCLIP, not ViT-B-16-quickgelu; weights model.safetensors, not ope"
    )
    assert "ID classes 6, not 1000; ID images 35, not 50000; OoD images 5, not 10000; epochs 1" in row.differs
    own = board[["set", "fpr95_id"]].set_index("set").fpr95_id
    far = ["iNaturalist", "SUN", "Places", "Textures", "OpenImage-O"]  # no image twice
    assert own["average far"] == pytest.approx(own[far].mean(), abs=1e-9)


def test_negatives_are_cma_s_split_without_id_names_and_say_whence(folder: Path) -> None:
    mined = pd.read_parquet(folder / "tables" / "negatives.parquet")
    qualities = set(mini_imagenet.QUALITIES.split())
    assert [word in qualities for word in mined.word] == [True] * 6 + [False] * 5
    assert not set(mined.word) & {"goldfish", "man-eater", "tench"}  # the second is WordNet's synonym
    assert mined.prompt[0] == f"This is a {mined.word[0]} photo"
    assert mined.prompt[10] == f"The nice {mined.word[10]}"
    record = json.loads((folder / "run.json").read_text())
    facts = record["notebooks"]["04_ood_detection"]["facts"]["negatives"]
    assert facts["source"].endswith("/dict") and len(facts["embeddings_sha256"]) == 64 == len(facts["sha256"])


def test_unreadable_images_are_counted_and_named_in_the_report(folder: Path) -> None:
    lost = report.unreadable(folder)
    assert {name: [Path(p).name for p in paths] for name, paths in lost.items()} == {
        "SUN": ["1.jpg"],
        "id_test": ["ILSVRC2012_val_15.JPEG"],
    }
    page = (folder / "index.html").read_text()
    assert "2 images could not be decoded" in page and all(Path(name).name in page for name in BROKEN)

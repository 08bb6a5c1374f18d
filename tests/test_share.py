"""``ood embed``: what it writes, and that a run on it says what the image lane says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mini_imagenet
import numpy as np
import pandas as pd
import pytest
from pages import NAMES

from ood_utils import __main__ as cli
from ood_utils import config, data, embeddings, geometry, leaderboard, share, store
from ood_utils.errors import UserError
from ood_utils.tools import real_clip

HALF = 2.0**-11  # relative rounding of float16


@pytest.fixture(scope="module")
def image_lane() -> config.Profile:
    return config.load_profile("glyphs-tiny")


@pytest.fixture(scope="module")
def written(image_lane: config.Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    share.write(image_lane, root / "tiny", root / "cache", "glyphs-tiny")
    return root / "tiny"


@pytest.fixture(scope="module")
def both(image_lane: config.Profile, written: Path) -> dict[str, embeddings.StudyEmbeddings]:
    """The image lane's zero-shot embeddings with negatives, and the written study's."""
    given, found = config.load_profile(written / "tiny.yaml"), {}
    for name, profile in (("images", image_lane), ("given", given)):
        embedded = embeddings.embed(data.load(profile), profile, written.parent / "cache")
        found[name] = embedded.with_negatives(embeddings.mine(embedded, profile))
    return found


def test_the_written_study_is_the_image_lane_s_in_float16(
    written: Path, both: dict, image_lane: config.Profile
) -> None:
    images, given = both["images"], both["given"]
    assert list(given.sets) == list(images.sets)
    for name, one in images.sets.items():
        other = given[name]
        assert np.load(written / f"{name}.npy").dtype == np.float16
        assert (other.group, other.ids, other.labels.tolist()) == (one.group, one.ids, one.labels.tolist())
        assert (other.together == one.together).all()
        assert np.abs(other.rows - one.rows).max() < 10 * HALF
    assert np.abs(given.class_text - images.class_text).max() < 10 * HALF
    assert np.abs(given.corpus_text - images.corpus_text).max() < 10 * HALF
    assert (given.corpus, given.class_names, given.synonyms) == (
        images.corpus,
        images.class_names,
        images.synonyms,
    )
    assert given.scale == pytest.approx(images.scale, rel=1e-5)
    train = data.load(config.load_profile(written / "tiny.yaml")).train
    assert train.ids == data.load(image_lane).train.ids


def test_a_run_on_it_gives_the_image_lane_s_table(both: dict, image_lane: config.Profile) -> None:
    """Every AUROC and FPR95 within what the rounding of float16 can move: an image or two per set."""
    boards = [leaderboard.image_scores({("zero-shot", 0): e}, image_lane).table() for e in both.values()]
    ours, theirs = (board.set_index(["score", "set"]) for board in boards)
    assert list(ours.index) == list(theirs.index)
    assert (ours.auroc - theirs.auroc).abs().max() < 0.005
    assert (ours.fpr95_id - theirs.fpr95_id).abs().max() <= 2.5 / ours.n_ood.min()
    shared = set(both["images"].negatives.words) & set(both["given"].negatives.words)
    assert len(shared) > 0.99 * len(both["images"].negatives)


def test_it_is_whole_or_not_there_and_goes_on_from_the_cache(
    written: Path, image_lane: config.Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    cache = written.parent / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(share, "_write_texts", full)
        with pytest.raises(UserError, match="cannot write .*No space left"):
            share.write(image_lane, tmp_path / "out", cache, "glyphs-tiny")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(embeddings, "encode_images", full)  # all that is needed is in the cache
    share.write(image_lane, tmp_path / "out", cache, "glyphs-tiny")
    assert {p.name: p.stat().st_size for p in written.glob("*.npy")} == {
        p.name: p.stat().st_size for p in (tmp_path / "out").glob("*.npy")
    }
    with pytest.raises(UserError, match="is there already"):
        share.write(image_lane, tmp_path / "out", cache, "glyphs-tiny")
    with pytest.raises(UserError, match="is embeddings already"):
        share.write(config.load_profile(written / "tiny.yaml"), tmp_path / "o", cache, "tiny")


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(store, "OUTPUTS", tmp_path / "outputs")
    assert cli.main(["embed", "--profile", "imagenet", "--out", str(tmp_path / "x")]) == 2
    assert "data_root = '' is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        cli.main(["embed", "--help"])
    assert end.value.code == 0 and "float16" in capsys.readouterr().out
    asked: list[tuple] = []
    monkeypatch.setattr(share, "write", lambda *words: asked.append(words) or words[1].mkdir() or words[1])
    assert (
        cli.main(["embed", "--profile", "glyphs-tiny", "-p", "id_views=2", "--out", str(tmp_path / "mine")])
        == 0
    )
    profile, out, cache, source = asked[0]
    assert (profile.id_views, out, cache) == (
        2,
        tmp_path / "mine",
        tmp_path / "outputs/glyphs-tiny/embeddings",
    )
    assert source == "glyphs-tiny" and "mine.yaml" in capsys.readouterr().out


def _run(outputs: Path, *words: str) -> Path:
    environment = os.environ | {"OOD_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ood_utils", "run", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    (folder,) = outputs.iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert {n: e["status"] for n, e in record["notebooks"].items()} == dict.fromkeys(NAMES, "done")
    return folder


@pytest.mark.series
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_series_runs_on_a_written_study(written: Path, both: dict, tmp_path: Path) -> None:
    words = ["seeds=[0]", "relations=[]", "gallery_models=[cma,lp]"]  # what this lane does otherwise, no more
    folder = _run(tmp_path / "outputs", "--profile", str(written / "tiny.yaml"), "-p", *words)
    assert folder.name == "tiny"
    board = pd.read_parquet(folder / "tables/zero_shot.parquet").set_index(["score", "set"])
    profile = config.load_profile("glyphs-tiny")
    ours = leaderboard.image_scores({("zero-shot", 0): both["images"]}, profile).table()
    gap = (board.auroc - ours.set_index(["score", "set"]).auroc).abs()
    assert len(gap.dropna()) == len(board) and gap.max() < 0.005
    found = json.loads((folder / "results/02_train_aligned.json").read_text())
    assert found["CMA_centroid_gap"] < found["FLYP_centroid_gap"]
    assert found["FLYP_accuracy"] >= found["zero-shot_accuracy"] - 0.05
    assert {"zero-shot", "FLYP", "CMA"} <= set(pd.read_parquet(folder / "tables/leaderboard.parquet").method)


given = pytest.mark.skipif(
    not (real_clip.shared() / real_clip.PHOTOS).is_file(),
    reason=f"no real CLIP embeddings in {real_clip.shared()}; set OOD_SHARED_DATA",
)


@given
def test_real_clip_shows_what_its_readme_and_the_docs_say(tmp_path: Path) -> None:
    """Known of these files: 65 of 65 right, a gap of .851 and 55.2 % right for the COCO pairs."""
    folder = real_clip.shared()
    found, board = real_clip.photos(tmp_path, folder, keep=1.0)
    right = (found["id_test"].rows @ found.class_text.T).argmax(1) == found["id_test"].labels
    assert right.all() and len(right) == 65
    board = board[~board.average].set_index(["score", "set"])
    assert (board.auroc > 0.85).all() and board.loc["NegLabel", "rider"].auroc > 0.98
    pairs = np.load(folder / real_clip.PAIRS)
    gap = real_clip.gap_measures(pairs[0], np.arange(500), pairs[1])
    assert gap["centroid_gap"] == pytest.approx(0.851, abs=5e-4)
    assert gap["accuracy"] == pytest.approx(0.552) and gap["separability"] == 1
    structure = geometry.logit_structure(found["id_test"].rows, found.class_text, found.negative_text)
    assert 0.6 < structure["offset_ratio"] < 0.9 and 1.5 < structure["negative_sd"] < 2.1
    half = geometry.logit_structure(pairs[0][:250], pairs[1][:250], pairs[1][250:])
    assert half["offset_ratio"] == pytest.approx(0.33, abs=0.01) and half["negative_sd"] == pytest.approx(
        4.4, abs=0.05
    )


@given
@pytest.mark.series
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_series_runs_on_real_clip(tmp_path: Path) -> None:
    study = real_clip.write_study(tmp_path / "study", real_clip.shared())
    words = [
        "lams=[0,0.01]",
        "seeds=[0]",
        "steps=40",
        "bootstrap=50",
        "projections=[gap-latitude,PCA]",
        "points=100",
    ]
    folder = _run(tmp_path / "outputs", "--profile", "embeddings", "-p", f"data_root={study}", *words)
    found = {name: json.loads((folder / f"results/{name}.json").read_text()) for name in NAMES}
    assert found["01_modality_gap"]["zero_shot_accuracy"] == 1
    assert found["01_modality_gap"]["centroid_gap"] > 0.8
    assert found["02_train_aligned"]["CMA_centroid_gap"] < found["02_train_aligned"]["FLYP_centroid_gap"]


def test_the_paper_lane_is_written_with_its_ensemble_and_adjectives(tmp_path: Path) -> None:
    mini_imagenet.build(tmp_path / "data", 3, 8, 3)
    (tmp_path / "data/MOS/SUN/SUN/1.jpg").write_bytes(b"\xff\xd8 cut")
    changes = {
        "data_root": str(tmp_path / "data"), "corpus": str(mini_imagenet.wordnet(tmp_path / "dict")),
        "id_classes": 3, "model": "GlyphCLIP", "pretrained": "builtin", "device": "cpu", "precision": "fp32",
        "workers": 0, "keep_counts": {"adj": 6, "noun": 5}, "max_unreadable": 0.5, "ensemble": True,
    }  # fmt: skip
    paper = config.load_profile("imagenet", changes)
    share.write(paper, tmp_path / "paper", tmp_path / "cache", "imagenet")
    given = config.load_profile(tmp_path / "paper/paper.yaml")
    assert given.keep_counts == {"adj": 6, "noun": 5} and given.model.startswith("residual-")
    images = embeddings.embed(data.load(paper), paper, tmp_path / "cache")
    rows = embeddings.embed(data.load(given), given, tmp_path / "cache")
    assert len(rows["SUN"]) == 2 and rows["SUN"].ids == images["SUN"].ids
    assert np.abs(rows.class_text - images.class_text).max() < 10 * HALF
    assert rows.corpus == images.corpus and {part for _, part in rows.corpus} == {"adj", "noun"}
    assert np.abs(rows.corpus_text - images.corpus_text).max() < 10 * HALF
    assert embeddings.mine(rows, given).words == embeddings.mine(images, paper).words
    assert set(rows.of_split("validation")) == {"val_openimage_o"}

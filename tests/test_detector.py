"""The detector's folder: its scores are the study's, its threshold keeps its promise, faults are said."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import refusing_disk
from PIL import Image
from scipy import stats

from ood_utils import __main__ as cli
from ood_utils import comparisons, config, data, embeddings, leaderboard, methods, metrics, models, serving
from ood_utils.data.glyph_world import TEST_FACES, VALIDATION_FACES
from ood_utils.detector import Detector
from ood_utils.errors import UserError

PROFILE = config.load_profile("glyphs-tiny")
NETWORK = models.Network("GlyphCLIP", "builtin")
SCORES = ["MSP", "MaxLogit", "Energy", "MCM", "NegLabel", "P - beta N"]


def _rows(n: int, seed: int, d: int = 128) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _study(d: int = 128) -> embeddings.StudyEmbeddings:
    words = [f"word {i}" for i in range(23)]
    corpus = [(word, "noun") for word in words]
    one = embeddings.EmbeddedSet(_rows(50, 3, d), np.arange(50) % 3, [""] * 50, np.arange(50), "id")
    found = embeddings.StudyEmbeddings(
        {"id_val": one}, ["a", "b", "c"], [[]] * 3, _rows(3, 0, d), corpus, _rows(23, 1, d), 100.0
    )
    return found.with_negatives(range(20))


def _guard(score: str = "NegLabel", **changes: object) -> Detector:
    made = Detector.of(NETWORK, _study(), PROFILE.model_copy(update=changes), score, method="zero-shot")
    made.calibrate(_rows(200, 2))
    return made


def _export(place: Path) -> None:
    _guard().save(place, onnx=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved detector, with ONNX, moved to another place; not to be written in."""
    here = tmp_path_factory.mktemp("detector")
    # in a process of its own: after an export torch's autograd forbids the forks of other tests
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        other.submit(_export, here / "first" / "detector").result()
    return Path(shutil.move(here / "first" / "detector", here / "moved"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures of many shapes, one file that is none, and one that is no image by its name."""
    here = tmp_path_factory.mktemp("pictures")
    for i in range(7):
        noise = np.random.default_rng(i).integers(0, 255, (5, 4 + i, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40 + 21 * i, 64), 3).save(here / f"{i}.png")
    (here / "broken.png").write_bytes(b"no image")
    (here / "notes.txt").write_text("none")
    return here


# --- scores ---


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("groups", [1, 3])
def test_scores_are_the_leaderboards_by_torch_and_by_numpy(score: str, groups: int) -> None:
    settings = PROFILE.model_copy(update={"groups": groups, "temperature": 0.02, "beta": 0.4})
    guard, study = _guard(score, **settings.model_dump()), _study()
    expected = methods.find(score)(leaderboard.evidence_of(study, "id_val", settings))
    found = guard.score_embeddings(study["id_val"].rows)
    assert np.array_equal(found["score"], expected)
    assert np.array_equal(found["is_id"], expected >= guard.threshold)
    nearest = (study["id_val"].rows @ study.negative_text.T).argmax(1)
    assert [f"word {i}" for i in nearest] == found["nearest_negative"].tolist()
    plain = replace(guard, tower=SimpleNamespace(evidence=methods.PlainEvidence))
    np.testing.assert_allclose(plain.score_embeddings(study["id_val"].rows)["score"], expected, atol=1e-9)


def test_a_study_s_images_score_as_their_embeddings_do(tmp_path: Path) -> None:
    """From pixels, saved and loaded: the notebook's numbers to 1e-6 (MCM: a probability)."""
    few = PROFILE.model_copy(update={"corpus_words": 50})
    study = data.load(few)
    embedded = embeddings.embed(study, few, tmp_path / "cache", sets=["id_val", "id_test"])
    guard = Detector.of(NETWORK, embedded, PROFILE, "MCM")
    guard.calibrate(embedded["id_val"].rows)
    again = Detector.load(guard.save(tmp_path / "d"), PROFILE.device)
    pixels = torch.stack([study.id_test.dataset[i][0] for i in range(len(study.id_test))])
    expected = methods.find("MCM")(leaderboard.evidence_of(embedded, "id_test", PROFILE))
    np.testing.assert_allclose(again.score(pixels)["score"], expected, rtol=0, atol=1e-6)


def test_a_study_without_negatives_has_the_scores_that_need_none(tmp_path: Path) -> None:
    bare = replace(_study(), negatives=None)
    with pytest.raises(UserError, match="NegLabel needs negative_text"):
        Detector.of(NETWORK, bare, PROFILE, "NegLabel").calibrate(_rows(200, 2))
    with pytest.raises(UserError, match="no score is called 'NegLable'; did you mean NegLabel"):
        Detector.of(NETWORK, bare, PROFILE, "NegLable")
    guard = Detector.of(NETWORK, bare, PROFILE, "MaxLogit")
    guard.calibrate(_rows(200, 2))
    found = Detector.load(guard.save(tmp_path / "d"), "cpu").score_embeddings(_rows(4, 5))
    assert found["nearest_negative"].tolist() == [""] * 4 and np.isfinite(found["score"]).all()


def test_files_pictures_and_tensors_score_alike_and_the_unreadable_are_named(
    folder: Path, pictures: Path
) -> None:
    guard, paths = Detector.load(folder, "cpu"), sorted(pictures.glob("*.png"))
    found = guard.score(paths, batch=3)
    assert found["unreadable"] == [(7, str(pictures / "broken.png"))]
    assert np.isnan(found["score"][7]) and not found["is_id"][7]
    assert found["nearest"][7] == found["nearest_negative"][7] == "" and set(found["nearest"][:7]) <= set(
        "abc"
    )
    opened = [Image.open(path) for path in paths[:7]]
    pixels = torch.stack([models.load()[1](image.convert("RGB")) for image in opened])
    for same in (opened, pixels, pixels.numpy()):
        np.testing.assert_allclose(guard.score(same)["score"], found["score"][:7], rtol=0, atol=1e-4)
    nothing = guard.score([pictures / "broken.png"])
    assert np.isnan(nothing["score"]).tolist() == [True] and nothing["nearest"].tolist() == [""]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "images is empty"),
        ("photo.jpg", r"images is one image, photo\.jpg; give a list"),
        (Path("photo.jpg"), "images is one image"),
        (["{here}"], "is a folder: list its files"),
        (["{here}/0.png", "{here}/none.png"], r"image 1, .*none\.png, does not exist"),
        ([3], "image 0 is int"),
        (torch.zeros(2, 3, 16, 16), r"shape \(2, 3, 16, 16\); this model takes \(n, 3, 32, 32\)"),
        (torch.zeros(0, 3, 32, 32), "images is empty"),
    ],
)
def test_what_is_no_list_of_images_is_one_sentence(
    folder: Path, pictures: Path, images: object, said: str
) -> None:
    given = (
        [str(i).format(here=pictures) if isinstance(i, str) else i for i in images]
        if isinstance(images, list)
        else images
    )
    with pytest.raises(UserError, match=said) as fault:
        Detector.load(folder, "cpu").score(given)
    assert "\n" not in str(fault.value)


# --- the threshold ---


@pytest.mark.parametrize("n", [19, 20, 200])
@pytest.mark.parametrize("target", [0.9, 0.95])
def test_the_threshold_is_the_conformal_one(n: int, target: float) -> None:
    guard, rows = _guard(), _rows(n, 4)
    threshold = guard.calibrate(rows, target, on="mine")
    rejected = int((1 - round(target, 2)) * 100 + 0.5) * (n + 1) // 100 - 1
    found = guard.score_embeddings(rows)
    assert (found["score"] < threshold).sum() == rejected and threshold in found["score"]
    assert f"of {n} ID images, mine" in guard.guarantee and "exchangeable" in guard.guarantee


@pytest.mark.parametrize(
    ("target", "n", "said"),
    [
        (0.95, 18, "18 images of id_val are too few to accept 0.95 of ID images; give at least 19"),
        (0.9, 8, "give at least 9"),
        (0.999999, 18, "give at least 999,999"),
        (1, 200, "target is 1; give the share"),
        (0, 200, "target is 0"),
        (float("nan"), 200, "target is nan"),
    ],
)
def test_too_few_images_and_a_target_out_of_range_are_one_sentence(target: float, n: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _guard().calibrate(_rows(n, 4), target)


def test_the_promise_holds_over_many_calibrations() -> None:
    """Acceptance is beta distributed, as ``guarantee`` says: mean and spread, over 4,000 calibrations."""
    draws = np.random.default_rng(0).random((4000, 60))
    rank = metrics.conformal_rank(60, 0.95)
    accepted = 1 - np.sort(draws, axis=1)[:, rank - 1]  # of uniform scores: the share above the threshold
    expected = stats.beta(60 + 1 - rank, rank)
    assert accepted.mean() >= 0.95 and stats.kstest(accepted, expected.cdf).pvalue > 1e-4


def test_drift_is_said_where_calibration_does_not_explain_it_and_else_hardly_ever() -> None:
    guard = _guard()  # rank 10 of 200: one in twenty is rejected
    batch = np.arange(400)
    assert guard.drift(batch >= 20) == guard.drift(batch[:0] > 0) == ""
    assert "80 of 400 images rejected, more than the 20 that id_val lets expect" in guard.drift(batch >= 80)
    assert "0 of 400 images rejected, fewer than the 20" in guard.drift(batch >= 0)
    tail = stats.betabinom(400, 10, 191).logpmf(np.arange(390, 401))
    assert guard.surprise(batch >= 390) == pytest.approx(2 * np.exp(tail).sum(), rel=1e-6)
    random = np.random.default_rng(0)
    chance = stats.beta(10, 191).rvs(500, random_state=random)  # thresholds of other calibrations
    said = [bool(guard.drift(random.random(100) >= share)) for share in chance]
    assert sum(said) <= 5  # one in two is expected


def test_a_detector_without_threshold_says_so(tmp_path: Path) -> None:
    raw = Detector.of(NETWORK, _study(), PROFILE)
    acts = [lambda: raw.guarantee, lambda: raw.drift([True]), lambda: raw.save(tmp_path / "d")]
    for act in [*acts, lambda: raw.score_embeddings(_rows(2, 0)), lambda: raw.score([])]:
        with pytest.raises(UserError, match="no threshold yet; call calibrate"):
            act()


@pytest.fixture(scope="module")
def by_face(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Zero-shot MCM of all letters: two sets of views of the validation face, and the test faces."""
    profile = PROFILE.model_copy(update={"id_classes": 0, "id_views": 4, "corpus_words": 50})
    found, cache = {}, tmp_path_factory.mktemp("faces")
    for seed, name in ((0, "id_val"), (1, "id_val"), (0, "id_test")):
        study = data.load(profile.model_copy(update={"data_seed": seed}))
        evidence = leaderboard.evidence_of(
            embeddings.embed(study, profile, cache, sets=[name]), name, profile
        )
        found[f"{name} {seed}"] = methods.find("MCM")(evidence)
        faces = {i.split(" · ")[1] for i in study.sets[name].ids}
        assert faces == set(VALIDATION_FACES if name == "id_val" else TEST_FACES)
    return found


@pytest.mark.slow
def test_the_threshold_misses_on_test_because_of_the_faces_alone(by_face: dict[str, np.ndarray]) -> None:
    """Other views of the same face are accepted as promised, the test faces are not, for a rule that is right
    within them: validation and test are not exchangeable, and the face is what differs."""
    val, test = by_face["id_val 0"], by_face["id_test 0"]
    rank = metrics.conformal_rank(len(val), 0.95)
    calibrated = {"on": "id_val", "images": len(val), "target": 0.95, "rank": rank}
    guard = replace(_guard(), threshold=np.sort(val)[rank - 1], calibration=calibrated)
    assert guard.surprise(by_face["id_val 1"] >= guard.threshold) > 0.01
    assert guard.surprise(test >= guard.threshold) < 1e-4 and guard.drift(test >= guard.threshold)
    table = comparisons.acceptance(val, test, None, 0.95, draws=200)
    assert table.share[0] < 0.93 and (table.share[1:] - table.expected[1:]).abs().max() < 0.005


# --- the folder ---


def test_the_folder_is_whole_movable_and_plain(folder: Path) -> None:
    parts = ["detector.json", "image_tower.onnx", "texts.safetensors", "weights.safetensors"]
    assert [p.name for p in sorted(folder.iterdir()) if p.suffix != ".data"] == parts
    card = json.loads((folder / "detector.json").read_text())
    assert card["origin"]["method"] == "zero-shot" and card["origin"]["versions"]["torch"]
    assert card["calibration"] == {"on": "id_val", "images": 200, "target": 0.95, "rank": 10}
    assert card["preprocessing"]["size"] == 32 and card["score_name"] == "NegLabel"
    for place in (config.ROOT, folder.parents[1], Path.home()):
        assert str(place) not in (folder / "detector.json").read_text()
    rows, guard = _rows(30, 6), _guard()
    again = Detector.load(folder, "cpu")
    assert again.guarantee == guard.guarantee
    for key, value in guard.score_embeddings(rows).items():
        assert np.array_equal(value, again.score_embeddings(rows)[key]), key


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_refusing_disk_is_one_sentence_and_leaves_the_old_detector(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "d"))
    old = {path.name: path.read_bytes() for path in place.iterdir()}
    refusing_disk(monkeypatch, step)
    with pytest.raises(UserError, match=r"cannot write .*: No space left"):
        _guard("MCM").save(place)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == old
    assert list(tmp_path.iterdir()) == [place]


def test_saving_replaces_a_detector_and_never_a_folder_of_other_things(folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "d"))
    _guard("MCM").save(place)
    assert Detector.load(place, "cpu").score_name == "MCM" and not (place / "image_tower.onnx").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    with pytest.raises(UserError, match="photos holds other things and is not replaced"):
        _guard().save(tmp_path / "photos")
    assert (tmp_path / "photos" / "one.jpg").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("detector.json", None, "is no detector: there is no detector.json in it"),
        ("detector.json", b"{", "detector.json cannot be read"),
        ("detector.json", b"[]", "detector.json cannot be read"),
        ("detector.json", b'{"format": 1}', "has another format than 2"),
        ("detector.json", b'{"format": 2, "model": "GlyphCLIP"}', "has another format than 2"),
        ("weights.safetensors", None, "weights.safetensors is missing or damaged"),
        ("weights.safetensors", b"short", "weights.safetensors is missing or damaged"),
        ("texts.safetensors", b"short", "texts.safetensors is missing or damaged"),
    ],
)
def test_a_damaged_folder_is_one_sentence(
    folder: Path, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "d"))
    (place / name).unlink()
    if content is not None:
        (place / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        Detector.load(place, "cpu")


def test_a_model_on_given_embeddings_takes_rows_alone(tmp_path: Path) -> None:
    from ood_utils import residual

    texts = torch.from_numpy(np.frombuffer(b"a\0b", np.uint8).copy())
    model = residual.Residual(8, torch.from_numpy(_rows(2, 7, 16)), texts)
    models.save(model, tmp_path / "w.safetensors", "residual-8")
    network = models.Network("residual-8", str(tmp_path / "w.safetensors"))
    guard = Detector.of(network, _study(16), PROFILE)
    guard.calibrate(_rows(200, 2, 16))
    again, rows = Detector.load(guard.save(tmp_path / "d"), "cpu"), _rows(5, 8, 16)
    np.testing.assert_allclose(again.score(rows)["score"], guard.score_embeddings(rows)["score"], atol=1e-4)
    (tmp_path / "p.png").touch()
    with pytest.raises(UserError, match="cannot read images; give a tensor of embeddings"):
        again.score([tmp_path / "p.png"])
    with pytest.raises(UserError, match="given embeddings has no image tower; leave onnx out"):
        again.save(tmp_path / "e", onnx=True)
    assert not (tmp_path / "e").exists()


# --- without torch ---


def test_onnx_rows_are_torchs(folder: Path) -> None:
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, other = Detector.load(folder, "cpu"), Detector.load(folder, onnx=True)
    (ours, _), (theirs, _) = (x.tower.encode(pixels, 2, 0, False) for x in (one, other))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="loaded with onnx has no weights to save"):
        other.save(folder.parent / "copy")
    with pytest.raises(UserError, match="ONNX is served on the CPU"):
        Detector.load(folder, "cuda", onnx=True)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(80, 50), (33, 200), (224, 224), (7, 9)])
def test_pixels_without_torch_are_within_two_grey_levels(
    mode: str, interpolation: str, shape: tuple[int, int]
) -> None:
    from open_clip.transform import PreprocessCfg

    numbers = {"size": 32, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    numbers |= {"interpolation": interpolation, "resize_mode": mode}
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8))
    picture = noise.resize(shape, Image.Resampling.BICUBIC)
    theirs = models.evaluation(PreprocessCfg(**numbers))(picture).numpy()
    ours = serving.pixels(picture, numbers)
    assert ours.shape == theirs.shape == (3, 32, 32) and ours.dtype == np.float32
    levels = np.abs(ours - theirs) * np.array(numbers["std"])[:, None, None] * 255
    assert levels.max() < 2.01


@pytest.mark.slow
def test_ood_score_by_onnx_never_imports_torch(folder: Path, pictures: Path, tmp_path: Path) -> None:
    words = ["score", str(pictures), "--detector", str(folder), "--onnx", "--csv", str(tmp_path / "x.csv")]
    code = f"import sys\nfrom ood_utils import __main__ as m\nassert m.main({words}) == 0\n"
    code += "print('heavy:', {'torch', 'torchvision', 'open_clip'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "heavy: set()" in done.stdout, done.stderr
    assert f"1 unreadable: {pictures / 'broken.png'}" in done.stdout
    found = np.genfromtxt(tmp_path / "x.csv", delimiter=",", skip_header=1, usecols=1)
    same = Detector.load(folder, "cpu").score(sorted(pictures.glob("*.png")))["score"]
    np.testing.assert_allclose(found, same, rtol=0, atol=0.5)  # a grey level is 0.05 in log-odds


# --- the command ---


def test_ood_score_tells_each_image_and_counts(
    folder: Path, pictures: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    one = str(pictures / "0.png")
    assert cli.main(["score", one, str(pictures), "--detector", str(folder), "--batch", "3"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == f"{pictures}: 8 images" and lines[1].split()[:3] == ["path", "score", "is_id"]
    assert out.count(one) == 1 and "The threshold is the score of rank 10" in out
    assert lines[-1].startswith("8 images: ") and lines[-1].endswith(
        f"1 unreadable: {pictures / 'broken.png'}"
    )


@pytest.mark.parametrize("onnx", [False, True])
def test_a_broken_link_in_a_folder_is_an_unreadable_image(
    folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture, onnx: bool
) -> None:
    shutil.copy(pictures / "0.png", tmp_path)
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "round.png").symlink_to("round.png")
    os.mkfifo(tmp_path / "pipe.png")
    words = ["score", str(tmp_path), "--detector", str(folder), "--device", "cpu"] + ["--onnx"] * onnx
    assert cli.main(words) == 0
    lost = ", ".join(str(tmp_path / name) for name in ("gone.jpg", "pipe.png", "round.png"))
    assert capsys.readouterr().out.splitlines()[-1].endswith(f", 3 unreadable: {lost}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{here}/none.png"], "does not exist"),
        (["{here}/empty"], "empty holds no image (.jpg"),
        (["{here}", "--detector", "{here}"], "is no detector: there is no detector.json"),
        (["{here}", "--batch", "0"], "give a batch above 0"),
        (["{here}", "--workers", "-1"], "workers from 0"),
        (["{here}", "--csv", "{here}"], "is a folder or a device; give a file"),
        (["{here}", "--csv", "/dev/null"], "--csv /dev/null is a folder or a device"),
        (
            ["{here}", "--csv", "{here}/0.png/x.csv"],
            "0.png/x.csv cannot be written (its folder is a file); give",
        ),
    ],
)
def test_mistakes_of_ood_score_are_one_sentence(
    folder: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    (pictures / "empty").mkdir(exist_ok=True)
    if "no detector" not in said:  # all else is known before a model is loaded
        monkeypatch.setattr(Detector, "load", lambda *_: 1 / 0)
    asked = [word.format(here=pictures) for word in words]
    assert cli.main(["score", "--detector", str(folder), *asked]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ood: ") and said in error and error.count("\n") == 1

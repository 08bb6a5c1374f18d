"""A user's folder, from the files to what its owner asks: the demo folder, copies, confusions, fitness."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ood_utils import data, own_images
from ood_utils.config import Profile
from ood_utils.data import demo
from ood_utils.data.duplicates import near_duplicates
from ood_utils.detector import Detector
from ood_utils.embeddings import StudyEmbeddings
from ood_utils.models import Network


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    said = demo.write(tmp_path_factory.mktemp("demo"), classes=6, views=4)
    return Profile(**said, held_out=2, smoke_test=True)


def test_the_demo_folder_is_a_study_and_the_same_again(made: Profile, tmp_path: Path) -> None:
    study = data.load(made)
    assert len(study.class_names) == 4 and {*study.ood} == {"arrows", "digits", "held_out"}
    assert [*study.validation] == ["val_held_out"] and study.ood["digits"].group == "unseen"
    assert all(need.ok is not False for need in data.needs(made))
    assert any(study.synonyms) and set(study.class_names) <= {name for name, _ in study.corpus} | {
        *study.class_names
    }
    again = Profile(**demo.write(tmp_path, classes=6, views=4))
    for path in Path(made.data_root).rglob("*.png"):
        twin = Path(again.data_root) / path.relative_to(made.data_root)
        assert twin.read_bytes() == path.read_bytes()


def test_a_copy_in_another_set_is_found_and_a_different_picture_is_not(made: Profile, tmp_path: Path) -> None:
    study = data.load(made)
    (stray,) = near_duplicates([study.train, *study.sets.values()]).itertuples()
    assert "arrows" in (stray.set, stray.other_set) and stray.distance == 0
    assert "stray.png" in (stray.image, stray.other)
    files = Path(study.train.dataset.paths[0]), Path(study.id_test.dataset.paths[0])
    kept = files[1].read_bytes()
    with Image.open(files[0]) as picture:  # larger and a little darker
        picture.resize((48, 48)).point(lambda value: int(0.9 * value)).save(files[1])
    try:
        (row,) = near_duplicates([study.train, study.id_test]).itertuples()
        assert (row.set, row.image, row.other) == ("id_test", study.id_test.ids[0], study.train.ids[0])
    finally:
        files[1].write_bytes(kept)


def test_sets_are_called_as_their_owner_does(made: Profile) -> None:
    study = data.load(made)
    held = {path.split("/")[0] for path in study.validation["val_held_out"].ids}
    assert own_images.spoken(study.validation["val_held_out"]) == f"the held-out class {held.pop()}"
    ids = [f"{part}/{name}/0.png" for part in ("train", "val", "test") for name in ("cat", "dog")]
    split = SimpleNamespace(name="held_out", ids=ids)
    assert own_images.spoken(split) == "the held-out classes cat, dog"
    assert own_images.spoken(SimpleNamespace(name="val_arrows", ids=[])) == "arrows"


def test_a_detector_that_lies_there_is_not_saved_twice(tmp_path: Path) -> None:
    rows = np.eye(128, dtype=np.float32)[:50]
    embedded = StudyEmbeddings({}, ["a", "b"], [[], []], rows[:2], [], rows[:0], 100.0)
    network, run = Network("GlyphCLIP", "builtin"), SimpleNamespace(folder=tmp_path)

    def made(method: str, target: float = 0.9) -> Detector:
        one = Detector.of(network, embedded, Profile(), "MCM", method=method)
        one.calibrate(rows, target)
        return one

    made("CMA").save(tmp_path / "detector")
    assert (
        own_images.kept(run, made("CMA")) == tmp_path / "detector"
        and not (tmp_path / "own_detector").exists()
    )
    for other in (made("FLYP"), made("CMA", 0.8)):
        assert own_images.kept(run, other) == tmp_path / "own_detector"
        assert Detector.load(tmp_path / "own_detector").calibration == other.calibration
    shutil.rmtree(tmp_path / "detector")
    assert own_images.kept(run, made("CMA")) == tmp_path / "own_detector"


def test_confusions_by_hand() -> None:
    rows = np.eye(3, dtype=np.float32)[[0, 1, 1, 1, 2]]
    sets = {"id_test": SimpleNamespace(rows=rows, labels=np.array([0, 0, 0, 1, 2]))}
    embedded = SimpleNamespace(
        __getitem__=None, class_text=np.eye(3, dtype=np.float32), class_names=["cat", "dog", "cow"], sets=sets
    )
    embedded = type("Embedded", (), {**vars(embedded), "__getitem__": lambda self, name: sets[name]})()
    (row,) = own_images.confusions(embedded).to_dict("records")
    assert row == {"is": "cat", "taken for": "dog", "images": 2, "share": pytest.approx(2 / 3)}


def test_fitness_says_no_more_than_the_interval() -> None:
    frame = pd.DataFrame({"fpr95_id_low": [0.1, 0.6, 0.3, 0.5], "fpr95_id_high": [0.4, 0.9, 0.7, 0.5]})
    assert [*own_images.fitness(frame)["use"]] == ["yes", "no", "not settled", "not settled"]

"""What real CLIP embeddings show: ``python -m ood_utils.tools.real_clip [FOLDER]`` prints docs/REAL_CLIP.md.

FOLDER holds other people's embeddings (see there); nothing of it is copied into the project.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from .. import data, embeddings, geometry, leaderboard, sphere
from ..config import ROOT, load_profile
from ..embeddings import StudyEmbeddings
from ..errors import UserError
from .reference import markdown

PHOTOS, NAMES = "clip_vit_b32_photos/graz_130.npz", "clip_vit_b32_text_names"
PAIRS = "clip_vit_b16_coco_pairs/features_clip.npy"
STUDY = """\
model: ViT-B-32 / openai
images: {photos}:embeddings
labels: {photos}:labels
ids: {photos}:names
classes: {{cat: cat, dog: dog, bike: bicycle}}
synonyms: {{cat: [kitten], dog: [puppy, pug-dog, bulldog, shepherd_dog]}}
words: ["{names}/lvis_1203.npz:names", "{names}/openimages_500.npz:names"]
word_texts: ["{names}/lvis_1203.npz:embeddings", "{names}/openimages_500.npz:embeddings"]
ood:
  carsgraz: far
  rider: near
  unlabelled: {{group: unseen, where: {{labels: ""}}}}
"""


def shared() -> Path:
    """The folder of the embeddings: OOD_SHARED_DATA, or ../shared/data beside the checkout."""
    return Path(os.environ.get("OOD_SHARED_DATA") or ROOT.parent / "shared" / "data")


def write_study(folder: Path, given: Path) -> Path:
    """A study.yaml in ``folder`` that names the photographs and names below ``given``; UserError without."""
    if not (given / PHOTOS).is_file():
        raise UserError(f"{given / PHOTOS} is missing; set OOD_SHARED_DATA or give the folder")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(STUDY.format(photos=(given / PHOTOS).resolve(), names=(given / NAMES).resolve()))
    return path


def photos(folder: Path, given: Path, keep: float) -> tuple[StudyEmbeddings, pd.DataFrame]:
    """(zero-shot embeddings with negatives, every score on every set); all 65 ID photographs are the test.

    Nothing is trained or chosen here, so that no photograph has to be held back for it.
    """
    profile = load_profile("embeddings", {"data_root": str(write_study(folder, given)), "keep": keep})
    study = data.load(profile)
    whole = replace(study, ood={"train": study.train, **study.ood})
    found = embeddings.embed(whole, profile, folder / "embeddings")
    parts = [found.sets.pop(name) for name in ("train", "id_val", "id_test")]
    rows, labels = (np.concatenate([getattr(p, name) for p in parts]) for name in ("rows", "labels"))
    ids = [i for part in parts for i in part.ids]
    one = embeddings.EmbeddedSet(rows, labels, ids, np.arange(len(rows)), "id")
    found = replace(found, sets={"id_test": one, "id_val": one, **found.sets})
    found = found.with_negatives(embeddings.mine(found, profile))
    return found, leaderboard.image_scores({("zero-shot", 0): found}, profile).table()


def gap_measures(images: np.ndarray, labels: np.ndarray, class_text: np.ndarray) -> dict[str, float]:
    """Centroid gap, RMG, separability and accuracy, and the gap as three pictures draw it."""
    found = geometry.summary(images, labels, class_text)
    points = {"images": images, "texts": class_text}
    drawn = {"exact latitude": sphere.gap_latitude, "PCA": sphere.pca_sphere}
    gaps = {
        f"gap drawn by {name}": sphere.picture_error(draw(points), points, labels=labels)["gap_drawn"]
        for name, draw in drawn.items()
    }
    return {name: found[name] for name in ("centroid_gap", "rmg", "separability", "accuracy")} | gaps


def tables(given: Path) -> dict[str, pd.DataFrame]:
    """The tables of docs/REAL_CLIP.md by caption."""
    with tempfile.TemporaryDirectory() as folder:
        (found, board), (few, few_board) = (photos(Path(folder), given, keep) for keep in (1.0, 0.15))
    shares = {f"NegLabel, {len(e.negatives):,} negatives": b for e, b in ((few, few_board), (found, board))}
    neglabel = [b[b.score == "NegLabel"].assign(score=name) for name, b in shares.items()]
    scores = pd.concat([board[board.score != "NegLabel"], *neglabel])
    pairs = np.load(given / PAIRS, allow_pickle=False)
    test, numbers = found["id_test"], np.arange(len(pairs[0]))
    gaps = {
        "photographs, 3 texts": gap_measures(test.rows, test.labels, found.class_text),
        "COCO images and captions": gap_measures(pairs[0], numbers, pairs[1]),
    }
    caption = "Zero-shot OoD detection: AUROC, then FPR95 (ID positive), percent, with 95 % intervals"
    return {
        "The gap": pd.DataFrame(gaps),
        caption: _cells(scores),
        "The logits of ID images (100 times the cosine)": pd.DataFrame(_structures(found, few, pairs)),
    }


def _structures(
    found: StudyEmbeddings, few: StudyEmbeddings, pairs: np.ndarray
) -> dict[str, dict[str, float]]:
    """``logit_structure`` of both lists, of a fourth class (cars), and of half the pairs against the rest."""
    test = found["id_test"].rows
    rows = {
        f"photographs, {len(e.negatives):,} negatives": geometry.logit_structure(
            test, e.class_text, e.negative_text
        )
        for e in (few, found)
    }
    words = [word for word, _ in found.corpus]
    car = found.corpus_text[[words.index("car_(automobile)")]]
    others = [i for i in found.negatives.indices if words[i] not in ("car_(automobile)", "Car")]
    four = np.concatenate([test, found["carsgraz"].rows]), np.concatenate([found.class_text, car])
    rows["the same, cars a fourth class"] = geometry.logit_structure(*four, found.corpus_text[others])
    half = len(pairs[0]) // 2
    rows["COCO, half of the captions against the rest"] = geometry.logit_structure(
        pairs[0][:half], pairs[1][:half], pairs[1][half:]
    )
    return rows


def _cells(board: pd.DataFrame) -> pd.DataFrame:
    """Score by set, each cell "AUROC [low, high] / FPR95 [low, high]"."""
    percent = board.copy()
    numbers = [f"{m}{end}" for m in ("auroc", "fpr95_id") for end in ("", "_low", "_high")]
    percent[numbers] *= 100
    form = " / ".join(f"{{{m}:.1f}} [{{{m}_low:.1f}}, {{{m}_high:.1f}}]" for m in ("auroc", "fpr95_id"))
    percent["cell"] = [form.format(**row) for row in percent.to_dict("records")]
    percent["set"] = (
        percent.set + " (" + percent.n_id.astype(str) + " ID, " + percent.n_ood.astype(str) + " OoD)"
    )
    alone = percent[~percent.average | (percent.group == "all")]
    return alone.pivot_table(values="cell", index="score", columns="set", aggfunc="first", sort=False)


def main(words: Sequence[str]) -> int:
    """Print the tables."""
    for caption, frame in tables(Path(words[0]) if words else shared()).items():
        shown = frame.map(lambda value: value if isinstance(value, str) else f"{value:.3f}")
        print(f"**{caption}**\n\n{markdown(shown.rename_axis('').reset_index())}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

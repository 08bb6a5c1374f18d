"""What the owner of some images asks of a detector: what is confused, what is let in, is it fit for use."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import files
from .config import Profile
from .data import demo
from .data.lanes.folder import HELD_OUT, PARTS, VALIDATION
from .data.study import ImageSet
from .detector import FACTS, Detector
from .embeddings import StudyEmbeddings
from .store import RunFolder

# what is chosen, and what it was set on
CHOICE = ("model", "class_names", "score_name", "beta", "threshold", "calibration")


def subject(run: RunFolder) -> tuple[Profile, pd.DataFrame]:
    """(profile, methods with the first of their seeds) of the images in question.

    In the folder lane the run's own, else a small folder of glyphs that is written below the run, with the
    zero-shot model alone; of its classes two play OoD.
    """
    if run.profile.data == "folder":
        methods = run.load_table("methods", made_by="02_train_aligned")
        return run.profile, methods[methods.role == "headline"].groupby("method", sort=False).head(1)
    said: dict[str, Any] = demo.write(run.folder / "your_images", seed=run.profile.data_seed)
    shared = ("bootstrap", "device", "keep", "temperature", "data_seed")
    profile = Profile(**said, held_out=2, **{name: getattr(run.profile, name) for name in shared})
    start = {"method": "zero-shot", "seed": 0, "weights": profile.pretrained}
    return profile, pd.DataFrame([start])


def confusions(embedded: StudyEmbeddings, name: str = "id_test") -> pd.DataFrame:
    """One row per class and class it is taken for: is, taken for, images, share (of the class's images).

    The nearest class text decides, as in zero-shot classification. Most frequent mistakes first.
    """
    taken = (embedded[name].rows @ embedded.class_text.T).argmax(1)
    names = np.array(embedded.class_names)
    frame = pd.DataFrame({"is": names[embedded[name].labels], "taken for": names[taken]})
    counts = frame.value_counts().rename("images").reset_index()
    counts["share"] = counts["images"] / counts["is"].map(frame["is"].value_counts())
    wrong = counts[counts["is"] != counts["taken for"]]
    return wrong.sort_values(["share", "is", "taken for"], ascending=[False, True, True], ignore_index=True)


def spoken(one: ImageSet) -> str:
    """An OoD set of the folder lane in its owner's words: held-out classes by name, else its folder."""
    if (name := one.name.removeprefix(VALIDATION)) != HELD_OUT:
        return name
    places = (path.split(os.sep) for path in one.ids)  # [train,] class, file
    held = sorted({place[place[0] in PARTS] for place in places})
    more = f" and {len(held) - 10:,} more" * (len(held) > 10)
    return f"the held-out class{'es' * (len(held) > 1)} {', '.join(held[:10])}{more}"


def kept(run: RunFolder, detector: Detector) -> Path:
    """The folder of a calibrated detector: notebook 04's where it saved the same one, else ``own_detector``.

    The weights of a large model need not lie there twice. Errors as ``Detector.save``.
    """
    made = run.folder / "detector"
    facts = files.read_json(made / FACTS)
    same = all(facts.get(name) == files.plain(getattr(detector, name)) for name in CHOICE)
    if same and facts["origin"]["method"] == detector.origin["method"]:
        return made
    return detector.save(run.folder / "own_detector")


def fitness(summary: pd.DataFrame) -> pd.DataFrame:
    """Whether a detector is fit for use, by set: the rows of ``leaderboard.summarise`` with a column ``use``.

    The share of such OoD images that it lets in where it accepts 95 % of ID (``fpr95_id``) is to be below one
    half: "yes" if the 95 % interval is, "no" if it is above, else "not settled".
    """
    low, high = summary["fpr95_id_low"], summary["fpr95_id_high"]
    return summary.assign(use=np.select([high < 0.5, low > 0.5], ["yes", "no"], "not settled"))

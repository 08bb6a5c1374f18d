"""What others claim, and combinations nobody has published, as comparisons that are stated before looking."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from .. import leaderboard, metrics
from ..leaderboard import ScoreBook
from .board import ZERO_SHOT, Board
from .table import Row, plain_streams, stream_difference


class Claim(NamedTuple):
    """Of two rows (model, score) a is said to be better on a group of sets."""

    claim: str
    a: tuple[str, str]
    b: tuple[str, str]
    group: str = "all"


NEGLABEL = (ZERO_SHOT, "NegLabel")
PUBLISHED = (
    Claim("negative labels beat class texts alone (NegLabel)", NEGLABEL, (ZERO_SHOT, "MCM")),
    Claim("conjugated names beat NegLabel's list (CSP)", (ZERO_SHOT, "CSP"), NEGLABEL),
    Claim("groups help NegLabel (NegLabel)", (ZERO_SHOT, "NegLabel, 100 groups"), NEGLABEL),
    Claim("a softer worst case beats NegLabel (Rényi)", (ZERO_SHOT, "Rényi"), NEGLABEL),
    Claim("dense words, debiased, beat NegLabel (DNM)", (ZERO_SHOT, "DNM, dense words"), NEGLABEL),
    Claim("words chosen by images beat words chosen by texts (InterNeg)", (ZERO_SHOT, "InterNeg"), NEGLABEL),
    Claim("taking the gap away helps (GR-CLIP)", (ZERO_SHOT, "NegLabel, GR-CLIP"), NEGLABEL),
    Claim(
        "the lead over few rivals beats MCM (LogitGap)", (ZERO_SHOT, "LogitGap"), (ZERO_SHOT, "MCM"), "near"
    ),
    Claim("patches help (GL-MCM)", (ZERO_SHOT, "GL-MCM"), (ZERO_SHOT, "MCM")),
    Claim("a probe beside the texts helps (COOkeD)", (ZERO_SHOT, "COOkeD"), (ZERO_SHOT, "MSP")),
    Claim("saying no helps (CLIPN)", ("CLIPN", "CLIPN-ATD"), (ZERO_SHOT, "MCM")),
    Claim("learnt prompts help (CoOp)", ("CoOp", "MCM"), (ZERO_SHOT, "MCM")),
    Claim("background patches help to learn prompts (LoCoOp)", ("LoCoOp", "GL-MCM"), ("CoOp", "GL-MCM")),
    Claim("weighing them by certainty helps (SCT)", ("SCT", "GL-MCM"), ("LoCoOp", "GL-MCM")),
    Claim("forcing prompts helps (FA)", ("FA", "MCM"), ("CoOp", "MCM")),
    Claim("negative prompts help (NegPrompt)", ("NegPrompt", "NegPrompt"), ("CoOp", "MCM")),
    Claim("imagined unknown classes help (OGEN)", ("OGEN", "MCM"), ("CoOp", "MCM")),
    Claim("texts bent to the image help (KR-NFT)", ("KR-NFT", "NegLabel"), NEGLABEL),
    Claim("maps tuned to a flat energy beat zero-shot (CRoFT)", ("CRoFT", "Energy"), (ZERO_SHOT, "Energy")),
    Claim("fine-tuning helps NegLabel (CMA's Table 2)", ("FLYP", "NegLabel"), NEGLABEL, "near"),
    Claim("mixed hard negatives help FLYP (m2-Mix)", ("m2-Mix", "NegLabel"), ("FLYP", "NegLabel")),
    Claim("alignment beats m2-Mix (CMA)", ("CMA", "NegLabel"), ("m2-Mix", "NegLabel")),
    Claim("half of the way back helps (WiSE-FT)", ("WiSE-FT", "NegLabel"), ("FLYP", "NegLabel")),
    Claim(
        "FFT with Energy is best on near sets (CMA's Table 2)", ("FFT", "Energy"), ("CMA", "NegLabel"), "near"
    ),
)
MOVED = ("texts shifted", "shift projected", "GR-CLIP", "images centred")
COMBINED: tuple[Row, ...] = (
    *((start, f"NegLabel, {how}") for start in (ZERO_SHOT, "FLYP", "CMA") for how in MOVED),
    *(("CMA", score) for score in ("CSP", "InterNeg", "DNM, dense words", "Rényi")),
    *(("CMA", score) for score in ("OODD", "AdaNeg", "TANL", "CoEvo", "Online prototypes")),
    *((model, "NegLabel") for model in ("CMA + centroid uniformity", "CMA, interpolated", "CMA + KR-NFT")),
)


def claims(book: ScoreBook, asked: Iterable[Claim]) -> pd.DataFrame:
    """What others claim, judged here: one row each, in AUROC, averaged over a group's sets.

    Columns: claim, a, b ("model · score"), group, difference (a minus b), low, high, p_holm (corrected over
    all that are asked), verdict: "holds" where a is better, "the reverse" where it is worse, "not settled",
    or "not measured" where a row is missing.
    """
    rows = {(model, score): book.rows(model, score) for model, _, score in book.keys}
    listed, k = list(asked), metrics.METRICS.index("auroc")
    there = [{one.a, one.b} <= rows.keys() and one.group in book.averages for one in listed]
    known = [one for one, is_there in zip(listed, there, strict=True) if is_there]
    found = book.estimates((f"average {one.group}", rows[one.a], rows[one.b]) for one in known)
    numbers = np.full((len(listed), 4), np.nan)
    if known:
        numbers[there] = np.array([[part[k] for part in one] for one in found])
        numbers[there, 3] = metrics.holm(numbers[there, 3])
    said = [(one.claim, " · ".join(one.a), " · ".join(one.b), one.group) for one in listed]
    frame = pd.DataFrame(said, columns=["claim", "a", "b", "group"])
    frame[["difference", "low", "high", "p_holm"]] = numbers
    settled, missing = leaderboard.settled(frame.p_holm), frame.p_holm.isna()
    cases = {"not measured": missing, "not settled": ~settled, "holds": frame.difference > 0}
    return frame.assign(verdict=np.select(list(cases.values()), list(cases), "the reverse"))


def combined(
    board: Board, book: ScoreBook, streams: pd.DataFrame, asked: Iterable[Row] = COMBINED
) -> pd.DataFrame:
    """Combinations, the best mean validation AUROC first; empty without validation sets.

    Columns: model, score, test_time (learns from the stream: "yes", "no"), validation, test: AUROC, mean over
    sets. ``book``: the board's own of the test; ``streams``: as ``table.streams`` gives them; theirs are the
    plain ones.
    """
    columns = ["model", "score", "test_time", "validation", "test"]
    if not board.embedded.of_split("validation"):
        return pd.DataFrame(columns=columns)
    seen = plain_streams(streams).set_index(["model", "score", "group"]).auroc
    means = [
        pd.Series(of.points["average all"][:, 0], pd.MultiIndex.from_tuples(of.keys))
        for of in (board.book("validation"), book)
    ]
    static = [mean.groupby(level=[0, 2]).mean() for mean in means]
    rows = []
    for row in asked:
        if row in static[0]:
            rows.append([*row, "no", *(mean[row] for mean in static)])
        elif (*row, "validation") in seen:
            rows.append([*row, "yes", seen[(*row, "validation")], seen[(*row, "all")]])
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values("validation", ascending=False, kind="stable", ignore_index=True)


def tested(board: Board, book: ScoreBook, validated: pd.DataFrame) -> pd.DataFrame:
    """The best combination by validation, and the best that sees no test stream, against NegLabel alone.

    ``validated``: as ``combined`` gives it. On CMA (where it was made) and on the zero-shot model, in AUROC
    over the test sets.
    Columns: a, b, low, high (95 %, not corrected), verdict: "better", "worse", "not settled". An adaptive
    score is compared on its plain streams' images.
    """
    static, rows = validated[validated.test_time == "no"], []
    picks = pd.concat([validated[:1], static[:1]]).drop_duplicates(["model", "score"])
    others = [row for row in (("CMA", "NegLabel"), NEGLABEL) if any(key[::2] == row for key in book.keys)]
    for pick, other in product(picks.itertuples(index=False), others):
        mine = pick.model, pick.score
        if pick.test_time == "no":
            judged = claims(book, [Claim("", mine, other)]).iloc[0]
            low, high = judged.low, judged.high
        else:
            low, high = stream_difference(board, mine, other)
        word = "better" if low > 0 else "worse" if high < 0 else "not settled"
        rows.append([" · ".join(mine), " · ".join(other), low, high, word])
    return pd.DataFrame(rows, columns=["a", "b", "low", "high", "verdict"])

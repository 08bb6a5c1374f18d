"""The test stream of adaptive scores: which images, in which order, in which batches.

A score that learns while it is tested is as good as the stream it was tested on, so each is shown under all
``CONDITIONS``. Orders and ratios at one seed draw the same images where they can.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from . import Adaptive, Evidence, Method

BATCH = 64  # images that are scored together
RARE = 10  # images of the rarer side at least, where there are so many
ORDERS = ("shuffled", "ID first", "OoD first", "drifting")
# (order, ID:OoD): the four orders balanced, the other two ratios shuffled
CONDITIONS = [*((order, "1:1") for order in ORDERS), ("shuffled", "1:100"), ("shuffled", "100:1")]


class Streamed(NamedTuple):
    """Scores (n,) and (m,), float64, higher = more ID, of the ID and OoD images with these sorted indices."""

    id_scores: np.ndarray
    ood_scores: np.ndarray
    id_index: np.ndarray
    ood_index: np.ndarray


def plan(n_id: int, n_ood: int, order: str, ratio: str, seed: int) -> np.ndarray:
    """The stream: numbers below ``n_id`` for ID images, ``n_id`` + i for OoD image i, each at most once.

    ``ratio`` "a:b": as many images as a : b allows, all of one side, the other drawn; but of neither side
    fewer than ``RARE`` or all there are. ``order`` "drifting": an image's place is drawn so that at 1:1 the
    expected share of OoD grows linearly from 0 to 1 (at other ratios it grows, not linearly). UserError for
    other orders, ratios that are not two positive whole numbers, and an empty side.
    """
    if order not in ORDERS:
        raise UserError(f"order is {order!r}, which no stream has; choose {', '.join(ORDERS)}")
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", ratio):
        raise UserError(f"ratio is {ratio!r}; give ID:OoD as two whole numbers, such as 1:100")
    if min(n_id, n_ood) < 1:
        raise UserError(f"a stream of {n_id} ID and {n_ood} OoD images has one side only; give both")
    draw, places = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    parts = [int(part) for part in ratio.split(":")]
    rounds = min(n_id / parts[0], n_ood / parts[1])
    drawn = [
        draw.permutation(n)[: max(round(rounds * part), RARE)]
        for n, part in zip((n_id, n_ood), parts, strict=True)
    ]
    ours, theirs = (places.random(len(index)) for index in drawn)
    if order == "drifting":  # densities 2 (1 - u) and 2 u of the time u
        ours, theirs = 1 - np.sqrt(ours), np.sqrt(theirs)
    elif order != "shuffled":
        ours, theirs = ours + (order == "OoD first"), theirs + (order == "ID first")
    return np.concatenate([drawn[0], n_id + drawn[1]])[np.concatenate([ours, theirs]).argsort()]


def simulate(
    method: Adaptive | Method,
    known: Evidence,
    id_rows: np.ndarray,
    ood_rows: np.ndarray,
    *,
    order: str = "shuffled",
    ratio: str = "1:1",
    seed: int = 0,
    batch: int = BATCH,
) -> Streamed:
    """Score ID rows (n, d) and OoD rows (m, d) as one stream, each image once, at its time.

    ``known``: evidence without images; rows as ``Evidence.of`` takes them. A static ``Method`` gets the same
    images, so that both are compared on them. Errors as ``plan``; UserError where a score is missing or not
    finite.
    """
    stream = plan(len(id_rows), len(ood_rows), order, ratio, seed)
    rows = np.concatenate([id_rows, ood_rows])[stream]
    if isinstance(method, Method):
        scores = method(known.of(rows))
    else:
        step = method(known)
        scores = np.concatenate([step(part) for part in np.split(rows, range(batch, len(rows), batch))])
    if scores.shape != stream.shape or not np.isfinite(scores).all():
        raise UserError(f"{method.name} left images of the stream without a finite score; leave it out")
    back = stream.argsort()
    cut = int((stream < len(id_rows)).sum())
    index, scores = stream[back], scores[back].astype(np.float64)
    return Streamed(scores[:cut], scores[cut:], index[:cut], index[cut:] - len(id_rows))

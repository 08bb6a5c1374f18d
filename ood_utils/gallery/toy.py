"""A toy world on the sphere S2, so that it can be drawn: the gallery's own code runs on it."""

from typing import NamedTuple

import numpy as np

from ..config import make_profile
from . import Adaptation, Adaptive, Evidence, Step, Task

GAP = np.radians(45)  # angle between an image and its text
PLACES = {  # image clusters: longitude, latitude in degrees
    "ID": ((-50, 24), (2, 30), (36, 20)),
    "OoD": ((-24, 27), (68, 22)),  # one between the classes, one further off
}
WORDS = ((-78, -30), (-38, -58), (18, -62), (50, -50))  # negative texts that name nothing seen here


class Toy(NamedTuple):
    """``known``: evidence without images; ``inside`` (n, 3) ID images, ``labels``; ``outside`` OoD images."""

    known: Evidence
    inside: np.ndarray
    labels: np.ndarray
    outside: np.ndarray


def at(longitude: np.ndarray | float, latitude: np.ndarray | float) -> np.ndarray:
    """Unit rows (..., 3) of degrees; z is up, and the reader looks along y, from (0, -1, 0)."""
    lon, lat = np.radians(longitude), np.radians(latitude)
    rows = np.stack([np.cos(lat) * np.sin(lon), -np.cos(lat) * np.cos(lon), np.sin(lat)], axis=-1)
    return rows.astype(np.float32)  # as embeddings are


def world(seed: int = 0, spread: float = 0.07, each: int = 60) -> Toy:
    """Three ID classes and two OoD clusters; each text lies ``GAP`` below its images, OoD names too.

    The temperature fits a sphere of three dimensions, where cosines differ more than CLIP's do.
    """
    random = np.random.default_rng(seed)

    def around(place: tuple[int, int]) -> np.ndarray:
        rows = at(*place) + spread * random.normal(size=(each, 3))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    names = {group: np.array(places, float) - (0, np.degrees(GAP)) for group, places in PLACES.items()}
    texts = at(*names["ID"].T)
    negatives = at(*np.concatenate([names["OoD"], np.array(WORDS, float)]).T)
    labels = np.repeat(np.arange(len(texts)), each)
    train, inside = (np.concatenate([around(place) for place in PLACES["ID"]]) for _ in range(2))
    outside = np.concatenate([around(place) for place in PLACES["OoD"]])
    corpus = [(f"word {k}", "noun") for k in range(len(negatives))]
    known = Evidence(
        train[:0], texts, negatives, 0.05, 1, 0.5, train=train, train_labels=labels,
        class_names=[f"class {k}" for k in range(len(texts))], corpus=corpus, corpus_text=negatives,
    )  # fmt: skip
    return Toy(known, inside, labels, outside)


def adapted(method: Adaptation, world: Toy) -> Evidence:
    """The world's evidence after an adaptation of given embeddings with its world values."""
    profile = make_profile({}, "toy")
    task = Task(world.known, method.world, 0, None, None, profile, None)  # it has neither model nor files
    return method.apply(world.known.change(), method.fit(task))


def after_stream(method: Adaptive, world: Toy, batch: int = 60) -> Step:
    """What an adaptive score has become after the world's images, shuffled: unit rows (m, 3) -> scores (m,).

    Each 1,000 of the rows are scored by a method that has seen that stream and nothing else.
    """
    stream = np.concatenate([world.inside, world.outside])
    stream = stream[np.random.default_rng(0).permutation(len(stream))]

    def score(rows: np.ndarray) -> np.ndarray:
        step = method(world.known)
        for part in np.split(stream, range(batch, len(stream), batch)):
            step(part)
        return step(rows)

    return lambda rows: np.concatenate([score(part) for part in np.array_split(rows, len(rows) // 1000 + 1)])


def grid(size: int = 81) -> tuple[np.ndarray, np.ndarray]:
    """The visible half of the sphere: unit rows (m, 3) and where they lie in the picture, (size, size) bool.

    Orthographic: column and row of the picture are x and z, from -1 to 1.
    """
    x, z = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    seen = x**2 + z**2 < 0.999
    y = -np.sqrt(1 - x[seen] ** 2 - z[seen] ** 2)
    return np.stack([x[seen], y, z[seen]], axis=1).astype(np.float32), seen

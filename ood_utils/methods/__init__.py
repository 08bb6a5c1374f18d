"""Every way to tell OoD from ID, one small file each: a new score is a new file and nothing else.

A file holds a ``METHOD``: name in tables, year, source, what it needs of the evidence, and its formula,
one number per image, HIGHER = MORE ID. What the asked methods need is computed once for all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import attrgetter

import numpy as np

from .. import registry, scores
from ..errors import UserError, nearest


@dataclass(frozen=True)
class Evidence:
    """What there is to judge the images of one set by; what is None the study does not have.

    ``images`` (n, d), ``class_text`` (K, d), ``negative_text`` (M, d): unit rows; ``temperature`` divides
    cosines; ``beta`` weighs the negatives of "P - beta N".
    """

    images: np.ndarray
    class_text: np.ndarray | None = None
    negative_text: np.ndarray | None = None
    temperature: float = 0.01
    groups: int = 1
    beta: float = 1.0

    @cached_property
    def log_odds(self) -> np.ndarray:
        """(n,) float64 NegLabel, shared by all methods that weigh ID texts against negatives."""
        return scores.neglabel(
            self.images, self.class_text, self.negative_text, self.temperature, self.groups
        )

    @cached_property
    def cosines(self) -> np.ndarray:
        """(n, K) float64 cosines of images and class texts, shared by all methods that look at them."""
        return scores.cosines(self.images, self.class_text)


class PlainEvidence(Evidence):
    """The same by numpy alone, for a server without torch; equal to 1e-6 in log-odds."""

    @cached_property
    def log_odds(self) -> np.ndarray:
        texts = self.class_text, self.negative_text
        return scores.plain_neglabel(self.images, *texts, self.temperature, self.groups)

    @cached_property
    def cosines(self) -> np.ndarray:
        return self.images.astype(np.float64) @ self.class_text.T.astype(np.float64)


@dataclass(frozen=True)
class Method:
    """One file's METHOD. ``needs``: fields of ``Evidence`` without which it cannot be computed."""

    name: str
    year: int
    source: str
    needs: tuple[str, ...]
    score: Callable[[Evidence], np.ndarray]

    def lacks(self, evidence: Evidence) -> list[str]:
        """Which of its needs the evidence does not meet."""
        return [need for need in self.needs if getattr(evidence, need) is None]

    def __call__(self, evidence: Evidence) -> np.ndarray:
        """(n,) float64, higher = more ID. UserError naming what the method needs and the evidence lacks."""
        if lacking := self.lacks(evidence):
            raise UserError(f"{self.name} needs {lacking[0]}, which these embeddings lack; leave it out")
        return self.score(evidence)


@lru_cache(maxsize=1)
def every() -> dict[str, Method]:
    """Name -> method, by year and name."""
    found = [registry.find("methods", name).METHOD for name in registry.names("methods")]
    return {method.name: method for method in sorted(found, key=attrgetter("year", "name"))}


def find(name: str) -> Method:
    """The method of that name. Raises UserError with the nearest names."""
    if name not in every():
        raise UserError(f"no score is called {name!r}{nearest(name, every())}")
    return every()[name]


def names(evidence: Evidence) -> list[str]:
    """The names of the methods whose needs the evidence meets."""
    return [name for name, method in every().items() if not method.lacks(evidence)]

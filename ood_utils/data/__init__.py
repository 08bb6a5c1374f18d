"""In-distribution and out-of-distribution image sets, one ``Study`` whatever the lane (a file of ``lanes/``).

Training images are asked for by *key* = epoch * n + index, and the random view is a function of (seed, key)
alone: workers, processes and resumed runs all see the same pictures.
"""

from collections.abc import Iterator

from .. import registry
from ..config import Profile
from .study import ImageSet, Need, Study, examples, picture

__all__ = ["ImageSet", "Need", "Study", "examples", "load", "needs", "picture"]


def load(profile: Profile, classes: int = 0) -> Study:
    """The study a profile describes; ``classes`` > 0 keeps only that many of its ID classes (an ablation).

    Raises UserError naming the folder, list or set that is missing or does not fit.
    """
    return registry.find("data/lanes", profile.data).study(profile, classes)


def needs(profile: Profile) -> Iterator[Need]:
    """What the lane and its corpus need on disk, there or not; light to ask, no image is opened."""
    from .corpus import corpus_need

    yield from registry.find("data/lanes", profile.data).needs(profile)
    if profile.corpus != "names":
        yield corpus_need(profile.corpus)

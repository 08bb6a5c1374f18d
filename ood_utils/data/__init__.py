"""In-distribution and out-of-distribution image sets, one ``Study`` whatever the lane (a file of ``lanes/``).

Training images are asked for by *key* = epoch * n + index, and the random view is a function of (seed, key)
alone: workers, processes and resumed runs all see the same pictures.
"""

from collections.abc import Iterator
from pathlib import Path

from .. import registry
from ..config import Profile
from ..errors import UserError
from .study import ImageSet, Need, Study, examples, picture

__all__ = ["ImageSet", "Need", "Study", "examples", "load", "needs", "picture", "require"]


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


def require(profile: Profile, name: str) -> None:
    """UserError naming the first thing that a profile needs on disk and that is wanting there."""
    for need in needs(profile):
        if need.ok is False:
            what = f"profile {Path(name).stem}: {need.fault.lower()}: {need.what}; {need.remedy}"
            ask = f"`python -m ood_utils check --profile {name}` lists all that is needed"
            raise UserError(f"{what}; {ask}")

"""In-distribution and out-of-distribution image sets, one ``Study`` whatever the lane (a file of ``lanes/``).

Training images are asked for by *key* = epoch * n + index, and the random view is a function of (seed, key)
alone: workers, processes and resumed runs all see the same pictures.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from shutil import disk_usage

from .. import registry
from ..config import Profile
from .study import ImageSet, Need, Study, examples, picture, refuse

__all__ = ["ImageSet", "Need", "Study", "examples", "load", "needs", "picture", "require"]
SHARED = Path("/dev/shm")


def load(profile: Profile, classes: int = 0) -> Study:
    """The study a profile describes; ``classes`` > 0 keeps only that many of its ID classes (an ablation).

    Raises UserError naming the folder, list or set that is missing or does not fit.
    """
    return registry.find("data/lanes", profile.data).study(profile, classes)


def needs(profile: Profile) -> Iterator[Need]:
    """What a run will not start without: the lane's files, its word lists, a GPU, shared memory."""
    from .corpus import corpus_need, list_need

    yield from registry.find("data/lanes", profile.data).needs(profile)
    if profile.corpus != "names":
        yield corpus_need(profile.corpus)
    if profile.negatives:
        yield list_need(profile.negatives)
    if profile.device == "cuda":
        import torch

        remedy = "a GPU machine with a CUDA build of torch, or -p device=cpu"
        yield Need(torch.cuda.is_available(), "a CUDA GPU that torch sees", remedy)
    if profile.workers and SHARED.is_dir():
        yield _shared_memory_need(profile)


def _shared_memory_need(profile: Profile) -> Need:
    """Whether what data loader processes hold ready fits into /dev/shm; else they die of a bus error."""
    image, workers = 3 * 224 * 224 * 4 / 2**30, profile.loaders(1)
    images = max(profile.embed_batch * workers, profile.batch * profile.loaders(profile.processes))
    wanted, free = 2 * image * images, disk_usage(SHARED).free / 2**30  # each holds two batches
    what = f"{SHARED} for {workers} data loader processes: up to {wanted:.1f} GiB, {free:.1f} GiB free"
    fitting = int(free / (2 * image * max(profile.embed_batch, profile.batch)))
    remedy = f"give the container --shm-size={math.ceil(wanted)}g or --ipc=host, or say -p workers={fitting}"
    return Need(wanted <= free, what, remedy, "LOW")


def require(profile: Profile, name: str) -> None:
    """UserError saying the first need that is not met, in the words of ``check``."""
    ask = f"`python -m ood_utils check --profile {name}` lists all that is needed"
    refuse((need for need in needs(profile) if need.ok is False), f"profile {Path(name).stem}: ", ask)

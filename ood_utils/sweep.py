"""What a study trains, and running it: in this process, side by side in children, or under torchrun."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from . import files, processes, registry
from .config import load_profile, parse_changes
from .errors import UserError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from .config import Profile, Recipe
    from .data import ImageSet, Study

PRELOAD = ("torch", "open_clip", "pandas", "pyarrow.parquet")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def plan(profile: Profile, lam: float | None = None) -> pd.DataFrame:
    """The fine-tunings of a study, one row each: role, method, seed, classes, lam, tag. lam = 0 is FLYP.

    Without ``lam`` the sweep: every lam of the profile with the first seed. With the chosen ``lam`` all there
    is: "headline" (zero-shot, and FLYP and CMA with every seed), "few classes" (both on profile.few_classes
    classes) and what else the sweep trained.
    """
    rows, first = [], profile.seeds[0]
    if lam is not None:
        pair = (("FLYP", 0.0), ("CMA", lam))
        rows.append(("headline", "zero-shot", 0, 0, float("nan")))
        rows += [("headline", name, seed, 0, x) for name, x in pair for seed in profile.seeds]
        if few := profile.few_classes:
            rows += [("few classes", name, first, few, x) for name, x in pair]
    others = [x for x in profile.lams if lam is None or x not in (0, lam)]
    rows += [("sweep", f"CMA, lam {x:g}" if x else "FLYP", first, 0, x) for x in others]
    frame = pd.DataFrame(rows, columns=["role", "method", "seed", "classes", "lam"])
    tags = [f"lam{row.lam:g}_seed{row.seed}" for row in frame.itertuples()]
    few = [f"_classes{row.classes}" if row.classes else "" for row in frame.itertuples()]
    frame["tag"] = [tag + tail for tag, tail in zip(tags, few, strict=True)]
    frame.loc[frame.method == "zero-shot", "tag"] = "zero-shot"
    return frame


def planned_jobs(planned: pd.DataFrame, profile: Profile) -> dict[str, Recipe]:
    """Tag -> recipe of every fine-tuning of a ``plan``. UserError where two have the same tag."""
    rows = planned[planned.method != "zero-shot"]
    if not rows.tag.is_unique:
        tag = rows.tag[rows.tag.duplicated()].iloc[0]
        raise UserError(f"two fine-tunings are called {tag!r}; give lams and seeds that differ")
    return {
        row.tag: profile.recipe(
            objective="cma" if row.lam else "clip", lam=row.lam, seed=row.seed, classes=row.classes
        )
        for row in rows.itertuples()
    }


@dataclass(frozen=True)
class Job:
    """One fine-tuning from the profile's starting weights, with all that another process needs to do it."""

    profile: Profile
    recipe: Recipe
    train: ImageSet
    texts: list[str]
    folder: Path
    save_every: int

    def run(self, progress: bool = False) -> None:
        """Load the starting weights and fine-tune; errors as ``training.fine_tune``."""
        from . import models, training

        profile = self.profile
        model, _, tokenizer = models.load(profile.model, profile.pretrained)
        training.fine_tune(
            model, tokenizer, self.train, self.texts, self.recipe, self.folder,
            device=profile.device, save_every=self.save_every, progress=progress, workers=profile.workers,
            max_unreadable=profile.max_unreadable,
        )  # fmt: skip

    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        facts = files.read_json(self.folder / "progress.json")
        return facts["step"] / facts["steps"] if facts else float((self.folder / "card.json").exists())


def carry_out(
    planned: pd.DataFrame,
    profile: Profile,
    folder: Path,
    *,
    study: Study | None = None,
    save_every: int = 50,
    progress: bool = True,
) -> pd.DataFrame:
    """Run what is not done yet of a ``plan``; the plan with ``weights``, paths below ``folder``.

    The zero-shot row keeps the profile's own weights. With ``profile.processes`` > 1 so many processes of one
    ``torch.distributed`` group take the fine-tunings in turn, whatever ``parallel`` says. Otherwise
    ``profile.parallel`` children share them: of one thread each on the CPU, one child on a GPU, or with 0
    this process. Interrupted or failed, the children are ended and the next call resumes from the last state,
    at most ``save_every`` steps back. ``study``: the profile's, where it is loaded already. Raises what a
    fine-tuning raises (UserError), or RuntimeError naming what a child was training when it died.
    """
    recipes = planned_jobs(planned, profile)
    jobs = _pending(recipes, profile, folder / "checkpoints", study, save_every)
    if profile.processes == 1 and profile.parallel == 0:
        for job in jobs:
            job.run(progress)
    elif jobs:
        _in_children(jobs, profile, progress)
    weights = {tag: f"checkpoints/{tag}/model.safetensors" for tag in recipes}
    return planned.assign(weights=[weights.get(tag, profile.pretrained) for tag in planned.tag])


def _pending(
    recipes: dict[str, Recipe], profile: Profile, folder: Path, study: Study | None, save_every: int
) -> list[Job]:
    """The fine-tunings that are not finished; of their studies only what they need."""
    from . import data, models, training

    start = models.weights_hash(models.load(profile.model, profile.pretrained)[0])
    studies, jobs = {0: study} if study else {}, []
    for tag, recipe in recipes.items():
        if recipe.classes not in studies:
            studies[recipe.classes] = data.load(profile, recipe.classes)
        known, place = studies[recipe.classes], (folder / tag).resolve()
        texts = known.class_texts(profile.prompt)
        if not training.finished(place, training.identity(recipe, start, known.train, texts)):
            jobs.append(Job(profile, recipe, known.train, texts, place, save_every))
    return jobs


def _in_children(jobs: list[Job], profile: Profile, progress: bool) -> None:
    """Run jobs in a pool of children with one bar over all; whatever happens, no child outlives the call."""
    from .embeddings import resolve_device

    cpu, together = resolve_device(profile.device) == "cpu", profile.processes > 1
    count = min(profile.parallel, len(jobs)) if cpu and not together else 1
    processes.give_back_memory()
    others = multiprocessing.active_children()
    environment = os.environ | (ONE_THREAD if cpu else {})
    pool = ProcessPoolExecutor(count, processes.forkserver(*PRELOAD), _prepare, (environment,))
    try:
        with processes.main_hidden():
            tasks = [(_launch, jobs)] if together else [(Job.run, job) for job in jobs]
            waiting = {pool.submit(*task) for task in tasks}
        form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
        bar = {"total": len(jobs), "desc": "fine-tunings", "bar_format": form, "disable": not progress}
        with files.progress(**bar) as shown:
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                shown.update(sum(job.share() for job in jobs) - shown.n)
                for future in done:
                    future.result()
        pool.shutdown()
    except UserError as mistake:
        raise mistake from None  # one sentence, without the child's traceback
    except BrokenProcessPool:
        at_work = [job.folder.name for job in jobs if (job.folder / "progress.json").exists()]
        raise RuntimeError(
            f"a process died (killed, out of memory?) while training {' and '.join(at_work)}; run again, "
            "it resumes from the last state"
        ) from None
    finally:
        left = [child for child in multiprocessing.active_children() if child not in others]
        processes.end_children(child.pid for child in left)
        pool.shutdown(cancel_futures=True)


def _prepare(environment: dict[str, str]) -> None:
    """In a child: the parent's environment as it is now, its threads, and its end."""
    import torch
    from tqdm import tqdm

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer
    processes.end_with_parent()
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore that a killed child leaves behind
    os.environ.update(environment)
    if environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))


def _launch(jobs: list[Job]) -> None:
    """In a child: have ``profile.processes`` processes of one group take the jobs in turn."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what fails is raised, not logged
    with tempfile.TemporaryDirectory() as aside:
        config = LaunchConfig(
            1, 1, jobs[0].profile.processes,
            run_id="ood", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
            signals_to_handle="SIGTERM", logs_specs=DefaultLogsSpecs(aside, Std.ALL),
        )  # fmt: skip
        try:
            elastic_launch(config, _take_part)(jobs)
        except ChildFailedError as failed:
            raise _own_error(failed) from None


def _own_error(failed: ChildFailedError) -> Exception:
    """The first error among the processes; a UserError goes before what it led to in the others."""
    messages = [failure.message for failure in failed.failures.values()]
    said = [message["message"] if isinstance(message, dict) else message for message in messages]
    for message in said:
        if message.startswith("UserError: "):
            return UserError(message.removeprefix("UserError: "))
    return RuntimeError(f"a process of the group died, the last state is kept: {'; '.join(said)}")


def _take_part(jobs: list[Job]) -> None:
    """In a process of a group that ``elastic_launch`` started."""
    _prepare({})
    with _group(jobs[0].profile):
        for job in jobs:
            job.run()


@contextmanager
def _group(profile: Profile) -> Iterator[None]:
    """The process group that torchrun or ``elastic_launch`` describes in the environment, if any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    import torch

    from .embeddings import resolve_device

    if profile.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the GPU is touched: see training
    device = resolve_device(profile.device)
    if device != "cpu":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m ood_utils train``, for ``train_command``."""
    add = parser.add_argument
    add("--profile", default="glyphs", help="name in notebooks/profiles or path (default: glyphs)")
    add("-p", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change profile values")
    add("--objective", choices=registry.names("objectives"), default="cma", help="clip is FLYP")
    add("--lam", type=float, help="0 to 1: CMA's lam or m2-Mix's weight (default: the profile's)")
    add("--seed", type=int, default=0, help="training seed (default: 0)")
    add("--classes", type=int, default=0, help="ID classes, 0 = all of the profile's")
    add("--folder", type=Path, required=True, help="where weights, log and card go")
    add("--save-every", type=int, default=200, metavar="STEPS", help="steps between states")
    add("--deterministic", action="store_true", help="the same as -p deterministic=true")


def asked(options: argparse.Namespace) -> tuple[Profile, Recipe]:
    """Profile and recipe that the arguments of ``train`` describe; UserError for impossible values."""
    changes = parse_changes(options.p) | ({"deterministic": True} if options.deterministic else {})
    profile = load_profile(options.profile, changes)
    lam = profile.lam if options.lam is None else options.lam
    names = ("objective", "seed", "classes")
    return profile, profile.recipe(lam=lam, **{name: getattr(options, name) for name in names})


def train_command(options: argparse.Namespace) -> int:
    """One fine-tuning, in this process or as every process of torchrun, on one machine or many; returns 0.

    The profile's batch is that of all processes together. Asked again, it resumes. Rank 0 writes the folder;
    on several machines it is on the one whose host name sorts first, unless they share the disk, and every
    machine needs the data under the same path. Raises UserError.
    """
    from . import data

    profile, recipe = asked(options)
    study = data.load(profile, recipe.classes)
    texts = study.class_texts(profile.prompt)
    with _group(profile):
        Job(profile, recipe, study.train, texts, options.folder, options.save_every).run(progress=True)
    return 0

"""What a study trains, and running it: in this process, side by side in children, or under torchrun."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from . import files, processes, registry
from .config import Profile, Recipe, load_profile, parse_changes
from .errors import UserError

if TYPE_CHECKING:
    from .data import ImageSet, Study

PRELOAD = ("torch", "open_clip", "pandas", "pyarrow.parquet")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def plan(profile: Profile, closed: float | None = None, relation: float = 0) -> pd.DataFrame:
    """The fine-tunings of a study, one row each: role, method, seed, lam, relation, image_lr, tag.

    lam = 0 is FLYP. Always the "sweep", with the first ``sweep_seeds`` seeds: every ``lam``, and FLYP with
    every ``relation`` and every ``image_lr`` that the profile lists. With ``closed``, the lam that closes the
    gap, also the "headline", with every seed: zero-shot, FLYP, CMA (the profile's lam), CMA closed, and these
    three with relation distillation at weight ``relation`` (0 leaves them out).
    """
    rows, usual = [], float("nan") if profile.image_lr is None else profile.image_lr
    if closed is not None:
        lams = {"FLYP": 0.0, "CMA": profile.lam} | ({"CMA closed": closed} if closed != profile.lam else {})
        weights = {0.0: ""} | ({relation: " + relation"} if relation else {})
        rows.append(("headline", "zero-shot", 0, float("nan"), 0.0, usual))
        for (weight, added), (name, lam), seed in product(weights.items(), lams.items(), profile.seeds):
            rows.append(("headline", name + added, seed, lam, weight, usual))
    for seed in profile.seeds[: profile.sweep_seeds]:
        for lam in sorted(set(profile.lams)):
            rows.append(("sweep", f"CMA, lam {lam:g}" if lam else "FLYP", seed, lam, 0.0, usual))
        rows += [("sweep", f"FLYP + relation {x:g}", seed, 0.0, x, usual) for x in profile.relations]
        rows += [("sweep", f"FLYP, image tower at {x:g}", seed, 0.0, 0.0, x) for x in profile.image_lrs]
    frame = pd.DataFrame(rows, columns=["role", "method", "seed", "lam", "relation", "image_lr"])
    more = frame.relation.map(lambda x: f"_relation{x:g}" if x else "")
    more += frame.image_lr.map(lambda x: f"_image{x:g}" if x == x and x != profile.image_lr else "")
    tags = "lam" + frame.lam.map("{:g}".format) + "_seed" + frame.seed.astype(str) + more
    frame = frame.assign(tag=tags.mask(frame.method == "zero-shot", "zero-shot"))
    return frame.drop_duplicates(["role", "tag"], ignore_index=True)  # such as the usual image_lr, listed too


def planned_jobs(planned: pd.DataFrame, profile: Profile) -> dict[str, Recipe]:
    """Tag -> recipe of every fine-tuning of a ``plan``; what is in headline and sweep is trained once."""
    recipes = {}
    for row in planned[planned.method != "zero-shot"].itertuples():
        rate = None if np.isnan(row.image_lr) else row.image_lr
        changes = {"lam": row.lam, "seed": row.seed, "relation": row.relation, "image_lr": rate}
        recipes[row.tag] = profile.recipe(objective="cma" if row.lam else "clip", **changes)
    return recipes


class Job(NamedTuple):
    """One fine-tuning from the profile's starting weights, with all that another process needs to do it."""

    profile: Profile
    recipe: Recipe
    train: ImageSet
    texts: list[str]
    words: list[str]
    folder: Path
    save_every: int

    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        facts = files.read_json(self.folder / "progress.json")
        return facts["step"] / facts["steps"] if facts else float((self.folder / "card.json").exists())


def carry_out(
    planned: pd.DataFrame,
    profile: Profile,
    folder: Path,
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
    places = {folder / "checkpoints" / tag: recipe for tag, recipe in recipes.items()}
    train(identified(places, profile, study, save_every), profile, progress)
    weights = {tag: f"checkpoints/{tag}/model.safetensors" for tag in recipes}
    return planned.assign(weights=[weights.get(tag, profile.pretrained) for tag in planned.tag])


def train(known: Iterable[tuple[Job, str]], profile: Profile, progress: bool = True) -> None:
    """Run what is not done yet of ``identified`` jobs, each in its folder, as ``carry_out`` says."""
    from . import training

    jobs = [job for job, key in known if not training.finished(job.folder, key)]
    run = _train if profile.processes == 1 and profile.parallel == 0 else _in_children
    if jobs:
        run(jobs, progress)


def identified(
    recipes: Mapping[Path, Recipe], profile: Profile, study: Study | None = None, save_every: int = 50
) -> list[tuple[Job, str]]:
    """The jobs of recipes by folder, each with its ``training.identity``."""
    from . import models, training

    start = models.weights_hash(models.load(profile.model, profile.pretrained)[0])
    jobs = _jobs(recipes, profile, save_every, study)
    return [(j, training.identity(j.recipe, start, j.train, j.texts, j.words)) for j in jobs]


def _jobs(
    recipes: Mapping[Path, Recipe], profile: Profile, save_every: int, study: Study | None = None
) -> list[Job]:
    """Jobs of recipes by folder; of their studies only what they need."""
    from . import data

    studies, jobs = {0: study} if study else {}, []
    for count in {recipe.classes for recipe in recipes.values()} - studies.keys():
        studies[count] = data.load(profile, count)
    for folder, recipe in recipes.items():
        known = studies[recipe.classes]
        texts, words = known.class_texts(profile.prompt), _words(known, profile) if recipe.relation else []
        jobs.append(Job(profile, recipe, known.train, texts, words, folder.resolve(), save_every))
    return jobs


def _words(study: Study, profile: Profile) -> list[str]:
    """Prompted corpus words that name no ID class, for relation distillation."""
    from . import negatives  # brings torch, and `check` asks only for the plan

    usable = negatives.clean([word for word, _ in study.corpus], study.class_names, study.synonyms)
    prompted = negatives.prompts(study.corpus, profile.negative_prompt, profile.adjective_prompt)
    return [text for text, use in zip(prompted, usable, strict=True) if use]


def _train(jobs: list[Job], progress: bool = False) -> None:
    """Run jobs here, as one process of a group where torchrun or ``elastic_launch`` has asked for one."""
    import torch

    from . import models, training
    from .embeddings import resolve_device

    group = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if group:
        if jobs[0].profile.deterministic:
            os.environ.setdefault(training.CUBLAS, ":4096:8")  # before the GPU is touched: see training
        device = resolve_device(jobs[0].profile.device)
        if device != "cpu":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        for profile, recipe, train, texts, words, folder, save_every in jobs:
            model, _, tokenizer = models.load(profile.model, profile.pretrained)
            options = {"device": profile.device, "workers": profile.loaders(), "save_every": save_every}
            options |= {"max_unreadable": profile.max_unreadable, "progress": progress, "words": words}
            training.fine_tune(model, tokenizer, train, texts, recipe, folder, **options)
    finally:
        if group:
            torch.distributed.destroy_process_group()


def _in_children(jobs: list[Job], progress: bool) -> None:
    """Run jobs in a pool of children with one bar over all; whatever happens, no child outlives the call."""
    from .embeddings import resolve_device

    profile = jobs[0].profile
    cpu, together = resolve_device(profile.device) == "cpu", profile.processes > 1
    count = min(profile.parallel, len(jobs)) if cpu and not together else 1
    logs = tempfile.TemporaryDirectory()
    try:
        with children(count, cpu) as pool:
            tasks = [(_launch, jobs, logs.name)] if together else [(_train, [job]) for job in jobs]
            _watch({pool.submit(*task) for task in tasks}, jobs, progress)
    except UserError as mistake:
        raise mistake from None  # one sentence, without the child's traceback
    except BrokenProcessPool:
        at_work = " and ".join(job.folder.name for job in jobs if (job.folder / "progress.json").exists())
        fault = f"a process died (killed, out of memory?) while training {at_work}"
        raise RuntimeError(f"{fault}; run again, it resumes from the last state") from None
    finally:
        logs.cleanup()


def _watch(waiting: set[Future], jobs: list[Job], progress: bool) -> None:
    """One bar over all jobs until each is done, or one has failed; raises what it raised."""
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
    bar = {"total": len(jobs), "desc": "fine-tunings", "bar_format": form, "disable": not progress}
    with files.progress(**bar) as shown:
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
            shown.update(sum(job.share() for job in jobs) - shown.n)
            for future in done:
                future.result()


@contextmanager
def children(count: int, cpu: bool) -> Iterator[ProcessPoolExecutor]:
    """A pool of children, on the CPU of one thread each; whatever happens, none outlives the block."""
    others = multiprocessing.active_children()
    environment = os.environ | (ONE_THREAD if cpu else {})
    pool = ProcessPoolExecutor(count, processes.forkserver(*PRELOAD), _prepare, (environment,))
    try:
        with processes.main_hidden():
            yield pool
        pool.shutdown()
    finally:
        processes.end_children(
            child.pid for child in multiprocessing.active_children() if child not in others
        )
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


def _launch(jobs: list[Job], logs: str) -> None:
    """In a child: have ``profile.processes`` processes of one group take the jobs in turn."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what fails is raised, not logged
    config = LaunchConfig(
        1, 1, jobs[0].profile.processes,
        run_id="ood", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
        signals_to_handle="SIGTERM", logs_specs=DefaultLogsSpecs(logs, Std.ALL),
    )  # fmt: skip
    try:
        elastic_launch(config, _take_part)(jobs)
    except ChildFailedError as failed:
        if mistake := re.search("UserError: (.*)", str(failed)):  # goes before what it led to elsewhere
            raise UserError(mistake[1]) from None
        raise RuntimeError(f"a process of the group died, the last state is kept: {failed}") from None


def _take_part(jobs: list[Job]) -> None:
    """In a process of a group that ``elastic_launch`` started."""
    _prepare({})
    _train(jobs)


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
    if options.save_every < 1:
        raise UserError(f"--save-every {options.save_every} is refused: give steps, 1 or more")
    changes = parse_changes(options.p) | ({"deterministic": True} if options.deterministic else {})
    profile = load_profile(options.profile, changes)
    lam = profile.lam if options.lam is None else options.lam
    values = {"lam": lam, "seed": options.seed, "classes": options.classes}
    return profile, profile.recipe(objective=options.objective, **values)


def train_command(options: argparse.Namespace) -> int:
    """``ood train`` (its help: ``__main__.TRAIN``), alone or under torchrun; returns 0, raises UserError."""
    profile, recipe = asked(options)
    _train(_jobs({options.folder: recipe}, profile, options.save_every), progress=True)
    return 0

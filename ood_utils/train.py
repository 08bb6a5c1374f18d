"""Command line of ``training``: one fine-tuning, in one process or under torchrun, on one machine or many.

python -m ood_utils.train --profile glyphs --objective cma --lam 0.003 --seed 0 --folder outputs/mine torchrun
--standalone --nproc-per-node 8 -m ood_utils.train --profile imagenet -p data_root=/data --folder ... torchrun
--nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m ood_utils.train ...

The batch of the profile is that of all processes together. Started again with the same words, it resumes.
Rank 0 writes the folder; on several machines it is on the one whose host name sorts first, unless they share
the disk, and every machine needs the data under the same path. What is wrong is said in one line that begins
with "error: "; torchrun adds a traceback of its own (ChildFailedError) below it, which says nothing more.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import UserError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ood_utils.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--profile", default="glyphs", help="name in notebooks/profiles or path (default: glyphs)"
    )
    parser.add_argument(
        "-p", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change values of the profile"
    )
    parser.add_argument("--objective", choices=("clip", "cma", "m2mix"), default="cma", help="clip is FLYP")
    parser.add_argument(
        "--lam", type=float, help="0 to 1; CMA's lam or the weight of m2-Mix (default: the profile's)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--classes", type=int, default=0, help="ID classes, 0 = all of the profile's")
    parser.add_argument("--folder", type=Path, help="where weights, log and card go")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS", help="steps between states")
    parser.add_argument("--deterministic", action="store_true", help="the same as -p deterministic=true")
    parser.add_argument(
        "--job", nargs="+", type=Path, help=argparse.SUPPRESS
    )  # files of training.fine_tune_many
    parser.add_argument(
        "--forks", type=int, default=1, help=argparse.SUPPRESS
    )  # jobs at a time, one process each
    parser.add_argument(
        "--watch", action="store_true", help=argparse.SUPPRESS
    )  # end when standard input closes
    return parser


def _jobs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every fine-tuning asked for: profile values, recipe values, folder, save_every."""
    if options.job:
        return [json.loads(path.read_text()) for path in options.job]
    if options.folder is None:
        raise UserError("--folder is missing; say where the weights, the log and the card go")
    from .config import load_profile, parse_changes
    from .training import Recipe

    asked = parse_changes(options.p) | ({"deterministic": True} if options.deterministic else {})
    profile = load_profile(options.profile, asked)
    changes = {"objective": options.objective, "seed": options.seed, "classes": options.classes}
    lam = {"lam": options.lam} if options.lam is not None else {}
    recipe = Recipe.from_profile(profile, **changes, **lam)
    return [
        {
            "profile": profile.model_dump(mode="json"),
            "recipe": vars(recipe),
            "folder": str(options.folder),
            "save_every": options.save_every,
        }
    ]


def _end_with_parent() -> None:
    """End this process when standard input closes: whoever started it is gone, however it went."""

    def wait() -> None:
        while os.read(0, 1024):  # not sys.stdin: its lock would be held at a normal exit
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _forked(jobs: list[dict[str, Any]], forks: int, watch: bool) -> int:
    """Take the jobs ``forks`` at a time in forks of this process, which has loaded everything; the worst exit
    status.

    Forks share the pages of the libraries and the data. Safe here: torch has run nothing yet and has one
    thread.
    """
    from . import training

    studies: dict[str, Any] = {}
    for job in jobs:
        training.study_of(job, studies)
    training.give_back_memory()
    gc.freeze()  # a collection in a fork would copy every page that it looks at
    children = []
    for number in range(forks):
        if not (child := os.fork()):
            status = 1
            try:
                if watch:
                    _end_with_parent()
                status = _take(jobs[number::forks], studies)
            except Exception:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        children.append(child)
    worst = 0
    while children and not worst:
        ended, state = os.wait()
        children.remove(ended)
        worst = 128 + state if os.WIFSIGNALED(state) else os.waitstatus_to_exitcode(state)
    for child in children:  # one has failed: the others stop, resumable
        os.kill(child, signal.SIGTERM)
    return worst


def _take(jobs: list[dict[str, Any]], studies: dict[str, Any]) -> int:
    """Run the jobs in turn; 2 for a user's mistake, said on standard error."""
    from . import training

    try:
        for job in jobs:
            training.run_job(job, studies)
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr, flush=True)
        return 2
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if all is finished, 2 for a user's mistake (one sentence on standard error)."""
    options = _parser().parse_args(argv)
    if options.watch:
        _end_with_parent()
    import torch

    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        jobs = _jobs(options)
        if any(job["recipe"].get("deterministic") for job in jobs):
            os.environ.setdefault(
                "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
            )  # before the GPU is touched: see training
        if distributed:
            from .embeddings import resolve_device

            device = resolve_device(jobs[0]["profile"]["device"])
            if device != "cpu":
                torch.cuda.set_device(device)
            torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl")
        if options.forks > 1:
            return _forked(jobs, options.forks, options.watch)
        return _take(jobs, {})
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    finally:
        if distributed and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())

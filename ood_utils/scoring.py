"""``ood score``: images and folders of images through a detector, as a table or a CSV file."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from . import files
from .data.paths import IMAGE_SUFFIXES, images_below
from .detector import Detector, check_request
from .errors import UserError

SCORE = """Which of these images are none of the classes that a detector knows?

  ood score photo.jpg more/ --detector outputs/folder/detector
  ood score /data/incoming --detector /models/detector --csv found.csv --workers 4

A folder stands for every image below it. Of each image: its score (higher = more in-distribution), whether it
is accepted as one of the classes, the class and the negative label nearest to it. Images that cannot be read,
broken links too, are listed and counted. --onnx runs without torch what was saved with onnx=True.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``ood score``, for ``command``."""
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="image files and folders")
    add("--detector", type=Path, required=True, metavar="FOLDER", help="what notebook 04 saves")
    add("--csv", type=Path, help="write the table here instead of printing it")
    add("--batch", type=int, default=64, help="images encoded at once (default: 64)")
    add("--workers", type=int, default=0, help="loading processes, with --onnx threads (default: 0)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: the GPU if there is one")
    add("--onnx", action="store_true", help="run the exported image tower, without torch, on the CPU")


def command(options: argparse.Namespace) -> int:
    """``ood score``; returns 0, or 1 where no image could be read; raises UserError."""
    paths = _expanded(options.images)
    check_request(paths, options.batch, options.workers)
    if options.csv:
        _check_writable(options.csv)
    guard = Detector.load(options.detector, options.device, options.onnx)
    found = guard.score(paths, options.batch, options.workers, progress=True)
    lost = [path for _, path in found.pop("unreadable")]
    shown = [path.encode("utf-8", "backslashreplace").decode() for path in paths]  # names that are no UTF-8
    import pandas as pd  # not before: what is refused is refused at once

    table = pd.DataFrame({"path": shown, **found})
    if options.csv:
        files.atomic_write(options.csv, table.to_csv(index=False))
    else:
        print(table.to_string(index=False))
    print(_told(guard, found, lost))
    return int(len(lost) == len(paths))  # 1: nothing was scored


def _check_writable(csv: Path) -> None:
    """UserError unless the table can be written: known before the minutes that the scores take."""
    if csv.exists() and not csv.is_file():
        raise UserError(f"--csv {csv} is a folder or a device; give a file")
    try:
        csv.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=csv.parent).close()
    except OSError as fault:
        why = "its folder is a file" if isinstance(fault, FileExistsError) else fault.strerror
        raise UserError(f"--csv {csv} cannot be written ({why}); give a file where you may write") from None


def _expanded(given: list[str]) -> list[str]:
    """Files as they are and, of folders, the images below them; each once, in order."""
    paths: list[str] = []
    for one in given:
        if not Path(one).is_dir():
            paths.append(one)
            continue
        below = [str(path) for path in images_below(one, strict=False)]
        if not below:
            raise UserError(f"folder {one} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        print(f"{one}: {len(below):,} images")
        paths += below
    return list(dict.fromkeys(paths))


def _told(guard: Detector, found: dict[str, Any], lost: list[str]) -> str:
    """What the threshold promises, the drift where there is one, and the counts."""
    accepted = found["is_id"][~np.isnan(found["score"])]
    counts = f"{len(found['score']):,} images: {accepted.sum():,} accepted, {(~accepted).sum():,} rejected"
    some = f": {', '.join(lost[:10])}{' ...' * (len(lost) > 10)}" if lost else ""
    last = f"{counts}, {len(lost):,} unreadable{some}"
    return "\n".join(line for line in (guard.guarantee, guard.drift(accepted), last) if line)

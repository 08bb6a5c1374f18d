"""Small notebooks without torch, a stand-in for their execution, and a disk that refuses."""

from __future__ import annotations

import errno
import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from ood_utils.series import runner

PARAMETERS = 'profile = "glyphs-tiny"\nrun = ""\nchanges = {}'


def notebook(path: Path, *code: str, prose: str = "# 01 - Is it so?", parameters: str = PARAMETERS) -> Path:
    """Write a notebook: a heading, the parameters cell, one cell per code; of a kernel that nobody has."""

    def cell(kind: str, number: int, source: str, tags: tuple[str, ...] = ()) -> dict[str, Any]:
        made = {
            "cell_type": kind,
            "id": f"{kind}{number}",
            "metadata": {"tags": list(tags)},
            "source": source,
        }
        return made | ({"outputs": [], "execution_count": None} if kind == "code" else {})

    cells = [cell("markdown", 0, prose), cell("code", 0, parameters, ("parameters",))]
    cells += [cell("code", number, source) for number, source in enumerate(code, start=1)]
    kernel = {"name": "conda-env-x-py", "display_name": "x", "language": "python"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def stand_in(
    patch: pytest.MonkeyPatch,
    calls: list[str],
    writes: dict[str, dict[str, str]],
    error: dict[str, Any] | None = None,
) -> None:
    """Execute no notebook: note its name and write its files (path below the run -> text)."""

    def execute(source: Path, output: Path, parameters: dict, limit: float, progress: Any) -> dict | None:
        calls.append(source.stem)
        output.write_text(source.read_text())
        for path, text in writes.get(source.stem, {}).items():
            target = output.parents[1] / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return {"cell": 0, **error} if error else None

    patch.setattr(runner, "surroundings", lambda *_: nullcontext())
    patch.setattr(runner, "execute", execute)


def refusing_disk(patch: pytest.MonkeyPatch, step: str) -> None:
    """A disk that is full half-way through a "write", or at the "rename" that ends one."""
    write = Path.write_bytes

    def refuse(first: Path, content: bytes | Path) -> None:
        if step == "write":
            write(first, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(*((Path, "write_bytes", refuse) if step == "write" else (os, "replace", refuse)))

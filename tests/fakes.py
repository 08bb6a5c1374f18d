"""Small notebooks without torch, and a stand-in for the execution of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARAMETERS = 'profile = "glyphs-tiny"\nrun = ""\nchanges = {}'


def notebook(path: Path, *code: str, prose: str = "# 01 - Is it so?", parameters: str = PARAMETERS) -> Path:
    """Write a notebook: a heading, the parameters cell, one cell per code; of a kernel that nobody has."""

    def cell(kind: str, number: int, source: str, tags: tuple[str, ...] = ()) -> dict[str, Any]:
        made = {"cell_type": kind, "id": f"{kind}{number}", "metadata": {"tags": list(tags)}, "source": source}
        return made | ({"outputs": [], "execution_count": None} if kind == "code" else {})

    cells = [cell("markdown", 0, prose), cell("code", 0, parameters, ("parameters",))]
    cells += [cell("code", number, source) for number, source in enumerate(code, start=1)]
    kernel = {"name": "conda-env-x-py", "display_name": "x", "language": "python"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def executor(calls: list[str], writes: dict[str, dict[str, str]], error: dict[str, Any] | None = None) -> Callable:
    """A stand-in for Executor.execute: notes the notebook's name and writes its files (path below the run -> text)."""

    def execute(self: Any, source: Path, output: Path, parameters: dict, limit: float, show: Any = None) -> tuple:
        calls.append(source.stem)
        output.write_text(source.read_text())
        for path, text in writes.get(source.stem, {}).items():
            target = self.outputs / parameters["run"] / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return error, 1

    return execute

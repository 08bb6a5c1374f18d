"""Papermill runs the series: each notebook with a kernel and a limit; run.json says what became of it."""

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import config, files, provenance, store
from ..config import Profile
from ..errors import UserError
from ..provenance import now
from . import check, state
from .progress import Progress
from .state import Inputs, Notebook


class NotebookFailed(RuntimeError):
    """A notebook failed; the message names it, the cell and its last lines."""


def run_series(
    profile: str,
    changes: dict[str, Any] | None = None,
    run: str = "",
    only: Iterable[str] = (),
    force: bool = False,
    timeout: float | None = None,
    verify: bool = False,
) -> Path:
    """Run the notebooks that must run, in order; then write the report. Returns the run's folder.

    timeout: wall-clock limit of one notebook in minutes (default: the profile's). verify: hash every recorded
    output, not only those whose time or size differ. Everything the user gave is
    checked before a kernel starts (UserError). NotebookFailed when one fails: nothing after it runs.
    KeyboardInterrupt leaves a run that the next call takes up.
    """
    values = config.load_profile(profile, changes).for_series()
    series = state.find(config.ROOT / "notebooks")
    chosen = state.choose(series, only)
    name = store.run_name(run, profile)
    check.require(values, profile)
    folder = store.OUTPUTS / name
    if str(profile) not in config.profile_names():
        profile = str(config.profile_file(profile))
    with state.sole_user(folder):
        record = store.new_record(name, profile, values, changes or {}, {})
        with suppress(UserError) if force else nullcontext():  # what another version wrote
            record = store.read_record(folder) or record
        inputs = Inputs(values, series, verify)
        job = _Job(folder, record, profile, values, inputs, 60 * (timeout or values.timeout_minutes))
        try:
            due = chosen if force else [n for n in chosen if inputs.reason(n, record, folder)]
            if due:
                fresh = store.new_record(name, profile, values, changes or {}, provenance.provenance())
                record.update(fresh, notebooks=record["notebooks"], status="running")
            with surroundings(folder.parent, due):
                for notebook in chosen:
                    reason = "--force" if force else inputs.reason(notebook, record, folder)
                    if reason:
                        job.run(notebook, reason)
                    else:
                        checked = ", every output hashed" if verify else ""
                        print(f"{notebook.name}: done already, nothing changed{checked}")
        finally:
            _finish(folder, record, inputs)
    return folder


def _finish(folder: Path, record: dict[str, Any], inputs: Inputs) -> None:
    """Say of every notebook whether its results are current, then write the report if anything is new."""
    before = json.dumps(record, sort_keys=True)
    states = set()
    for notebook in inputs.series:
        entry = record["notebooks"].get(notebook.name, {})
        entry.pop("stale", None)
        reason = inputs.reason(notebook, record, folder)
        if entry.get("status") == "done" and reason:
            entry["stale"] = reason
        states.add("stale" if "stale" in entry else entry.get("status", "missing"))
    order = ("interrupted", "failed", "running")
    record["status"] = "done" if states == {"done"} else next((s for s in order if s in states), "partial")
    if json.dumps(record, sort_keys=True) != before:
        store.write_record(folder, record)
    if record["status"] in ("done", "failed", "partial"):
        from . import report

        if report.build(folder, inputs.series):
            print(f"report: {folder / 'index.html'}")


@dataclass
class _Job:
    """Executes notebooks for one call of run_series and keeps run.json."""

    folder: Path
    record: dict[str, Any]
    profile: str
    values: Profile
    inputs: Inputs
    limit: float

    def run(self, notebook: Notebook, reason: str) -> None:
        """Execute one notebook; its status is done, failed or interrupted when this returns or raises."""
        entry, before = self._begin(notebook, reason)
        copy = self.folder / "notebooks" / f"{notebook.name}.partial.ipynb"
        copy.parent.mkdir(exist_ok=True)
        parameters = {"profile": self.profile, "run": self.folder.name, "changes": self.record["changes"]}
        expected = self.values.expected_seconds(notebook.name)
        progress = Progress(notebook.name, 1 + len(notebook.code), expected, reason)  # 1: injected
        begun = time.monotonic()
        try:
            error = execute(notebook.path, copy, parameters, self.limit, progress)
            entry.update({"status": "failed", "error": error} if error else {"status": "done"})
            if not error:
                results = files.read_json(self.folder / "results" / f"{notebook.name}.json")
                entry["facts"] = results.get("provenance")
        except BaseException as fault:
            entry.update(status="interrupted", error={"kind": type(fault).__name__})
            raise
        finally:
            progress.close("failed" if "error" in entry else "done")
            _rename(copy, notebook.name, entry.get("error"))
            if entry["status"] == "done":
                entry["copy"] = state.facts(copy.with_name(notebook.path.name))
            state.own(self.folder, self.record, notebook.name, before)
            spent = {"seconds": round(time.monotonic() - begun, 1), "peak_mib": progress.peak}
            entry.update(finished=now(), **spent)
            store.write_record(self.folder, self.record)
        if error:
            raise NotebookFailed(_message(notebook.name, error, copy))

    def _begin(self, notebook: Notebook, reason: str) -> tuple[dict[str, Any], state.Stats]:
        """A notebook's part of run.json as it starts, and the files that are there before it."""
        notebooks, before = self.record["notebooks"], state.snapshot(self.folder)
        old = notebooks.get(notebook.name, {})
        if old.get("status") == "running":  # cut off: what nobody owns must be its own
            owned = {path for entry in notebooks.values() for path in entry.get("outputs", {})}
            before = {path: stat for path, stat in before.items() if path in owned}
        entry = {key: old[key] for key in ("outputs", "interactive") if key in old}
        entry |= {"status": "running", "reason": reason, "started": now(), "id": self.record["id"]}
        entry |= {"inputs": self.inputs.of(notebook, self.record), "cells": len(notebook.code)}
        entry |= {key: self.record["provenance"][key] for key in ("commit", "dirty")}
        notebooks[notebook.name] = entry
        store.write_record(self.folder, self.record)
        return entry, before


def _rename(partial: Path, name: str, error: dict[str, Any] | None) -> None:
    """Name the executed copy by its fate; one that failed says so in its first cell too."""
    failed = partial.with_name(f"{name}.failed.ipynb")
    if not error:
        os.replace(partial, partial.with_name(f"{name}.ipynb"))
        failed.unlink(missing_ok=True)
    elif partial.is_file():
        with suppress(ValueError, KeyError):  # cut off while it was written: kept as it is
            notebook = json.loads(partial.read_text(encoding="utf-8"))
            text = (
                f"**This execution failed** ({error['kind']}): {error.get('message', 'it was interrupted')}"
            )
            note = {"cell_type": "markdown", "id": "failed", "metadata": {"tags": ["failed"]}, "source": text}
            notebook["cells"].insert(0, note)
            files.atomic_write(partial, json.dumps(notebook, indent=1))
        os.replace(partial, failed)


def _message(name: str, error: dict[str, Any], partial: Path) -> str:
    """What the user is told of a failed notebook: where, why, and how to go on."""
    where = f" in code cell {error['cell']} of {error['of']}, `{error['line']}`" if error["cell"] else ""
    tail = "".join(f"\n    {row}" for row in error.get("tail", []))
    copy = partial.with_name(f"{name}.failed.ipynb")
    kept = f"\nThe executed part is in {copy}." if copy.is_file() else ""
    again = "Run the same command again after the remedy: what is done is kept."
    return f"{name} failed{where}: {error['message']}{tail}{kept} {again}"


def surroundings(outputs: Path, due: Sequence[Notebook]) -> AbstractContextManager[None]:
    """What the kernels of these notebooks need; where there is none, nothing heavy is imported."""
    if not due:
        return nullcontext()
    from . import kernel

    for name in ("papermill", "traitlets", "asyncio"):  # what they would say, the error says in a line
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return kernel.environment(outputs, {module for notebook in due for module in notebook.imports()})


def execute(
    source: Path, output: Path, parameters: dict[str, Any], limit: float, progress: Progress
) -> dict[str, Any] | None:
    """Execute one notebook in the project's root, with a wall-clock limit in seconds.

    None, or the error: kind, message, last lines, code cell (of how many) and its first line. `progress` is
    told the cell at work. Nothing that the notebook started is left running.
    """
    import papermill
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    from . import kernel

    deadline, line = time.monotonic() + limit, ""

    def begin(cell: Any, **_: Any) -> None:
        nonlocal line
        if cell.cell_type == "code" and cell.source.strip():
            progress.cell, line = progress.cell + 1, _first_line(cell.source)

    how = {"cwd": config.ROOT, "kernel_name": "python3", "language": "python", "progress_bar": False}
    how |= {"kernel_manager_class": kernel.Manager, "on_cell_start": begin, "iopub_timeout": 60}
    how["timeout_func"] = lambda _: max(deadline - time.monotonic(), 0.01)
    try:
        notebook = papermill.execute_notebook(source, output, parameters, **how)
        notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})  # of progress the last state
        papermill.iorw.write_ipynb(notebook, str(output))
        return None
    except Exception as fault:
        error = {"cell": progress.cell, "of": progress.cells, "line": line} | _told(fault)
        if error["kind"] == "CellTimeoutError" and time.monotonic() >= deadline:
            message = f"time-out after {limit / 60:.3g} minutes; give more with --timeout"
            error |= {"kind": "TimeOut", "message": message}
        return error
    finally:
        kernel.end_marked()


def _told(fault: Exception) -> dict[str, Any]:
    """What is said of a fault: its kind, one line, and for a raising cell the last lines of its traceback."""
    if not hasattr(fault, "ename"):
        kind = type(fault).__name__
        killed = kind == "DeadKernelError"
        message = "the kernel was killed (often: out of memory)" if killed else f"{kind}: {fault}"
        return {"kind": kind, "message": message.split("\n")[0]}
    if fault.ename in ("UserError", "UnreadableImage"):  # one sentence says it all
        return {"kind": fault.ename, "message": str(fault.evalue)}
    rows = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(fault.traceback)).rstrip().splitlines()
    message = f"{fault.ename}: {fault.evalue}".strip().split("\n")[0]
    return {"kind": fault.ename, "message": message, "tail": rows[-12:]}


def _first_line(source: str) -> str:
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    line = next((line for line in lines if line[0] != "#"), lines[0])
    return line if len(line) <= 80 else f"{line[:79]}…"

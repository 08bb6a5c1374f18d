"""Papermill runs the series: each notebook with a kernel and a limit; run.json says what became of it."""

from __future__ import annotations

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

from .. import config, data, files, provenance, store
from ..config import PACKAGE, Profile
from ..errors import UserError
from ..provenance import now
from . import state
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
    *,
    notebooks: Path | None = None,
    outputs: Path | None = None,
    package: Path = PACKAGE,
) -> Path:
    """Run the notebooks that must run, in order; then write the report. Returns the run's folder.

    timeout: wall-clock limit of one notebook in minutes (default: the profile's). Everything the user gave is
    checked before a kernel starts (UserError). NotebookFailed when one fails: nothing after it runs.
    KeyboardInterrupt leaves a run that the next call takes up.
    """
    values = config.load_profile(profile, changes)
    series = state.find(notebooks or config.ROOT / "notebooks")
    chosen = state.choose(series, only)
    name = store.run_name(run, profile)
    _check_needs(values, profile)
    folder = (outputs or store.OUTPUTS).resolve() / name
    if str(profile) not in config.profile_names():
        profile = str(config.profile_file(profile))
    with state.sole_user(folder):
        record: dict[str, Any] = {}
        with suppress(UserError) if force else nullcontext():  # what another version wrote
            record = store.read_record(folder)
        record = record or store.new_record(name, profile, values, changes or {}, {})
        inputs = Inputs(values, series, package)
        try:
            due = chosen if force else [n for n in chosen if inputs.reason(n, record, folder)]
            if due:
                fresh = store.new_record(name, profile, values, changes or {}, provenance.provenance())
                record.update(fresh, notebooks=record["notebooks"], status="running")
            limit = 60 * (timeout or values.timeout_minutes)
            job = _Job(folder, record, profile, values, inputs, limit)
            with surroundings(folder.parent, due):
                for notebook in chosen:
                    reason = "--force" if force else inputs.reason(notebook, record, folder)
                    if reason:
                        job.run(notebook, reason)
                    else:
                        print(f"{notebook.name}: done already, nothing changed")
        finally:
            _finish(folder, record, inputs)
    return folder


def _check_needs(values: Profile, profile: str) -> None:
    """UserError naming the first thing that the profile needs on disk and that is not there."""
    for need in data.needs(values):
        if need.ok is False:
            ask = f"`python -m ood_utils check --profile {profile}` lists all that is needed"
            what = f"{need.fault.lower()}: {need.what}; {need.remedy}"
            raise UserError(f"profile {Path(profile).stem}: {what}; {ask}")


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
        begun = time.monotonic()
        try:
            error, entry["peak_mib"] = self._execute(notebook, reason)
            if not error:
                state.own(self.folder, self.record, notebook.name, before)
                results = files.read_json(self.folder / "results" / f"{notebook.name}.json")
                entry["facts"] = results.get("provenance")
            entry.update({"status": "failed", "error": error} if error else {"status": "done"})
        except BaseException as fault:
            entry.update(status="interrupted", error={"kind": type(fault).__name__})
            raise
        finally:
            if entry["status"] != "done":  # what it had before stays its own
                entry["outputs"] = entry.get("outputs", {}) | state.written(self.folder, before)
            entry.update(finished=now(), seconds=round(time.monotonic() - begun, 1))
            store.write_record(self.folder, self.record)
        if error:
            raise NotebookFailed(self._message(notebook, error))

    def _begin(self, notebook: Notebook, reason: str) -> tuple[dict[str, Any], state.Stats]:
        """A notebook's part of run.json as it starts, and the files that are there before it."""
        notebooks, before = self.record["notebooks"], state.snapshot(self.folder)
        old = notebooks.get(notebook.name, {})
        if old.get("status") == "running":  # cut off: what nobody owns must be its own
            owned = {path for entry in notebooks.values() for path in entry.get("outputs", {})}
            before = {path: stat for path, stat in before.items() if path in owned}
        facts = self.record["provenance"]
        entry = {key: old[key] for key in ("outputs", "interactive") if key in old}
        entry |= {"status": "running", "reason": reason, "started": now(), "id": self.record["id"]}
        entry |= {"inputs": self.inputs.of(notebook, self.record), "cells": len(notebook.code)}
        notebooks[notebook.name] = entry | {"commit": facts["commit"], "dirty": facts["dirty"]}
        store.write_record(self.folder, self.record)
        return notebooks[notebook.name], before

    def _execute(self, notebook: Notebook, reason: str) -> tuple[dict[str, Any] | None, int]:
        """Run it aside; rename the executed copy by its fate. Returns (error or None, peak memory in MiB)."""
        copies = self.folder / "notebooks"
        copies.mkdir(exist_ok=True)
        partial, failed = copies / f"{notebook.name}.partial.ipynb", copies / f"{notebook.name}.failed.ipynb"
        parameters = {"profile": self.profile, "run": self.folder.name, "changes": self.record["changes"]}
        error: dict[str, Any] | None = {"kind": "KeyboardInterrupt"}
        expected = self.values.expected_seconds(notebook.name)
        progress = Progress(notebook.name, 1 + len(notebook.code), expected, reason)  # 1: injected
        try:
            error = execute(notebook.path, partial, parameters, self.limit, progress)
        finally:
            progress.close("failed" if error else "done")
            if error and partial.is_file():
                _mark_failed(partial, failed, error)
        if not error:
            os.replace(partial, copies / notebook.path.name)
            failed.unlink(missing_ok=True)
        return error, progress.peak

    def _message(self, notebook: Notebook, error: dict[str, Any]) -> str:
        where = f" in code cell {error['cell']} of {error['of']}, `{error['line']}`" if error["cell"] else ""
        tail = "".join(f"\n    {row}" for row in error.get("tail", []))
        copy = self.folder / "notebooks" / f"{notebook.name}.failed.ipynb"
        kept = f"\nThe executed part is in {copy}." if copy.is_file() else ""
        again = "Run the same command again after the remedy: what is done is kept."
        return f"{notebook.name} failed{where}: {error['message']}{tail}{kept} {again}"


def _mark_failed(partial: Path, failed: Path, error: dict[str, Any]) -> None:
    """Keep the executed part under a name that cannot be mistaken, with the fault as its first cell."""
    with suppress(ValueError, KeyError):  # cut off while it was written: kept as it is
        notebook = json.loads(partial.read_text(encoding="utf-8"))
        text = f"**This execution failed** ({error['kind']}): {error.get('message', 'it was interrupted')}"
        note = {"cell_type": "markdown", "id": "failed", "metadata": {"tags": ["failed"]}, "source": text}
        notebook["cells"].insert(0, note)
        files.atomic_write(partial, json.dumps(notebook, indent=1))
    os.replace(partial, failed)


def surroundings(outputs: Path, due: Sequence[Notebook]) -> AbstractContextManager[None]:
    """What the kernels of these notebooks need. Where there is none, nothing heavy is imported."""
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

    try:
        notebook = papermill.execute_notebook(
            source, output, parameters, cwd=config.ROOT, kernel_name="python3", language="python",
            progress_bar=False, on_cell_start=begin, kernel_manager_class=kernel.Manager, iopub_timeout=60,
            timeout_func=lambda _: max(deadline - time.monotonic(), 0.01),
        )  # fmt: skip
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
        name = type(fault).__name__
        known = {"DeadKernelError": "the kernel was killed (often: out of memory)"}
        return {"kind": name, "message": known.get(name, f"{name}: {fault}".split("\n")[0])}
    if fault.ename in ("UserError", "UnreadableImage"):  # one sentence says it all
        return {"kind": fault.ename, "message": str(fault.evalue)}
    rows = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(fault.traceback)).rstrip().splitlines()
    message = f"{fault.ename}: {fault.evalue}".strip().split("\n")[0]
    return {"kind": fault.ename, "message": message, "tail": rows[-12:]}


def _first_line(source: str) -> str:
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    line = next((line for line in lines if not line.startswith("#")), lines[0])
    return line if len(line) <= 80 else line[:79] + "…"

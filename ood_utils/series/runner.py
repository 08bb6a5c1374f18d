"""Papermill runs the series: notebook by notebook, each with a kernel and a limit; run.json says what became."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
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
        record = _open_record(folder, force) or store.new_record(name, profile, values, changes or {}, {})
        inputs = Inputs(values, series, package)
        try:
            with ExitStack() as stack:
                limit = 60 * (timeout or values.timeout_minutes)
                job = _Job(folder, record, profile, changes or {}, values, limit, chosen, stack)
                for notebook in chosen:
                    reason = "--force" if force else inputs.reason(notebook, record, folder)
                    if reason:
                        job.run(notebook, reason, inputs)
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


def _open_record(folder: Path, force: bool) -> dict[str, Any]:
    try:
        return store.read_record(folder)
    except UserError:
        if not force:
            raise
        return {}


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
    changes: dict[str, Any]
    values: Profile
    limit: float
    chosen: list[Notebook]
    stack: ExitStack  # what must be undone when the series ends
    facts: dict[str, Any] | None = None

    def begin(self) -> None:
        """Once a call, and only when something runs: facts for the record, an environment for the kernels."""
        self.facts = provenance.provenance()
        fresh = store.new_record(self.folder.name, self.profile, self.values, self.changes, self.facts)
        self.record.update({key: fresh[key] for key in fresh if key != "notebooks"}, status="running")
        modules = {name for notebook in self.chosen for name in notebook.imports()}
        prepare(self.stack, self.folder.parent, modules)

    def run(self, notebook: Notebook, reason: str, inputs: Inputs) -> None:
        """Execute one notebook; its status is done, failed or interrupted when this returns or raises."""
        if self.facts is None:
            self.begin()
        entry, before = self._entry(notebook, reason, inputs)
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

    def _entry(self, notebook: Notebook, reason: str, inputs: Inputs) -> tuple[dict[str, Any], state.Stats]:
        """A notebook's part of run.json as it starts, and the files that are there before it."""
        parts, before = inputs.of(notebook, self.record), state.snapshot(self.folder)
        entry = self.record["notebooks"].setdefault(notebook.name, {})
        if entry.get("status") == "running":  # cut off: what nobody owns must be its own
            owned = {path for other in self.record["notebooks"].values() for path in other.get("outputs", {})}
            before = {path: stat for path, stat in before.items() if path in owned}
        for key in ("error", "finished", "seconds", "peak_mib", "facts", "stale"):
            entry.pop(key, None)
        entry.update(status="running", reason=reason, started=now(), id=self.record["id"], inputs=parts)
        entry.update(commit=self.facts["commit"], dirty=self.facts["dirty"], cells=len(notebook.code))
        store.write_record(self.folder, self.record)
        return entry, before

    def _execute(self, notebook: Notebook, reason: str) -> tuple[dict[str, Any] | None, int]:
        """Run it aside; rename the executed copy by its fate. Returns (error or None, peak memory in MiB)."""
        copies = self.folder / "notebooks"
        copies.mkdir(exist_ok=True)
        partial, failed = copies / f"{notebook.name}.partial.ipynb", copies / f"{notebook.name}.failed.ipynb"
        parameters = {"profile": self.profile, "run": self.folder.name, "changes": self.changes}
        error: dict[str, Any] | None = {"kind": "KeyboardInterrupt"}
        progress = Progress(notebook, self.values.expected_seconds(notebook.name), reason)
        try:
            error = execute(notebook.path, partial, parameters, self.limit, progress.show)
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


def prepare(stack: ExitStack, outputs: Path, modules: Iterable[str]) -> None:
    """Set up what kernels need, to be undone with the stack. Loads papermill: only when something runs."""
    import logging

    from . import kernel

    for name in ("papermill", "traitlets", "asyncio"):  # what they would say, the error says in one line
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    stack.enter_context(kernel.environment(outputs, modules))


def execute(
    source: Path, output: Path, parameters: dict[str, Any], limit: float, show: Callable[[int, int], None]
) -> dict[str, Any] | None:
    """Execute one notebook in the project's root with a wall-clock limit in seconds.

    None, or the error: kind, message, last lines, code cell (of how many) and its first line. show: told the
    code cell at work and how many there are. Nothing that the notebook started is left running.
    """
    import papermill
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    from . import kernel

    cells = papermill.iorw.load_notebook_node(str(source)).cells
    at = {"cell": 0, "of": 1 + sum(cell.cell_type == "code" for cell in cells), "line": ""}  # 1: injected
    deadline = time.monotonic() + limit

    def begin(cell: Any, **_: Any) -> None:
        if cell.cell_type == "code" and cell.source.strip():
            at.update(cell=at["cell"] + 1, line=_first_line(cell.source))
            show(at["cell"], at["of"])

    try:
        notebook = papermill.execute_notebook(
            source, output, parameters, cwd=config.ROOT, kernel_name="python3", language="python",
            progress_bar=False, on_cell_start=begin, kernel_manager_class=kernel.Manager, iopub_timeout=60,
            timeout_func=lambda _: max(deadline - time.monotonic(), 0.01),
        )  # fmt: skip
        notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})  # of progress the last state
        papermill.iorw.write_ipynb(notebook, str(output))
    except Exception as fault:
        late = f"time-out after {limit / 60:.3g} minutes; give more with --timeout"
        timed_out = type(fault).__name__ == "CellTimeoutError" and time.monotonic() >= deadline
        return at | ({"kind": "TimeOut", "message": late} if timed_out else _told(fault))
    finally:
        kernel.end_marked()
    return None


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

"""The series: what must run, in order; what is done, and only the runner says it, is not done again."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import config, errors, files, provenance, store
from .config import PACKAGE, Profile
from .errors import UserError
from .execution import Executor
from .files import hash_of
from .provenance import now

NOT_IN_NOTEBOOKS = {
    "series.py",
    "execution.py",
    "kernels.py",
    "report.py",
    "reference.py",
    "check.py",
    "__main__.py",
}  # they cannot change a notebook's result
KEPT = ("figures", "tables", "results", "checkpoints")  # embeddings are caches keyed by their content
READ_BY_OTHERS = ("tables/", "results/", "checkpoints/")
WHY = {
    "code": "its code changed",
    "profile": "the profile's values changed",
    "module": "ood_utils changed",
    "versions": "package versions changed",
    "files": "files that it reads changed",
}


class NotebookFailed(RuntimeError):
    """A notebook failed; the message names it, the cell and its last lines."""


@dataclass(frozen=True)
class Notebook:
    """One notebook of the series: file and the source of its code cells and prose."""

    path: Path
    code: tuple[str, ...]
    question: str

    @property
    def name(self) -> str:
        """File name without the ending, such as 01_modality_gap."""
        return self.path.stem

    def imports(self) -> set[str]:
        """The modules that its code imports, by their full names."""
        nodes = [node for cell in self.code for node in ast.walk(_parse(cell))]
        plain = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        parts = {
            (n.module, alias.name)
            for n in nodes
            if isinstance(n, ast.ImportFrom) and n.module
            for alias in n.names
        }
        return plain | {f"{module}.{name}" if module == PACKAGE.name else module for module, name in parts}


def _parse(source: str) -> ast.Module:
    """A cell's syntax tree without its magics; empty where there is a fault, which its execution will name."""
    with suppress(SyntaxError):
        return ast.parse("\n".join(line for line in source.splitlines() if not line.startswith(("%", "!"))))
    return ast.Module([], [])


# --- what there is and what must run ---------------------------------------------------------------------------------


def read_notebook(path: Path) -> Notebook:
    """Read a notebook and check its parameters cell. UserError when it is none or takes other parameters."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = [
            (cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a notebook ({type(error).__name__}: {error})") from None
    code = tuple(source for kind, source, _ in sources if kind == "code")
    parameters = next((source for _, source, tags in sources if "parameters" in tags), "")
    with suppress(SyntaxError):
        names = {
            t.id for node in ast.parse(parameters).body if isinstance(node, ast.Assign) for t in node.targets
        }
        if {"profile", "run", "changes"} <= names:
            headings = [
                h for kind, s, _ in sources if kind == "markdown" for h in re.findall(r"^#+ +(.+)$", s, re.M)
            ]
            return Notebook(path, code, headings[0].strip() if headings else "")
    raise UserError(f"{path} needs a cell tagged 'parameters' that sets profile, run and changes, one a line")


def find(folder: Path) -> list[Notebook]:
    """The notebooks of the series, in order. UserError when the folder holds none."""
    found = [read_notebook(path) for path in sorted(folder.glob("0*.ipynb"))]
    if not found:
        raise UserError(f"no notebook 0*.ipynb in {folder}; set OOD_ROOT to the project's folder")
    return found


def choose(notebooks: Sequence[Notebook], only: Iterable[str]) -> list[Notebook]:
    """Those that `only` names (number, name or file name), in the series' order; all when it is empty."""
    wanted = set()
    for name in only:
        stem = Path(name).stem
        matches = {n.name for n in notebooks if stem in (n.name, n.name.split("_")[0])}
        if not matches:
            raise UserError(f"unknown notebook '{name}'{errors.nearest(stem, [n.name for n in notebooks])}")
        wanted |= matches
    return [n for n in notebooks if not wanted or n.name in wanted]


def tree_hash(path: Path, stat_limit: int = 100_000) -> str:
    """Hash of a file's, or a folder's, list of names with size and time (these for the first `stat_limit`
    files).
    """
    rows, seen = [], 0
    for folder, folders, files in os.walk(path) if path.is_dir() else [(path.parent, [], [path.name])]:
        folders.sort()
        for name in sorted(files):
            seen += 1
            stat = os.stat(os.path.join(folder, name)) if seen <= stat_limit else None
            rows.append((os.path.relpath(folder, path), name, stat and (stat.st_size, stat.st_mtime_ns)))
    return hash_of(rows)


def module_hash(package: Path) -> str:
    """Hash of every file of the package that a notebook can reach: source, configurations, weights."""
    files = (p for p in sorted(package.rglob("*")) if p.is_file() and "__pycache__" not in p.parts)
    return hash_of(
        [(str(p.relative_to(package)), files.file_hash(p)) for p in files if p.name not in NOT_IN_NOTEBOOKS]
    )


def outside_files(profile: Profile) -> list[Path]:
    """Files and folders of the user's that the profile names: images, corpus, weights."""
    names = [profile.data_root, *profile.ood_roots.values(), profile.corpus, profile.pretrained]
    return [Path(name) for name in names if name and Path(name).is_absolute() and Path(name).exists()]


class Inputs:
    """What decides whether a notebook must run: hashes of code, values, module, versions and files read."""

    def __init__(self, profile: Profile, series: Sequence[Notebook], package: Path = PACKAGE) -> None:
        self.series = series
        self.common = {
            "profile": profile.key(),
            "module": module_hash(package),
            "versions": hash_of(provenance.versions()),
        }
        self.outside = [(str(path), tree_hash(path)) for path in outside_files(profile)]

    def of(self, notebook: Notebook, record: dict[str, Any]) -> dict[str, str]:
        """Part -> hash for one notebook, given what earlier ones have written."""
        read = []
        for earlier in self.series[: self.series.index(notebook)]:
            outputs = record["notebooks"].get(earlier.name, {}).get("outputs", {})
            read += [
                (path, facts["sha256"]) for path, facts in outputs.items() if path.startswith(READ_BY_OTHERS)
            ]
        return {"code": hash_of(notebook.code), **self.common, "files": hash_of([self.outside, sorted(read)])}

    def reason(self, notebook: Notebook, record: dict[str, Any], folder: Path) -> str | None:
        """Why a notebook must run, in words, or None when it is done and nothing that matters has changed."""
        entry = record["notebooks"].get(notebook.name, {})
        status = entry.get("status")
        if status != "done":
            words = {
                None: "not run yet",
                "running": "cut off last time",
                "interactive": "so far run by hand only",
            }
            return words.get(status, f"{status} last time")
        current = self.of(notebook, record)
        if changed := [why for part, why in WHY.items() if entry["inputs"].get(part) != current[part]]:
            return " and ".join(changed)
        spoilt = next(
            (path for path, facts in entry["outputs"].items() if not _same(folder / path, facts)), None
        )
        copy = folder / "notebooks" / notebook.path.name
        if spoilt or not copy.is_file():
            return f"{spoilt or copy.relative_to(folder)} is missing or was changed"
        return None


def _same(path: Path, facts: dict[str, Any]) -> bool:
    """Whether an output is still what was recorded; its bytes are read only when size or time differ."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return False
    if (stat.st_size, stat.st_mtime_ns) == (facts["bytes"], facts["mtime_ns"]):
        return True
    return stat.st_size == facts["bytes"] and files.file_hash(path) == facts["sha256"]


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Path -> (bytes, time) of what is kept; logs and the state of an unfinished training come and go."""
    files = [p for kind in KEPT for p in sorted((folder / kind).rglob("*")) if p.is_file()]
    kept = [p for p in files if p.name[0] != "." and p.suffix != ".log" and p.name != "state.pt"]
    return {p.relative_to(folder).as_posix(): (p.stat().st_size, p.stat().st_mtime_ns) for p in kept}


def _outputs(folder: Path, before: dict[str, tuple[int, int]], old: Iterable[str]) -> dict[str, Any]:
    """The files a notebook owns after an execution: those written in it, and its checkpoints of before
    (`old`).

    (A training that was finished in an execution that failed later is not repeated.)
    """
    owned = {}
    for path, stat in _snapshot(folder).items():
        if before.get(path) != stat or (path.startswith("checkpoints/") and path in old):
            owned[path] = {"bytes": stat[0], "mtime_ns": stat[1], "sha256": files.file_hash(folder / path)}
    return owned


# --- running ---------------------------------------------------------------------------------------------------------


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
    """Run the notebooks that must run, one process each, in order; then the report. Returns the run's folder.

    timeout: wall-clock limit of one notebook in minutes (default: the profile's). Everything the user gave is
    checked before a kernel starts (UserError). NotebookFailed when one fails: nothing after it runs.
    KeyboardInterrupt leaves a run that the next call takes up.
    """
    values = config.load_profile(profile, changes)
    series = find(notebooks or config.ROOT / "notebooks")
    chosen = choose(series, only)
    check_paths(values, profile)
    name = store.run_name(run, profile)
    folder = (outputs or store.OUTPUTS) / name
    if str(profile) not in config.profile_names():
        profile = str(config.profile_file(profile))
    with _sole_user(folder):
        record = _open_record(folder, force) or store.new_record(name, profile, values, changes or {}, {})
        inputs = Inputs(values, series, package)
        try:
            with Executor(folder.parent, sorted({name for n in chosen for name in n.imports()})) as executor:
                limit = (timeout or values.timeout_minutes) * 60
                job = _Job(folder, record, profile, changes or {}, values, limit, executor)
                for notebook in chosen:
                    reason = "--force" if force else inputs.reason(notebook, record, folder)
                    if reason:
                        job.run(notebook, reason, inputs)
                    else:
                        print(f"{notebook.name}: done already, nothing changed")
        finally:
            _finish(folder, record, inputs)
    return folder


def check_paths(profile: Profile, name: str) -> None:
    """UserError when the profile needs the user's own files and they are not there."""
    ask = f"`python -m ood_utils check --profile {name}` lists all that is needed"
    if profile.data != "glyphs" and not (profile.data_root and Path(profile.data_root).is_dir()):
        raise UserError(
            f"profile {Path(name).stem}: data_root = '{profile.data_root}' is no folder; "
            f"give -p data_root=FOLDER or write it in the profile; {ask}"
        )
    if profile.corpus != "names" and not Path(profile.corpus).exists():
        raise UserError(f"profile {Path(name).stem}: corpus = '{profile.corpus}' does not exist; {ask}")
    if profile.data == "folder" and not profile.ood_roots:
        raise UserError(
            f"profile {Path(name).stem}: ood_roots is empty; name at least one folder of OoD images; {ask}"
        )
    for set_name, root in profile.ood_roots.items():
        if not Path(root).is_dir():
            raise UserError(f"profile {Path(name).stem}: ood_roots: {set_name}: '{root}' is no folder; {ask}")


@contextmanager
def _sole_user(folder: Path) -> Iterator[None]:
    """Hold the run folder; UserError when it cannot be written or another runner holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(
            f"outputs folder {folder} is not writable ({error.strerror}); set OOD_OUTPUTS to a folder that is"
        ) from None
    with lock:
        if free < 50 * 2**20:
            raise UserError(
                f"only {free / 2**20:.0f} MiB are free at {folder}; free space or set OOD_OUTPUTS"
            )
        with suppress(ImportError):  # Windows has no fcntl and goes without
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"another run is at work in {folder}; wait for it or give another --run"
                ) from None
        yield


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
    for notebook in inputs.series:
        entry = record["notebooks"].get(notebook.name, {})
        entry.pop("stale", None)
        reason = inputs.reason(notebook, record, folder)
        if entry.get("status") == "done" and reason:
            entry["stale"] = reason
    entries = [record["notebooks"].get(n.name, {}) for n in inputs.series]
    states = {"stale" if "stale" in entry else entry.get("status", "missing") for entry in entries}
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
    executor: Executor
    facts: dict[str, Any] | None = None

    def run(self, notebook: Notebook, reason: str, inputs: Inputs) -> None:
        """Execute one notebook; its status is done, failed or interrupted when this returns or raises."""
        if self.facts is None:  # once a call, and only when something runs
            self.facts = provenance.provenance()
            fresh = store.new_record(self.folder.name, self.profile, self.values, self.changes, self.facts)
            self.record.update({key: fresh[key] for key in fresh if key != "notebooks"}, status="running")
        parts, before = inputs.of(notebook, self.record), _snapshot(self.folder)
        entry = self.record["notebooks"].setdefault(notebook.name, {})
        if entry.get("status") == "running":  # cut off: what nobody owns must be its own
            owned = {path for other in self.record["notebooks"].values() for path in other.get("outputs", {})}
            before = {path: stat for path, stat in before.items() if path in owned}
        for key in ("error", "finished", "seconds", "peak_mib", "facts", "stale"):
            entry.pop(key, None)
        entry.update(status="running", reason=reason, started=now(), id=self.record["id"], inputs=parts)
        entry.update(commit=self.facts["commit"], dirty=self.facts["dirty"], cells=len(notebook.code))
        store.write_record(self.folder, self.record)
        begun = time.monotonic()
        try:
            error, entry["peak_mib"] = self._execute(notebook, reason)
            if not error:
                self._own(entry, before)
                entry["facts"] = files.read_json(self.folder / "results" / f"{notebook.name}.json").get(
                    "provenance"
                )
            entry.update(status="failed" if error else "done", **({"error": error} if error else {}))
        except BaseException as fault:
            entry.update(status="interrupted", error={"kind": type(fault).__name__})
            raise
        finally:
            if entry["status"] != "done":  # what it had before stays its own
                entry["outputs"] = entry.get("outputs", {}) | _outputs(self.folder, before, ())
            entry.update(finished=now(), seconds=round(time.monotonic() - begun, 1))
            store.write_record(self.folder, self.record)
        if error:
            raise NotebookFailed(self._message(notebook, error))

    def _own(self, entry: dict[str, Any], before: dict[str, tuple[int, int]]) -> None:
        """Note what a finished notebook owns. What only its older version wrote goes; a file has one owner."""
        old = entry.get("outputs", {})
        entry["outputs"] = _outputs(self.folder, before, old)
        for path in old.keys() - entry["outputs"].keys():
            (self.folder / path).unlink(missing_ok=True)
        for other in self.record["notebooks"].values():
            if other is not entry:
                for path in entry["outputs"].keys() & other.get("outputs", {}).keys():
                    del other["outputs"][path]

    def _execute(self, notebook: Notebook, reason: str) -> tuple[dict[str, Any] | None, int]:
        """Run it aside; rename the executed copy by its fate. Returns (error or None, peak memory in MiB)."""
        copies = self.folder / "notebooks"
        copies.mkdir(exist_ok=True)
        partial, failed = copies / f"{notebook.name}.partial.ipynb", copies / f"{notebook.name}.failed.ipynb"
        parameters = {"profile": self.profile, "run": self.folder.name, "changes": self.changes}
        line = _Line(notebook, self.values.expected_seconds(notebook.name), reason)
        error: dict[str, Any] | None = {"kind": "KeyboardInterrupt"}
        try:
            error, peak = self.executor.execute(notebook.path, partial, parameters, self.limit, line.show)
        finally:
            line.close("failed" if error else "done")
            if error and partial.is_file():
                _mark_failed(partial, failed, error)
        if not error:
            os.replace(partial, copies / notebook.path.name)
            failed.unlink(missing_ok=True)
        return error, peak

    def _message(self, notebook: Notebook, error: dict[str, Any]) -> str:
        where = (
            f" in code cell {error['cell']} of {error['of']}, `{error['line']}`" if error.get("cell") else ""
        )
        tail = "".join(f"\n    {row}" for row in error.get("tail", []))
        copy = self.folder / "notebooks" / f"{notebook.name}.failed.ipynb"
        kept = f"\nThe executed part is in {copy}." if copy.is_file() else ""
        return (
            f"{notebook.name} failed{where}: {error['message']}{tail}{kept} "
            "Run the same command again after the remedy: what is done is kept."
        )


def _mark_failed(partial: Path, failed: Path, error: dict[str, Any]) -> None:
    """Keep the executed part under a name that cannot be mistaken, with the fault as its first cell."""
    with suppress(ValueError, KeyError):  # cut off while it was written: kept as it is
        notebook = json.loads(partial.read_text(encoding="utf-8"))
        text = f"**This execution failed** ({error['kind']}): {error.get('message', 'it was interrupted')}"
        note = {"cell_type": "markdown", "id": "failed", "metadata": {"tags": ["failed"]}, "source": text}
        notebook["cells"].insert(0, note)
        files.atomic_write(partial, json.dumps(notebook, indent=1))
    os.replace(partial, failed)


class _Line:
    """One live line per notebook on a terminal; elsewhere a line at the start, every 30 s, and at the end."""

    def __init__(self, notebook: Notebook, expected: float, reason: str) -> None:
        self.name, self.expected, self.begun, self.said = (
            notebook.name,
            expected,
            time.monotonic(),
            time.monotonic(),
        )
        self.bar = None
        about = f", about {_clock(expected)} expected" if expected else ""
        if sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{desc} |{bar:24}| cell {n_fmt}/{total_fmt}{postfix}"
            width = min(
                shutil.get_terminal_size((100, 24)).columns, 120
            )  # some terminals say that they have no size
            label = f"{self.name} ({reason})"
            self.bar = tqdm(total=len(notebook.code), desc=label, bar_format=layout, ncols=width, nrows=9)
        else:
            print(f"{self.name}: started ({reason}{about})", flush=True)

    def show(self, cell: int, of: int) -> None:
        """Called a few times a second with the code cell at work."""
        spent = time.monotonic() - self.begun
        left = f", about {_clock(self.expected - spent)} left" if self.expected > spent else ""
        if self.bar is not None:
            self.bar.n, self.bar.total = max(cell - 1, 0), of or self.bar.total
            self.bar.set_postfix_str(f"{_clock(spent)}{left}")
        elif time.monotonic() - self.said >= 30:
            self.said = time.monotonic()
            print(f"{self.name}: cell {cell}/{of}, {_clock(spent)}{left}", flush=True)

    def close(self, word: str) -> None:
        """End the line with the notebook's fate."""
        spent = _clock(time.monotonic() - self.begun)
        if self.bar is not None:
            self.bar.n = self.bar.total if word == "done" else self.bar.n
            self.bar.set_postfix_str(f"{word} in {spent}")
            self.bar.close()
        else:
            print(f"{self.name}: {word} in {spent}", flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
    )

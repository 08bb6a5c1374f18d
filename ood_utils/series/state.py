"""What there is to run and what must run: the runner says what is done, and a change undoes it."""

import ast
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import errors, files, provenance, registry
from ..config import PACKAGE, Profile
from ..data.paths import walk
from ..errors import UserError
from ..files import hash_of

NOT_IN_NOTEBOOKS = ("series", "tools", "__main__.py")  # parts of the package that change no notebook's result
GALLERY = ("gallery", "plots/board.py")  # read by notebooks that import the gallery alone
# embeddings and the gallery's rows are caches keyed by their content
KEPT = ("figures", "tables", "results", "checkpoints", "detector", "own_detector")
READ_BY_OTHERS = ("tables/", "results/", "checkpoints/")
WHY = {
    "code": "its code changed",
    "profile": "the profile's values changed",
    "module": "ood_utils changed",
    "versions": "package versions changed",
    "files": "files that it reads changed",
}
STATES = {None: "not run yet", "running": "cut off last time", "interactive": "so far run by hand only"}
Stats = dict[str, dict[str, int]]  # path below the run -> its bytes and mtime_ns


@dataclass(frozen=True)
class Notebook:
    """One notebook of the series: its file, the source of its code cells, its first heading."""

    path: Path
    code: tuple[str, ...]
    question: str

    @property
    def name(self) -> str:
        """File name without the ending, such as 01_modality_gap."""
        return self.path.stem

    def imports(self) -> set[str]:
        """Names that may be modules it imports: each ``import a`` and, of ``from a import b``, a and a.b."""
        found = set()
        for cell in self.code:
            with suppress(SyntaxError):  # its execution will name it
                for node in ast.walk(ast.parse(re.sub(r"^[%!].*", "", cell, flags=re.M))):
                    if isinstance(node, ast.Import):
                        found |= {alias.name for alias in node.names}
                    elif isinstance(node, ast.ImportFrom) and node.module:
                        found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        return found


def read_notebook(path: Path) -> Notebook:
    """Read a notebook and check its parameters cell. UserError when it is none or takes other parameters."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = [(c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", [])) for c in cells]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a notebook ({type(error).__name__}: {error})") from None
    parameters = next((source for _, source, tags in sources if "parameters" in tags), "")
    if not {"profile", "run", "changes"} <= set(re.findall(r"^(\w+) *=", parameters, re.M)):
        needed = "a cell tagged 'parameters' that sets profile, run and changes, one a line"
        raise UserError(f"{path} needs {needed}")
    prose = "\n".join(source for kind, source, _ in sources if kind == "markdown")
    headings = re.findall(r"^#+ +(.+)$", prose, re.M)
    code = tuple(source for kind, source, _ in sources if kind == "code")
    return Notebook(path, code, "".join(headings[:1]).strip())


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
            raise UserError(
                f"unknown notebook {errors.quoted(name)}{errors.nearest(stem, [n.name for n in notebooks])}"
            )
        wanted |= matches
    return [n for n in notebooks if not wanted or n.name in wanted]


def tree_hash(path: Path, stat_limit: int = 100_000) -> str:
    """Hash of a file's, or a folder's, list of names, with size and time for the first `stat_limit` files."""
    rows: list[tuple] = []
    below = [entry.path for _, entries in walk(str(path)) for entry in entries]
    for file in below if path.is_dir() else [str(path)]:
        stat = (os.stat if os.path.exists(file) else os.lstat)(file) if len(rows) < stat_limit else None
        rows.append((os.path.relpath(file, path), stat and (stat.st_size, stat.st_mtime_ns)))
    return hash_of(rows)


def module_hash(package: Path, without: Sequence[str] = ()) -> str:
    """Hash of every file of the package that a notebook can reach: source, configurations, weights.

    ``without``: files and folders, beside ``NOT_IN_NOTEBOOKS``, that it does not use.
    """
    left_out = {package / name for name in (*NOT_IN_NOTEBOOKS, *without)}
    found = [p for p in sorted(package.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]
    read = [p.relative_to(package) for p in found if not left_out & {p, *p.parents}]
    return hash_of([(str(p), files.file_hash(package / p)) for p in read])


class Inputs:
    """What decides whether a notebook must run: hashes of code, values, module, versions and files read."""

    def __init__(self, profile: Profile, series: Sequence[Notebook], verify: bool = False) -> None:
        """``verify``: outputs are hashed once even where time and size are as recorded."""
        self.series, self.verify = series, verify
        self.whole: set[Path] = set()  # outputs that were hashed and are as recorded
        self.common = {"profile": profile.key(), "versions": hash_of(provenance.versions())}
        self.modules = module_hash(PACKAGE, GALLERY), module_hash(PACKAGE)
        names = [profile.data_root, *profile.ood_roots.values(), profile.corpus, profile.pretrained]
        names += [profile.negatives]
        lane = registry.find("data/lanes", profile.data)
        names += lane.reads(profile) if hasattr(lane, "reads") else []
        paths = [Path(name) for name in names if name and Path(name).is_absolute()]
        self.outside = [(str(path), tree_hash(path)) for path in paths if path.exists()]

    def of(self, notebook: Notebook, record: dict[str, Any]) -> dict[str, str]:
        """Part -> hash for one notebook, given what earlier ones have written."""
        earlier = self.series[: self.series.index(notebook)]
        written = [record["notebooks"].get(other.name, {}).get("outputs", {}) for other in earlier]
        read = [(path, known.get("sha256")) for outputs in written for path, known in outputs.items()]
        read = sorted(row for row in read if row[0].startswith(READ_BY_OTHERS))
        module = self.modules["ood_utils.gallery" in notebook.imports()]
        files_read = hash_of([self.outside, read])
        return {"code": hash_of(notebook.code), **self.common, "module": module, "files": files_read}

    def reason(self, notebook: Notebook, record: dict[str, Any], folder: Path) -> str | None:
        """Why a notebook must run, in words, or None when it is done and nothing that matters has changed."""
        entry = record["notebooks"].get(notebook.name, {})
        status = entry.get("status")
        if status != "done":
            return STATES.get(status, f"{status} last time")
        current = self.of(notebook, record)
        if not entry.get("inputs"):
            return "run.json does not say from what it was made"
        if changed := [why for part, why in WHY.items() if entry["inputs"].get(part) != current[part]]:
            return " and ".join(changed)
        copy = f"notebooks/{notebook.path.name}"
        made = entry.get("outputs", {}) | {copy: entry.get("copy", {})}
        spoilt = next((path for path, known in made.items() if not self._same(folder / path, known)), None)
        return spoilt and f"{spoilt} is missing or was changed"

    def _same(self, path: Path, known: dict[str, Any]) -> bool:
        """Whether an output is what was recorded; its bytes are read if time or size differ, or to verify."""
        if not path.is_file():
            return False
        if path in self.whole or (not self.verify and _stat(path).items() <= known.items()):
            return True
        if same := known.get("sha256") in (None, files.file_hash(path)):  # None: an older version's notebook
            self.whole.add(path)
        return same


def _stat(path: Path) -> dict[str, int]:
    return {"bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}


def facts(path: Path) -> dict[str, Any]:
    """What is recorded of a file: bytes, mtime_ns, sha256."""
    return _stat(path) | {"sha256": files.file_hash(path)}


def snapshot(folder: Path) -> Stats:
    """What is kept of a run; logs and the state of an unfinished training come and go."""
    found = [p for k in KEPT for p in (folder / k, *sorted((folder / k).rglob("*"))) if p.is_file()]
    kept = [p for p in found if p.name[0] != "." and p.suffix != ".log" and p.name != "state.pt"]
    return {p.relative_to(folder).as_posix(): _stat(p) for p in kept}


def own(folder: Path, record: dict[str, Any], name: str, before: Stats) -> None:
    """Note what a notebook owns: what was written since `before` and, where it is not done, what it had.

    Of one that is done, what only its older version wrote goes, but for checkpoints: a training that was
    finished in an execution that failed later is not repeated. A file has one owner.
    """
    entry = record["notebooks"][name]
    done, old, fresh = entry["status"] == "done", entry.get("outputs", {}), {}
    for path, stat in snapshot(folder).items():
        if before.get(path) != stat or (done and path in old and path.startswith("checkpoints/")):
            fresh[path] = facts(folder / path)
    entry["outputs"] = fresh if done else old | fresh
    if done:
        for path in old.keys() - fresh.keys():
            (folder / path).unlink(missing_ok=True)
        for other in (other for other in record["notebooks"].values() if other is not entry):
            for path in fresh.keys() & other.get("outputs", {}).keys():
                del other["outputs"][path]


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Hold the run folder; UserError when it cannot be written or another runner holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
        free = shutil.disk_usage(folder).free / 2**20
    except OSError as error:
        what = f"outputs folder {folder} is not writable ({error.strerror})"
        raise UserError(f"{what}; set OOD_OUTPUTS to a folder that is") from None
    with lock:
        if free < 50:
            raise UserError(f"only {free:.0f} MiB are free at {folder}; free space or set OOD_OUTPUTS")
        with suppress(ImportError):  # Windows has no fcntl and goes without
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                what = f"another run is at work in {folder}"
                raise UserError(f"{what}; wait for it or give another --run") from None
        yield

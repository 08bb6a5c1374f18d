"""The folder of a run, and run.json. Nothing else knows where files lie."""

from __future__ import annotations

import os
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from .config import ROOT, Profile, load_profile
from .errors import UserError, quoted
from .files import atomic_write, read_json, replacing, write_json
from .provenance import now, provenance, torch_facts

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SCHEMA_VERSION = 1  # of run.json; a folder of another version is never mixed with this one
SMOKE_TEST = "Smoke test: GlyphCLIP knows only glyphs, these numbers mean nothing."
OUTPUTS = Path(os.environ.get("OOD_OUTPUTS") or ROOT / "outputs").resolve()


def _inside(path: str) -> str:
    if ".." in Path(path).parts:
        raise ValueError("it leads out of the run")
    return path


class _Entry(BaseModel, extra="allow"):
    """A notebook's part of run.json, as far as the package reads it."""

    status: str
    inputs: dict[str, str] = {}
    outputs: dict[
        Annotated[str, Field(pattern=r"^\w[^\\:]*$"), AfterValidator(_inside)], dict[str, int | str]
    ] = {}
    copy_: dict[str, int | str] = Field({}, alias="copy")
    error: dict[str, Any] = {}
    seconds: float = 0


class _Record(BaseModel, extra="allow"):
    """run.json, as far as the package reads it."""

    run: str = ""
    id: str = ""
    profile: str = ""
    status: str = ""
    changes: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    notebooks: dict[str, _Entry]


@dataclass(frozen=True)
class RunFolder:
    """What a notebook holds: its profile and its place. Made by `start`."""

    folder: Path
    profile: Profile
    notebook: str

    @property
    def id(self) -> str:
        """Short name for figure footers: run name + 8 hex of the hash of the profile's values."""
        return f"{self.folder.name}-{self.profile.key()[:8]}"

    def save_table(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Write tables/<name>.parquet and .csv, each whole or not at all; returns the frame to show."""
        with replacing(self.folder / "tables" / f"{name}.parquet") as aside:
            frame.to_parquet(aside)
        numbered = frame.index.name is None and frame.index.nlevels == 1
        atomic_write(self.folder / "tables" / f"{name}.csv", frame.to_csv(index=not numbered))
        return frame

    def load_table(self, name: str, made_by: str = "an earlier notebook") -> pd.DataFrame:
        """Read a table; UserError naming the notebook that makes it when it is missing."""
        import pandas as pd

        return pd.read_parquet(self._made(f"tables/{name}.parquet", made_by))

    def _made(self, name: str, made_by: str) -> Path:
        if not (self.folder / name).is_file():
            raise UserError(f"{name} is missing in {self.folder}; run notebook {made_by} first")
        return self.folder / name

    def save_figure(self, name: str, figure: Figure, data: pd.DataFrame | None = None) -> None:
        """Write figures/<name>.png (150 dpi, run id in the footer) and, beside it, the data as .csv."""
        from PIL import Image

        figure = getattr(figure, "figure", figure)  # a seaborn grid holds one
        if not any(text.get_gid() == "run-id" for text in figure.texts):
            footer = {"ha": "right", "va": "bottom", "size": 6, "color": "0.45", "gid": "run-id"}
            figure.text(0.995, 0.005, self.id, **footer)
            if self.profile.smoke_test:  # no picture of it may pass for a result
                figure.text(0.01, 1.005, SMOKE_TEST, ha="left", va="bottom", size=9, color="#D55E00")
        path = self.folder / "figures" / f"{name}.png"
        with replacing(path) as aside:  # no software tag: the same picture is the same file
            figure.savefig(aside, dpi=150, bbox_inches="tight", format="png", metadata={"Software": None})
            with Image.open(aside) as full:  # 256 colours are plenty for a chart, and a third of the bytes
                small = full.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            small.save(aside, format="png", optimize=True)
        if data is not None:
            atomic_write(path.with_suffix(".csv"), data.to_csv(index=data.index.name is not None))

    def save_html(self, name: str, html: str) -> Path:
        """Write a stand-alone page figures/<name>.html."""
        return atomic_write(self.folder / "figures" / f"{name}.html", html)

    def save_results(self, results: dict[str, Any]) -> None:
        """Write results/<notebook>.json: plain numbers and texts, NaN as null.

        A dict under the key "provenance" (weights hash, data fingerprint and counts) is completed with
        torch's facts; the runner copies it into run.json.
        """
        facts = results.get("provenance", {}) | {"torch": torch_facts()}
        write_json(self.folder / "results" / f"{self.notebook}.json", results | {"provenance": facts})

    def load_results(self, notebook: str) -> dict[str, Any]:
        """Read what another notebook saved; UserError naming it when it has not run."""
        return read_json(self._made(f"results/{notebook}.json", notebook))


def start(notebook: str, profile: str, run: str = "", changes: dict[str, Any] | None = None) -> RunFolder:
    """Begin a notebook: validate its parameters, seed, find its folder, print one line of facts.

    Works from any working directory. Under the runner (OOD_RUNNER=1) run.json is the runner's; in JupyterLab
    this function notes the use there. UserError for anything wrong with the parameters or the folder.
    """
    values = load_profile(profile, changes).for_series()
    begun = RunFolder(OUTPUTS / run_name(run, profile), values, notebook)
    _seed(values.data_seed)
    facts = provenance()
    if os.environ.get("OOD_RUNNER") != "1":
        _note_interactive(begun, profile, changes or {}, facts)
    commit = f"{facts['commit'][:8]}{' + changes' * facts['dirty']}" if facts["commit"] else "none"
    gpus = (facts["torch"] or {}).get("gpus") if values.device != "cpu" else None
    place = begun.folder.relative_to(ROOT) if begun.folder.is_relative_to(ROOT) else begun.folder
    made_with = f"torch {facts['versions'].get('torch', 'missing')} | commit {commit}"
    print(f"profile {Path(profile).stem} | run {begun.id} in {place} | {(gpus or ['cpu'])[0]} | {made_with}")
    return begun


def _seed(seed: int) -> None:
    """Seed what a notebook itself may draw from, where imported; modules pass their own generators."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _note_interactive(begun: RunFolder, profile: str, changes: dict[str, Any], facts: dict[str, Any]) -> None:
    """Note in run.json that a notebook was used by hand; a done one stays done: its files are compared."""
    fresh = new_record(begun.folder.name, profile, begun.profile, changes, facts)
    record = read_record(begun.folder) or fresh
    entry = record["notebooks"].setdefault(begun.notebook, {"status": "interactive"})
    entry["interactive"] = {"time": now(), "id": begun.id, "changes": changes, "commit": facts["commit"]}
    write_record(begun.folder, record)


def run_name(run: str, profile: str | Path) -> str:
    """The name of a run's folder: `run`, or the profile's name. UserError if it is no folder name."""
    name = run or Path(profile).stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        rule = "use at most 100 letters, digits, '.', '_' and '-' only"
        raise UserError(f"run name {quoted(name)} is refused: {rule}")
    return name


def read_record(folder: Path) -> dict[str, Any]:
    """run.json of a run folder ({} when there is none). UserError when another version wrote it."""
    record = read_json(folder / "run.json")
    if record and record.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{folder} was written by another version (schema {record.get('schema_version')}, this is "
            f"{SCHEMA_VERSION}); run again with --force or with another --run name"
        )
    try:
        known = _Record(**record).model_dump(by_alias=True, exclude_unset=True) if record else {}
        return known and _Record(notebooks={}).model_dump() | known
    except ValidationError as error:
        where = " of ".join(str(part) for part in reversed(error.errors()[0]["loc"]))
        fault = f"{folder / 'run.json'} is damaged ({quoted(where)}: {error.errors()[0]['msg'].lower()})"
        raise UserError(f"{fault}; run again with --force or with another --run name") from None


def new_record(
    name: str, profile: str, values: Profile, changes: dict[str, Any], facts: dict[str, Any]
) -> dict:
    """A fresh run.json."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": name,
        "id": f"{name}-{values.key()[:8]}",
        "status": "interactive",
        "profile": Path(profile).stem,
        "changes": changes,
        "parameters": values.model_dump(),
        "provenance": facts,
        "notebooks": {},
    }


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json, whole or not at all."""
    write_json(folder / "run.json", record)

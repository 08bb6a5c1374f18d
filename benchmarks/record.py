"""Rows of measurements: appended to results.csv, rendered to RESULTS.md."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "results.csv", HERE / "RESULTS.md"
MEASURED, WAITING = "measured", "not yet measured"
TITLES = {
    "series": "The notebook series (time, memory, second call)",
    "scores": "NegLabel at ImageNet's scale",
    "metrics": "Bootstrap intervals",
    "encode": "Embedding",
    "train": "Fine-tuning",
}


@dataclass(frozen=True)
class Row:
    """One figure. ``share``: fraction of the ceiling or multiple of the baseline that ``what`` names, if any.

    ``target``: "value <= 10" or "share >= 0.45", empty if there is none. ``command`` measures the row again.
    """

    section: str
    what: str
    value: float | None
    unit: str
    share: float | None = None
    target: str = ""
    command: str = ""
    status: str = MEASURED
    machine: str = ""
    commit: str = ""
    date: str = ""

    def met(self) -> str:
        """Yes or no, or nothing where there is no target or no figure."""
        if not self.target or self.status != MEASURED:
            return ""
        column, relation, bound = self.target.split()
        figure = getattr(self, column)
        return "yes" if (figure <= float(bound) if relation == "<=" else figure >= float(bound)) else "no"


def waiting(section: str, what: str, unit: str, target: str = "", command: str = "") -> Row:
    """A row whose figure needs a machine that is not this one."""
    return Row(section, what, None, unit, None, target, command or f"python -m benchmarks {section}", WAITING)


def here() -> dict[str, str]:
    """Machine, commit ("+" where files differ from it) and day of this run."""
    from ood_utils import provenance

    facts = provenance.provenance()
    machine = facts["machine"]
    gpus = [gpu.split(",")[0] for gpu in machine["gpus"]]
    threads = (facts["torch"] or {}).get("threads", machine["cores"])
    held = [] if threads == machine["cores"] else [f"{threads} thread" + "s" * (threads > 1)]
    parts = [f"{machine['cpu']} x {machine['cores']} cores", *held, f"{machine['memory_gib']:.0f} GiB", *gpus]
    commit = (facts["commit"] or "none")[:9] + ("+" if facts["dirty"] else "")
    return {"machine": ", ".join(parts), "commit": commit, "date": datetime.now(UTC).strftime("%Y-%m-%d")}


def read(path: Path = RESULTS) -> list[Row]:
    """All rows of the file, oldest first; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [dict(row) for row in csv.DictReader(file)]
    for row in rows:
        row |= {name: float(row[name]) if row[name] else None for name in ("value", "share")}
    return [Row(**row) for row in rows]


def append(rows: list[Row], path: Path = RESULTS) -> None:
    """Add rows with this machine, commit and day; a figure that waits is noted once."""
    known = {(row.section, row.what) for row in read(path)}
    fresh = [row for row in rows if row.status == MEASURED or (row.section, row.what) not in known]
    stamp, is_new = here(), not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(asdict(row) | stamp if row.status == MEASURED else asdict(row) for row in fresh)


def latest(rows: list[Row]) -> list[Row]:
    """The newest figure of each measurement on each machine; a waiting row where no machine has a figure."""
    measured = {(row.section, row.what, row.machine): row for row in rows if row.status == MEASURED}
    done = {(section, what) for section, what, _ in measured}
    idle = {(row.section, row.what, ""): row for row in rows if (row.section, row.what) not in done}
    return list((measured | idle).values())


def figure(value: float | None) -> str:
    """Three significant digits, without an exponent for what people count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def render(rows: list[Row]) -> str:
    """The Markdown table of the latest rows, section by section."""
    lines = ["# Benchmarks", "", "Made by `python -m benchmarks`; older figures are in `results.csv`."]
    lines += ["A share is a fraction of the ceiling, or a multiple of the baseline, that the row names.", ""]
    for section, title in TITLES.items():
        lines += [f"## {title}", ""]
        lines += ["| what | value | unit | share | target | met | machine | commit, date |"]
        lines += ["|---|---:|---|---:|---|---|---|---|"]
        for row in (row for row in latest(rows) if row.section == section):
            where = row.machine if row.status == MEASURED else f"{row.status}: `{row.command}`"
            origin = f"{row.commit}, {row.date}" if row.status == MEASURED else ""
            numbers = [figure(row.value), row.unit, figure(row.share), row.target, row.met()]
            lines.append("| " + " | ".join([row.what, *numbers, where, origin]) + " |")
        lines.append("")
    return "\n".join(lines)

"""The report of a run: index.html and one page per notebook, plain files with relative links, no network."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

from .. import files, store
from ..errors import UserError
from .state import Notebook

TEMPLATES = Path(__file__).parent / "templates"
NOBODY = "by hand, or from an unfinished notebook"
MARKDOWN = {"claim"}  # columns that hold sentences
COLUMNS = {  # what a column's name does not say by itself
    "fpr95_id": "FPR95, ID positive: share of OoD accepted when 95 % of ID is accepted (lower is better)",
    "fpr95_ood": "FPR95, OoD positive: share of ID rejected when 95 % of OoD is rejected (lower is better)",
    "auroc": "area under the ROC curve, higher is better",
    "centroid_gap": "distance between the mean image and the mean text",
    "aupr_in": "average precision with ID positive, higher is better",
    "aupr_out": "average precision with OoD positive, higher is better",
    "lam": "weight of the alignment term",
    "rmg": "relative modality gap",
}


def build(folder: Path, series: Sequence[Notebook] = ()) -> bool:
    """Write index.html and notebooks/*.html of a run folder; False when they are up to date.

    UserError when the folder holds no run or another version's.
    """
    record = store.read_record(folder)
    if not record:
        raise UserError(f"{folder} holds no run (no run.json); `python -m ood_utils list` shows the runs")
    shown = [p for kind in ("figures", "tables", "results") for p in sorted((folder / kind).glob("*"))]
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in shown]
    code = (Path(__file__), Path(__file__).with_name("page.py"), *sorted(TEMPLATES.iterdir()))
    key, index = files.hash_of([record, stats, [files.file_hash(p) for p in code]]), folder / "index.html"
    if index.is_file() and key in index.read_text(encoding="utf-8")[:200]:
        return False
    from . import page  # nbconvert takes two seconds to load

    for copy in sorted((folder / "notebooks").glob("*.ipynb")):
        if ".partial" in copy.name:
            continue
        try:
            html = page.notebook(copy)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ) as fault:  # nbformat, of a file that is cut off
            said = f"{copy} is no whole notebook ({type(fault).__name__}); `ood run` makes it again"
            html = f"<!doctype html><title>{copy.stem}</title><p>{escape(said)}</p>"
            print(f"report: {said}")
        files.atomic_write(copy.with_suffix(".html"), html)
    files.atomic_write(index, _index(folder, record, {n.name: n.question for n in series}, key))
    return True


def _index(folder: Path, record: dict[str, Any], questions: dict[str, str], key: str) -> str:
    import jinja2

    from . import page

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    filters = {"cell": _cell, "join": _join, "json": json.dumps, "markdown": page.html}
    environment.filters |= filters | {"words": lambda name: name.replace("_", " ")}
    owner = {path: name for name, entry in record["notebooks"].items() for path in entry.get("outputs", {})}
    pictures = sorted((folder / "figures").glob("*.png"))
    tables = sorted((folder / "tables").glob("*.csv"))
    names = list(questions) or sorted(record["notebooks"])
    return environment.get_template("index.html.j2").render(
        key=key,
        record=record,
        notebooks=[(name, questions.get(name) or name) for name in names],
        pages={path.name for path in (folder / "notebooks").glob("*.html")},
        numbers={name: _numbers(_results(folder, name)) for name in names},
        headline=folder / "figures" / "headline.png" in pictures,
        headlines=[_table(path, 60) for path in tables if path.stem == "headline"],
        # the last notebook speaks of the reader's own images
        answer=[text for x in (*names[-1:], *names[:-1]) for text in _results(folder, x).get("answer", [])],
        own=record["parameters"].get("data") == "folder" and folder / "figures/own_mistakes.png" in pictures,
        answers=[_table(path, 60) for path in tables if path.stem == "answer"],
        gallery=[_table(path, 1000, "_low|_high") for path in tables if path.stem == "gallery"],
        interactive=sorted((folder / "figures").glob("*.html")),
        figures=[{"path": path, "owner": owner.get(f"figures/{path.name}", NOBODY)} for path in pictures],
        tables=[_table(path, 12) for path in tables],
        unreadable=unreadable(folder),
        smoke_test=store.SMOKE_TEST if record["parameters"].get("smoke_test") else "",
    )


def _results(folder: Path, notebook: str) -> dict[str, Any]:
    results = files.read_json(folder / "results" / f"{notebook}.json")
    return {name: value for name, value in results.items() if name != "provenance"}


def _numbers(results: dict[str, Any]) -> list[tuple[str, Any]]:
    """(name, value) of the single values of a notebook's results; lists are left to the tables."""
    import pandas as pd

    flat = [row for one in pd.json_normalize(results, sep=" ").to_dict("records") for row in one.items()]
    return [(name, value) for name, value in flat if value is not None and not isinstance(value, list | dict)]


def _table(path: Path, limit: int, without: str = "$^") -> dict[str, Any]:
    """The first rows of a CSV file as HTML, numbers to the right, with the meaning of its columns below.

    ``without``: a pattern of columns that are left to the file.
    """
    import pandas as pd
    from pandas.io.formats.style import Styler

    from . import page

    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (ValueError, OSError) as fault:  # pandas' own are ValueErrors
        what = " ".join(str(fault).split())
        raise UserError(f"table {path} is damaged ({what}); `ood run` makes it again") from None
    frame = frame.loc[:, ~frame.columns.str.contains(without)]
    right = {name: [{"selector": "", "props": "text-align:right"}] for name in frame.select_dtypes("number")}
    style = Styler(frame.head(limit), uuid=f"{path.stem}-{limit}", cell_ids=False).hide(axis="index")
    style = style.format(_cell, na_rep="", escape="html").set_table_styles(right)
    style = style.format_index(str, axis="columns", escape="html")
    html = style.format(page.html, subset=[*MARKDOWN & {*frame}], na_rep="").to_html()
    words = {*frame.columns, *frame.select_dtypes(exclude="number").astype(str).to_numpy().ravel()}
    notes = [f"{name}: {text}." for name, text in COLUMNS.items() if name in words]
    notes += [f"First {limit} of {len(frame)} rows."] if len(frame) > limit else []
    return {"path": path, "html": html, "note": " ".join(notes)}


def _cell(value: Any) -> str:
    """A number with three decimals (or three digits when it is small), anything else as it is."""
    if not isinstance(value, float):
        return str(value)
    if value.is_integer():
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"


def unreadable(folder: Path) -> dict[str, list[str]]:
    """Image set -> images that could not be decoded, as a run's embeddings and training cards name them."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, set[str]] = {}
    for path in sorted((folder / "embeddings").glob("*.safetensors")):
        with suppress(OSError, SafetensorError, KeyError, ValueError), safe_open(path, "np") as file:
            lost = json.loads(file.metadata()["facts"])["unreadable"]
            found.setdefault(re.sub(r"-\w+-\d+$", "", path.stem), set()).update(name for _, name in lost)
    for path in sorted((folder / "checkpoints").glob("*/card.json")):
        found.setdefault("train", set()).update(files.read_json(path).get("unreadable", []))
    return {name: sorted(paths) for name, paths in sorted(found.items()) if paths}


def _join(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return json.dumps(value) if isinstance(value, dict) else str(value)

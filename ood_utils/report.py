"""The report of a run: index.html and one page per notebook, plain files with relative links, no network."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files, store
from .errors import UserError

if TYPE_CHECKING:
    from .series import Notebook

COLUMNS = {  # what a column's name does not say by itself
    "fpr95_id": "FPR95, ID positive: share of OoD accepted when 95 % of ID is accepted (lower is better)",
    "fpr95_ood": "FPR95, OoD positive: share of ID rejected when 95 % of OoD is rejected (lower is better)",
    "auroc": "area under the ROC curve, higher is better",
    "aupr_in": "average precision with ID positive, higher is better",
    "aupr_out": "average precision with OoD positive, higher is better",
    "lam": "weight of the alignment term",
    "rmg": "relative modality gap",
}
STYLE = """
:root{color-scheme:light;--ink:#1d2330;--soft:#5b6472;--line:#dfe3e8;--wash:#f5f7f9;--link:#005a8f}
*{box-sizing:border-box}
body{margin:0 auto;max-width:68rem;padding:1.5rem 1.25rem 4rem;color:var(--ink);background:#fff;
 font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:.2rem 0 .5rem}
h2{font-size:1.25rem;margin:2.5rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
a{color:var(--link)}a:focus-visible,summary:focus-visible{outline:3px solid #e69f00;outline-offset:2px}
img{max-width:100%;height:auto}figure{margin:0}
figcaption,.soft{color:var(--soft);font-size:.875rem}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style:none;padding:0;margin:.75rem 0}
.scroll{overflow-x:auto}
table{border:0;border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding-bottom:.4rem}
th,td{padding:.3rem .7rem;text-align:left;border:0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{border-bottom:2px solid var(--soft);white-space:nowrap}td.number,th.number{text-align:right}
tbody tr:hover{background:var(--wash)}
.cards,.gallery{display:grid;gap:1rem;padding:0;list-style:none;margin:0}
.cards{grid-template-columns:repeat(auto-fit,minmax(19rem,1fr))}
.gallery{grid-template-columns:repeat(auto-fill,minmax(13rem,1fr))}
.cards>li,.gallery>li{border:1px solid var(--line);border-radius:.5rem;padding:.9rem 1rem;overflow:hidden}
.gallery img{display:block;width:100%;height:9.5rem;object-fit:contain;background:#fff;margin-bottom:.5rem}
.state{border-radius:.25rem;padding:.05rem .45rem;font-size:.8rem;font-weight:600;background:#e8edf2}
.state.done{background:#d7efe3;color:#0b5137}
.state.failed,.state.interrupted,.state.stale{background:#fbe3d6;color:#7a2e00}
dl{display:grid;grid-template-columns:minmax(8rem,auto) 1fr;gap:.15rem .9rem;margin:.5rem 0;font-size:.875rem}
dt{color:var(--soft);overflow-wrap:anywhere}dd{margin:0;overflow-wrap:anywhere}
pre,code{font:0.85rem/1.5 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
pre{overflow-x:auto;margin:0}details{margin:.5rem 0}summary{cursor:pointer;color:var(--link)}
@media print{nav,details:not([open]){display:none}}
"""
NOTEBOOK_STYLE = """
body{max-width:56rem}h2{border:0;padding:0}
.prompt{display:none}.anchor-link{visibility:hidden;text-decoration:none;margin-left:.3rem}
:is(h1,h2,h3,h4):hover .anchor-link{visibility:visible}
.input_area{background:var(--wash);border-left:3px solid #c5ced8;border-radius:.25rem;
 padding:.6rem .9rem;margin:.9rem 0 .5rem}
.output_html :is(th,td){text-align:right}
.output_area{margin:.4rem 0}.output_subarea{overflow-x:auto}.output_stderr pre{color:var(--soft)}
.output_error pre{background:#fdf1ea;border-left:3px solid #d55e00;padding:.6rem .9rem}
.text_cell_render code{background:var(--wash);padding:.05rem .3rem;border-radius:.2rem}
.text_cell_render pre{background:var(--wash);padding:.6rem .9rem}
blockquote{margin:1rem 0;padding:.2rem 1rem;border-left:4px solid #e69f00;background:#fdf8ec}
.no-maths{display:none}.offline .no-maths{display:block}
.ansi-red-fg,.ansi-red-intense-fg{color:#a33a00}.ansi-green-fg,.ansi-green-intense-fg{color:#0b6b47}
.ansi-blue-fg,.ansi-blue-intense-fg,.ansi-cyan-fg{color:#005a8f}.ansi-bold{font-weight:bold}
"""
MATHS = """<p class="soft no-maths">Formulas are shown as TeX source: MathJax, which sets them, needs a network.</p>
<script>window.MathJax={tex:{inlineMath:[["$","$"],["\\\\(","\\\\)"]],processEscapes:true}};</script>
<script defer src="https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-chtml.js"
 onerror="document.body.classList.add('offline')"></script>"""
TEMPLATE = """{%- extends 'basic/index.html.j2' -%}
{% block codecell %}{% if cell.metadata.get('jupyter', {}).get('source_hidden') or 'solution' in cell.metadata.tags %}
<details><summary>Show the solution</summary>{{ super() }}</details>{% else %}{{ super() }}{% endif %}{% endblock %}"""


def build(folder: Path, series: Sequence[Notebook] = ()) -> bool:
    """Write index.html and notebooks/*.html of a run folder; False when they are up to date.

    UserError when the folder holds no run or another version's.
    """
    record = store.read_record(folder)
    if not record:
        raise UserError(f"{folder} holds no run (no run.json); `python -m ood_utils list` shows the runs")
    files = [p for kind in ("figures", "tables", "results") for p in sorted((folder / kind).glob("*"))]
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    key = f"<!-- {files.hash_of([record, stats, files.file_hash(__file__)])} -->"
    index = folder / "index.html"
    if index.is_file() and key in index.read_text(encoding="utf-8")[:200]:
        return False
    for copy in sorted((folder / "notebooks").glob("*.ipynb")):
        if ".partial" not in copy.name:
            files.atomic_write(copy.with_suffix(".html"), notebook_page(copy))
    questions = {notebook.name: notebook.question for notebook in series}
    files.atomic_write(index, _page(_title(record), _index(folder, record, questions), STYLE, key))
    return True


def notebook_page(path: Path) -> str:
    """An executed notebook as one HTML page: figures inside, solutions folded, every figure with a text."""
    import nbformat
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    notebook = nbformat.read(path, as_version=4)
    heading = path.stem
    for cell in notebook.cells:
        cell.metadata.setdefault("tags", [])
        if cell.cell_type == "markdown" and (found := re.findall(r"^#+ +(.+)$", cell.source, re.M)):
            heading = found[-1].strip()
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.metadata.setdefault("image/png", {}).setdefault("alt", f"Figure: {heading}")
    exporter = HTMLExporter(raw_template=TEMPLATE, template_name="basic")
    body, _ = exporter.from_notebook_node(notebook)
    style = STYLE + NOTEBOOK_STYLE + HtmlFormatter().get_style_defs(".highlight")
    prose = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    back = '<nav aria-label="report"><a href="../index.html">Back to the report</a></nav>'
    return _page(path.stem, back + (MATHS if "$" in prose else "") + f"<main>{body}</main>", style)


def _page(title: str, body: str, style: str, head: str = "") -> str:
    return (
        f'<!doctype html>{head}\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{style}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def _title(record: dict[str, Any]) -> str:
    return record["parameters"].get("title") or f"Modality gap and OoD detection: profile {record['profile']}"


def _index(folder: Path, record: dict[str, Any], questions: dict[str, str]) -> str:
    names = list(questions) or sorted(record["notebooks"])
    sections = {
        "Headline": _headline(folder),
        "Notebooks": _cards(folder, record, names, questions),
        "Interactive": _interactive(folder),
        "Figures": _figures(folder, record),
        "Tables": _tables(folder),
        "Unreadable images": _unreadable(folder),
        "Run facts": _facts(record),
    }
    shown = {title: html for title, html in sections.items() if html}
    links = "".join(f'<li><a href="#{_anchor(title)}">{title}</a></li>' for title in shown)
    parts = "".join(
        f'<section id="{_anchor(title)}"><h2>{title}</h2>{html}</section>' for title, html in shown.items()
    )
    seconds = sum(entry.get("seconds", 0) for entry in record["notebooks"].values())
    facts = f"run {escape(record['id'])}, {escape(record['provenance'].get('time', ''))}, {seconds / 60:.1f} minutes"
    return (
        f"<header><h1>{escape(_title(record))}</h1><p>{_state(record['status'])} <span class='soft'>{facts}</span></p>"
        f'<nav aria-label="sections"><ul>{links}</ul></nav></header><main>{parts}</main>'
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _state(state: str) -> str:
    return f'<span class="state {escape(state)}">{escape(state)}</span>'


def _headline(folder: Path) -> str:
    html = ""
    if (folder / "figures" / "headline.png").is_file():
        text = "The run's main result; the numbers drawn are in figures/headline.csv"
        html += f'<figure><a href="figures/headline.png"><img src="figures/headline.png" alt="{text}"></a></figure>'
    table = folder / "tables" / "headline.csv"
    return html + (_table(table, 60) if table.is_file() else "")


def _table(path: Path, limit: int) -> str:
    """The first rows of a CSV file as an HTML table, with the meaning of its columns below."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows:
        return ""
    head, body = rows[0], rows[1:]
    numeric = [
        any(row[i] for row in body) and all(_is_number(row[i]) for row in body) for i in range(len(head))
    ]
    sides = [' class="number"' if number else "" for number in numeric]
    top = "".join(
        f'<th scope="col"{side}>{escape(name)}</th>' for name, side in zip(head, sides, strict=True)
    )
    lines = "".join(
        "<tr>" + "".join(f"<td{s}>{escape(_cell(v))}</td>" for v, s in zip(row, sides, strict=True)) + "</tr>"
        for row in body[:limit]
    )
    words = set(head).union(*body) if body else set(head)
    meanings = "; ".join(f"{name}: {text}" for name, text in COLUMNS.items() if name in words)
    more = f" First {limit} of {len(body)} rows." if len(body) > limit else ""
    note = (
        f'<p class="soft">{escape(meanings)}{"." if meanings else ""}{more}</p>' if meanings or more else ""
    )
    return (
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>{note}'
    )


def _is_number(text: str) -> bool:
    try:
        return text == "" or float(text) is not None
    except ValueError:
        return False


def _cell(value: Any) -> str:
    """A number with three decimals (or three digits when it is small), anything else as it is."""
    if isinstance(value, str):
        if not value or not _is_number(value) or re.fullmatch(r"[-+]?\d+", value):
            return value
        value = float(value)
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _cards(folder: Path, record: dict[str, Any], names: Iterable[str], questions: dict[str, str]) -> str:
    cards = []
    for name in names:
        entry = record["notebooks"].get(name, {"status": "not run"})
        page = next((p for p in (f"{name}.html", f"{name}.failed.html") if _shows(folder, entry, p)), None)
        title = escape(questions.get(name) or name)
        link = f'<a href="notebooks/{page}">{title}</a>' if page else title
        minutes = f"{entry['seconds'] / 60:.1f} min" if "seconds" in entry else ""
        memory = f", {entry['peak_mib'] / 1024:.1f} GiB at most" if entry.get("peak_mib") else ""
        state = "stale" if "stale" in entry else entry["status"]
        why = entry.get("stale") or (entry.get("error") or {}).get("message")
        fault = f"<p>{escape(why)}</p>" if why else ""
        html = f"<strong>{link}</strong><p>{_state(state)} <span class='soft'>{minutes}{memory}</span></p>"
        cards.append(f"<li>{html}{fault}{_numbers(folder / 'results' / f'{name}.json')}</li>")
    return f'<ul class="cards">{"".join(cards)}</ul>'


def _shows(folder: Path, entry: dict[str, Any], page: str) -> bool:
    wanted = ".failed." in page if entry["status"] in ("failed", "interrupted") else ".failed." not in page
    return wanted and (folder / "notebooks" / page).is_file()


def _numbers(path: Path) -> str:
    """The single values of a results file, the first ten in sight."""
    flat: dict[str, Any] = {}

    def unpack(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                unpack(f"{prefix}{key} ", item)
        elif value is not None and not isinstance(value, list):
            flat[prefix.strip()] = value

    unpack("", {key: value for key, value in files.read_json(path).items() if key != "provenance"})
    rows = [f"<dt>{escape(key)}</dt><dd>{escape(_cell(value))}</dd>" for key, value in flat.items()]
    rest = f"<details><summary>{len(rows) - 10} more</summary><dl>{''.join(rows[10:])}</dl></details>"
    return f"<dl>{''.join(rows[:10])}</dl>{rest if len(rows) > 10 else ''}" if rows else ""


def _interactive(folder: Path) -> str:
    pages = sorted((folder / "figures").glob("*.html"))
    items = "".join(
        f'<li><a href="figures/{escape(p.name)}">{escape(_words(p.stem))}</a></li>' for p in pages
    )
    return f"<ul>{items}</ul>" if pages else ""


def _words(name: str) -> str:
    return name.replace("_", " ")


def _figures(folder: Path, record: dict[str, Any]) -> str:
    owner = {path: name for name, entry in record["notebooks"].items() for path in entry.get("outputs", {})}
    groups: dict[str, list[str]] = {}
    for path in sorted((folder / "figures").glob("*.png")):
        name = owner.get(f"figures/{path.name}", "by hand, or from an unfinished notebook")
        data = path.with_suffix(".csv")
        link = f' <a href="figures/{escape(data.name)}">data</a>' if data.is_file() else ""
        text = f"{_words(path.stem)}, a figure of {name}"
        groups.setdefault(name, []).append(
            f'<li><a href="figures/{escape(path.name)}"><img loading="lazy" src="figures/{escape(path.name)}" '
            f'alt="{escape(text)}"></a><span>{escape(_words(path.stem))}</span>{link}</li>'
        )
    return "".join(
        f'<h3>{escape(n)}</h3><ul class="gallery">{"".join(groups[n])}</ul>' for n in sorted(groups)
    )


def _tables(folder: Path) -> str:
    html = ""
    for path in sorted((folder / "tables").glob("*.csv")):
        parquet = path.with_suffix(".parquet")
        also = f', <a href="tables/{escape(parquet.name)}">parquet</a>' if parquet.is_file() else ""
        links = f'<p><a href="tables/{escape(path.name)}">csv</a>{also}</p>'
        html += f"<details><summary>{escape(_words(path.stem))}</summary>{links}{_table(path, 12)}</details>"
    return html


def unreadable(folder: Path) -> dict[str, list[str]]:
    """Image set -> paths of the images that could not be decoded, from a run's embeddings and training cards."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, set[str]] = {}
    for path in sorted((folder / "embeddings").glob("*.safetensors")):
        with (
            suppress(OSError, SafetensorError, KeyError, ValueError),
            safe_open(path, "np") as file,
        ):  # else made anew
            lost = json.loads(file.metadata()["facts"])["unreadable"]
            found.setdefault(re.sub(r"-\w+-\d+$", "", path.stem), set()).update(name for _, name in lost)
    for path in sorted((folder / "checkpoints").glob("*/card.json")):
        found.setdefault("train", set()).update(files.read_json(path).get("unreadable", []))
    return {name: sorted(paths) for name, paths in sorted(found.items()) if paths}


def _unreadable(folder: Path) -> str:
    lost = unreadable(folder)
    items = "".join(
        f"<details open><summary>{escape(name)}: {len(paths)}</summary><ul>"
        + "".join(f"<li><code>{escape(path)}</code></li>" for path in paths)
        + "</ul></details>"
        for name, paths in lost.items()
    )
    return (
        f"<p>{sum(map(len, lost.values()))} images could not be decoded and are in no result.</p>{items}"
        if lost
        else ""
    )


def _facts(record: dict[str, Any]) -> str:
    made = record["provenance"]
    changed = " with uncommitted changes" if made.get("dirty") else ""
    rows = {
        "profile": record["profile"],
        "changed values": json.dumps(record["changes"]) if record["changes"] else "none",
        "commit": f"{made.get('commit') or 'none'}{changed}",
        "seeds": record["parameters"]["seeds"],
        **made.get("machine", {}),
        "versions": ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items()),
    }
    pairs = "".join(f"<dt>{escape(key)}</dt><dd>{escape(_join(value))}</dd>" for key, value in rows.items())
    values = "".join(
        f"<dt>{escape(k)}</dt><dd>{escape(_join(v))}</dd>" for k, v in record["parameters"].items()
    )
    notes = {name: entry["facts"] for name, entry in record["notebooks"].items() if entry.get("facts")}
    more = f"<pre>{escape(json.dumps(notes, indent=1))}</pre>"
    return (
        f"<dl>{pairs}</dl><details><summary>every profile value</summary><dl>{values}</dl></details>"
        f"<details><summary>model, data and device of each notebook</summary>{more}</details>"
        '<p class="soft">All of it, with the hash of every file: <a href="run.json">run.json</a>.</p>'
    )


def _join(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return json.dumps(value) if isinstance(value, dict) else str(value)

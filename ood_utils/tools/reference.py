"""The one committed run: ``make reference`` copies a finished run, without its bulk, into outputs/reference.

The README's headline table is written from it, between two marks.
"""

import io
import re
import shutil
import sys
from base64 import b64decode, b64encode
from pathlib import Path

import pandas as pd
from PIL import Image

from .. import config, store
from ..errors import UserError
from ..files import atomic_write, read_json

LIMIT = 5_000_000  # bytes in all: it lies in git
ROWS = 300  # kept of a table
KEPT = (
    "index.html run.json notebooks/*.html figures/*.png figures/*.html tables/*.csv results/0*.json".split()
)
MARKS = ("<!-- headline: written by ood_utils.tools.reference -->", "<!-- end of headline -->")
STUB = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Left out</title><p>The interactive globe '
    "(5 MB) is left out of the committed run; <code>make reproduce</code> writes it.</p></html>\n"
)
LINK = re.compile(r',?\s*<a href="([^"#:]+)">[^<]*</a>')  # a word that is a link, with its comma
EMBEDDED = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")


def _smaller(png: bytes) -> bytes:
    """The picture with 32 colours: half of the bytes, and a chart needs no more."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(png)) as full:
        full.convert("RGB").quantize(32, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def _embedded(png: re.Match) -> str:
    """A picture in a notebook's page, smaller and as WebP: it stands in figures/ too."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(b64decode(png[1]))) as full:
        shown = full.convert("RGB").resize([7 * side // 10 for side in full.size])
        shown.save(small, "WEBP", quality=40, method=6)
    return f"data:image/webp;base64,{b64encode(small.getvalue()).decode()}"


def _kept(path: Path) -> bytes | str:
    """A file of the run, its pictures made smaller where they are figures or stand in a notebook's page."""
    if path.suffix == ".png":
        return _smaller(path.read_bytes())
    if path.parent.name == "notebooks":
        return EMBEDDED.sub(_embedded, path.read_text())
    if path.match("tables/*.csv"):  # the first rows, four digits: the whole is a `make reproduce` away
        return pd.read_csv(path, nrows=ROWS).to_csv(index=False, float_format="%.4g")
    return STUB if path.match("figures/*.html") else path.read_bytes()


def headline_table(folder: Path) -> str:
    """Markdown: what the report opens with, its table, the claims behind it, and what the model resembles."""
    answer = read_json(folder / "results" / "04_ood_detection.json")["answer"]
    tables = {
        name: pd.read_csv(folder / "tables" / f"{name}.csv") for name in ("answer", "claims", "stand_in")
    }
    stand_in = tables["stand_in"].round(2).rename(columns={"this model": "GlyphCLIP"})
    said = (
        "What GlyphCLIP was calibrated to, on ID and validation images only, as measured on the test images:"
    )
    claims = "\n".join(tables["claims"]["claim"])
    return "\n\n".join([*answer, markdown(tables["answer"]), claims, said, markdown(stand_in)])


def markdown(frame: pd.DataFrame) -> str:
    """The columns of a frame as a Markdown table."""
    lines = [frame.columns, ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def update_readme(readme: Path, folder: Path) -> None:
    """Put the headline table between the README's marks. Raises UserError if the marks are gone."""
    before, begin, rest = readme.read_text().partition(f"{MARKS[0]}\n")
    _, end, after = rest.partition(MARKS[1])
    if not (begin and end):
        raise UserError(f"{readme} has lost the marks {MARKS[0]!r} and {MARKS[1]!r}; put them back")
    atomic_write(readme, f"{before}{begin}\n{headline_table(folder)}\n\n{end}{after}")


def main(argv: list[str] | None = None) -> None:
    """Copy the named run. Raises UserError if it is not done or too large for git."""
    words = sys.argv[1:] if argv is None else argv
    source, target = store.OUTPUTS / (words[0] if words else "glyphs-full"), store.OUTPUTS / "reference"
    record = store.read_record(source)
    if record.get("status") != "done":
        raise UserError(f"run {source} is not done; finish it with `make reproduce` first")
    shutil.rmtree(target, ignore_errors=True)
    for path in (path for pattern in KEPT for path in source.glob(pattern)):
        atomic_write(target / path.relative_to(source), _kept(path))
    index = target / "index.html"
    whole = LINK.sub(lambda link: link[0] if (target / link[1]).exists() else "", index.read_text())
    atomic_write(index, whole)
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    if size > LIMIT:
        much = f"{target} has {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}"
        raise UserError(f"{much}; draw fewer points or leave a figure out")
    update_readme(config.ROOT / "README.md", target)
    print(f"reference: {target}, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    try:
        main()
    except UserError as mistake:
        print(f"reference: {mistake}", file=sys.stderr)
        sys.exit(2)

"""The shape of every notebook, read without running it."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("0*.ipynb"))
SERIES = ["01_modality_gap", "02_train_aligned", "03_hypersphere", "04_ood_detection"]
PARAMETERS = ["profile", "run", "changes"]
LAST_SECTIONS = ["Checks", "Summary", "Exercises", "References"]
Cell = nbformat.NotebookNode

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "") -> list[Cell]:
    """The notebook's cells, or those of one type."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if kind in ("", cell.cell_type)]


def tags(cell: Cell) -> list[str]:
    return cell.metadata.get("tags", [])


def code_lines(cell: Cell) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip()]


def tree(cell: Cell) -> ast.Module:
    """Syntax tree of a code cell; line magics count as blank lines."""
    return ast.parse(
        "\n".join("" if line.lstrip().startswith("%") else line for line in cell.source.splitlines())
    )


def headings(path: Path) -> list[tuple[int, str, int]]:
    """(level, text, cell index) of every Markdown heading outside code fences."""
    found = []
    for index, cell in enumerate(cells(path)):
        prose = re.sub(r"^```.*?^```", "", cell.source, flags=re.MULTILINE | re.DOTALL)
        if cell.cell_type == "markdown":
            found += [
                (len(h[1]), h[2].strip(), index) for h in re.finditer(r"^(#+) +(.*)$", prose, re.MULTILINE)
            ]
    return found


def sections(path: Path) -> list[tuple[int, str, int]]:
    """(number or 0, title, cell index) of every `##` heading, written `## 3 · Title` or `## Title`."""
    split = [(re.fullmatch(r"(?:(\d+) · )?(.*)", text), i) for level, text, i in headings(path) if level == 2]
    return [(int(match[1] or 0), match[2], index) for match, index in split]


def test_the_series_is_complete() -> None:
    assert [path.stem for path in NOTEBOOKS][:4] == SERIES


@every_notebook
def test_is_valid_with_unique_cell_ids_and_a_plain_kernel(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert notebook.metadata.kernelspec.name == "python3"


@every_notebook
def test_parameters_cell_is_first_and_holds_commented_json_literals(path: Path) -> None:
    code = cells(path, "code")
    assert [index for index, cell in enumerate(code) if "parameters" in tags(cell)] == [0]
    names = []
    for line in code_lines(code[0]):
        (assignment,) = ast.parse(line).body
        assert isinstance(assignment, ast.Assign) and len(assignment.targets) == 1
        names.append(assignment.targets[0].id)
        json.loads(ast.get_source_segment(line, assignment.value))
        assert re.match(r"\s+# \S", line[assignment.end_col_offset :]), f"no comment after {line!r}"
    assert names == PARAMETERS


@every_notebook
def test_holds_no_outputs_and_no_execution_counts(path: Path) -> None:
    for cell in cells(path, "code"):
        assert not cell.outputs and cell.execution_count is None
    assert "widgets" not in nbformat.read(path, as_version=4).metadata


@every_notebook
def test_code_cells_are_short_and_definitions_few(path: Path) -> None:
    code = cells(path, "code")
    long = [cell.source.splitlines()[0] for cell in code if len(code_lines(cell)) > 25]
    assert not long, f"longer than 25 lines: {long}"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = [node for cell in code for node in ast.walk(tree(cell)) if isinstance(node, kinds)]
    assert len(defined) <= 2, f"belongs into ood_utils: {[node.name for node in defined]}"


@every_notebook
def test_runs_anywhere(path: Path) -> None:
    """No absolute or home paths, no installing, no path tricks, no device written into the code."""
    forbidden = {
        r"[\"'](/[\w.]|~/|[A-Za-z]:\\)": "an absolute path",
        r"^\s*[!%]+\s*(pip|conda|apt)|^\s*!": "a shell command",
        r"sys\.path|os\.chdir|%cd": "a path trick",
        r"torch\.cuda|\.cuda\(|[\"']cuda(:\d)?[\"']": "a hard-wired device",
    }
    for cell in cells(path, "code"):
        for pattern, what in forbidden.items():
            found = re.search(pattern, cell.source, flags=re.MULTILINE)
            assert not found, f"{what}: {found and found[0]!r} in the cell that starts {cell.source[:60]!r}"


@every_notebook
def test_title_is_one_question(path: Path) -> None:
    titles = [(text, index) for level, text, index in headings(path) if level == 1]
    assert len(titles) == 1, f"one # heading, not {titles}"
    assert titles[0][0].endswith("?") and titles[0][1] == 0


@every_notebook
def test_sections_are_numbered_and_end_as_agreed(path: Path) -> None:
    """Numbers run from 1 without a hole; only the closing sections may stand without one."""
    found = sections(path)
    assert [title for _, title, _ in found[-4:]] == LAST_SECTIONS
    numbers = [number for number, _, _ in found]
    counted = len(numbers) - numbers.count(0)
    assert numbers == [*range(1, counted + 1), *[0] * (len(numbers) - counted)]
    assert counted >= len(found) - len(LAST_SECTIONS) > 0


@every_notebook
def test_exercises_have_folded_solutions(path: Path) -> None:
    """2-4 exercises, `**1.** ...`, each followed by code cells tagged as its solution and folded."""
    everything, bounds = cells(path), {title: index for _, title, index in sections(path)}
    start, end = bounds["Exercises"], bounds["References"]
    prose = [
        (i, cell.source)
        for i, cell in enumerate(everything[:end])
        if i >= start and cell.cell_type == "markdown"
    ]
    starts = [
        (int(m[1]), i) for i, source in prose for m in re.finditer(r"^\*\*(\d+)\.\*\* ", source, re.MULTILINE)
    ]
    assert [number for number, _ in starts] == list(range(1, len(starts) + 1)) and 2 <= len(starts) <= 4
    places = [index for _, index in starts]
    for here, following in zip(places, [*places[1:], end], strict=True):
        solutions = [cell for cell in everything[here:following] if cell.cell_type == "code"]
        assert solutions, f"no solution below {everything[here].source[-60:]!r}"
        for cell in solutions:
            assert {"solution", "hide-cell"} <= set(tags(cell))
            assert cell.metadata.get("jupyter", {}).get("source_hidden") is True
    assert not any("solution" in tags(cell) for cell in everything[:start] + everything[end:])


@every_notebook
def test_prose_outweighs_code_as_in_the_best_series(path: Path) -> None:
    words = sum(len(cell.source.split()) for cell in cells(path, "markdown"))
    lines = sum(len(code_lines(cell)) for cell in cells(path, "code"))
    assert 5 <= words / lines <= 14, f"{words / lines:.1f} words of prose per line of code"

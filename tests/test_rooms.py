"""The house: arrows between rooms point downward only, and the formula rooms never see the profile."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ood_utils"
FORMULAS = {"arrays", "objectives", "scores", "negatives", "metrics", "geometry", "sphere"}
GROUND = {"errors", "registry"}
UNDER = {"series": {"__main__"}, "tools": {"__main__"}}  # room -> who alone may import it


def rooms(path: Path) -> set[str]:
    """The rooms (files and folders of the package) that a file imports, at any depth, for typing too."""
    own = path.relative_to(PACKAGE).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = own[: len(own) - node.level] + tuple((node.module or "").split(".") if node.module else ())
            found |= {(*base, alias.name)[0] for alias in node.names}
        assert "ood_utils" not in str(getattr(node, "module", "")), f"{path}: write the import relatively"
    return found - {own[0]}


HOUSE: dict[str, set[str]] = {}
for file in sorted(PACKAGE.rglob("*.py")):
    HOUSE.setdefault(file.relative_to(PACKAGE).with_suffix("").parts[0], set()).update(rooms(file))


def test_there_are_no_circles() -> None:
    assert tuple(TopologicalSorter(HOUSE).static_order())


@pytest.mark.parametrize("room", sorted(FORMULAS))
def test_formula_rooms_import_formulas_and_the_ground_only(room: str) -> None:
    assert HOUSE[room] <= FORMULAS | GROUND


@pytest.mark.parametrize("room", sorted(UNDER))
def test_only_the_command_line_imports(room: str) -> None:
    assert {other for other, below in HOUSE.items() if room in below} <= UNDER[room]

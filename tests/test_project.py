"""The project's own files agree: metadata, lock, conda environment, Makefile, citation, CI."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from benchmarks import record

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
# where conda-forge's name is another:
CONDA_NAMES = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "huggingface-hub": "huggingface_hub",
    "jupyter-client": "jupyter_client",
}
LOCK = [
    line
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line and not line.startswith("#")
]
TARGETS = [
    "help",
    "setup",
    "reproduce",
    "test",
    "test-portable",
    "soak",
    "lab",
    "lint",
    "format",
    "reference",
    "lock",
    "clean",
]


def requirements(*parts: list[str]) -> dict[str, Requirement]:
    """Requirements by canonical name."""
    parsed = [Requirement(text) for part in parts for text in part]
    return {canonicalize_name(r.name): r for r in parsed}


def pins() -> dict[str, Requirement]:
    return requirements(LOCK)


def pinned_version(requirement: Requirement) -> Version:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} in requirements.lock is not pinned with =="
    return Version(specifier.version)


def conda_dependencies() -> tuple[dict[str, SpecifierSet], list[str]]:
    """environment.yml's conda packages with their bounds, and its pip lines."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip_lines = [line for entry in entries if isinstance(entry, dict) for line in entry["pip"]]
    matches = [re.fullmatch(r"([a-z0-9_-]+)(.*)", entry) for entry in entries if isinstance(entry, str)]
    return {m[1]: SpecifierSet(m[2]) for m in matches}, pip_lines


def tracked_files() -> list[Path]:
    """What git has or would add; without git, nothing can be said."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_every_dependency_is_pinned_to_an_allowed_version() -> None:
    locked = pins()
    for name, requirement in requirements(PROJECT["dependencies"], *EXTRAS.values()).items():
        assert name in locked, f"{name} of pyproject.toml is missing in requirements.lock; run `make lock`"
        assert locked[name].marker is None, f"{name} is pinned for some systems only"
        assert requirement.specifier.contains(pinned_version(locked[name])), (
            f"lock and pyproject disagree on {name}"
        )


def test_lock_is_pinned_once_and_names_no_index() -> None:
    assert len(LOCK) == len(pins()), "a package is pinned twice; resolve with fork-strategy fewest"
    for requirement in pins().values():
        pinned_version(requirement)
        assert requirement.url is None
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?://|file:|--|index|find-links|^-", text, flags=re.MULTILINE)


def test_lock_holds_the_tested_torch() -> None:
    locked = pins()
    assert {n: str(pinned_version(locked[n])) for n in ("torch", "torchvision")} == {
        "torch": "2.12.1",
        "torchvision": "0.27.1",
    }
    constraints = requirements(PYPROJECT["tool"]["uv"]["constraint-dependencies"])
    assert all(pinned_version(r) == pinned_version(locked[n]) for n, r in constraints.items())


def test_this_interpreter_runs_the_locked_versions() -> None:
    """CI and `make test` test the lock and nothing else; a container's own packages are not our concern."""
    if Path(sys.prefix) != ROOT / ".venv" or not (ROOT / ".venv" / ".stamp").exists():
        pytest.skip("not the .venv that make builds")
    for name, pin in pins().items():
        if pin.marker is None or pin.marker.evaluate():
            assert importlib.metadata.version(name) == str(pinned_version(pin)), name


def test_version_floors() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    bounds = {name: str(r.specifier) for name, r in requirements(PROJECT["dependencies"]).items()}
    assert bounds["torch"] == ">=2.11" and bounds["torchvision"] == ">=0.26"
    assert SpecifierSet(bounds["open-clip-torch"]) == SpecifierSet(">=3.2,<4")
    for requirement in requirements(PROJECT["dependencies"], *EXTRAS.values()).values():
        assert any(s.operator == ">=" for s in requirement.specifier), f"{requirement} has no lower bound"


def test_conda_environment_names_the_same_packages_and_bounds() -> None:
    conda, pip_lines = conda_dependencies()
    wanted = requirements(PROJECT["dependencies"], EXTRAS["notebooks"])
    expected = {CONDA_NAMES.get(name, name): r.specifier for name, r in wanted.items()}
    python, pip = conda.pop("python"), conda.pop("pip")
    assert conda == expected
    assert python == SpecifierSet(PROJECT["requires-python"]) and pip == SpecifierSet("")
    assert pip_lines == ["-e .[dev]"] and "dev" in EXTRAS


def test_conda_environment_uses_conda_forge_and_comments_every_line() -> None:
    text = (ROOT / "environment.yml").read_text()
    assert yaml.safe_load(text)["channels"] == ["conda-forge"]
    packages = re.findall(r"^ +- (?!conda-forge|pip:|python)(.*)$", text, flags=re.MULTILINE)
    assert packages and all(" # " in line for line in packages)
    assert len(text.splitlines()) <= 50


def imported(path: Path) -> set[str]:
    """Top-level names of all absolute imports in a Python file, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


def test_every_import_is_a_declared_dependency() -> None:
    declared = set(requirements(PROJECT["dependencies"], EXTRAS["notebooks"], EXTRAS["onnx"]))
    providers = importlib.metadata.packages_distributions()
    for path in sorted((ROOT / "ood_utils").rglob("*.py")):
        for name in imported(path) - set(sys.stdlib_module_names) - {"ood_utils"}:
            owners = {canonicalize_name(owner) for owner in providers.get(name, [name])}
            assert owners & declared, (
                f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not name"
            )


def test_package_imports_fast_because_it_imports_nothing_heavy() -> None:
    heavy = {
        "torch",
        "torchvision",
        "open_clip",
        "sklearn",
        "scipy",
        "umap",
        "numba",
        "pandas",
        "matplotlib",
        "plotly",
    }
    code = "import sys, ood_utils; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not heavy & set(result.stdout.split())


def test_package_data_lies_in_the_package() -> None:
    assets = ROOT / "ood_utils" / "assets"
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["ood_utils"]
    ignored = ["git", "check-ignore", *[str(p) for p in assets.rglob("*") if p.is_file()]]
    result = subprocess.run(ignored, cwd=ROOT, capture_output=True, text=True)
    assert not result.stdout, "git, and so the built package, would leave out: " + result.stdout


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_make_help_is_the_default_and_lists_every_target() -> None:
    shown = make()
    assert shown.returncode == 0 and shown.stdout == make("help").stdout
    assert re.findall(r"^  ([a-z-]+) +\S", shown.stdout, flags=re.MULTILINE) == TARGETS


def make_elsewhere(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Make in a folder with the Makefile and its two inputs but no .venv."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return make("-C", str(tmp_path), *arguments)


@pytest.mark.parametrize("target", TARGETS)
def test_make_knows_the_target_and_a_dry_run_does_nothing(tmp_path: Path, target: str) -> None:
    assert make_elsewhere(tmp_path, "--dry-run", target).returncode == 0
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "there is no"),
        ("exit 1", "is older than Python 3.11"),
        ('case "$*" in *ensurepip*) exit 1;; esac', "cannot make virtual environments"),
    ],
)
def test_make_says_in_one_sentence_why_a_python_will_not_do(
    tmp_path: Path, script: str | None, said: str
) -> None:
    fake = tmp_path / "python-that-will-not-do"
    if script is not None:
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
    result = make_elsewhere(tmp_path, "setup", f"PYTHON={fake}")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode != 0
    assert len(errors) == 1 and said in errors[0] and str(fake) in errors[0]
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_the_two_targets_users_have() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make lint test" in script.read_text() and "set -euo pipefail" in script.read_text()


def test_citation_names_the_project_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2503.18817"


def test_licence_is_mit_and_packaged() -> None:
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert PROJECT["license-files"] == ["LICENSE"]


def test_repository_is_small() -> None:
    sizes = {path: path.stat().st_size for path in tracked_files()}
    assert sum(sizes.values()) < 20e6, f"over 20 MB; the largest: {sorted(sizes, key=sizes.get)[-5:]}"
    reference = sum(
        size for path, size in sizes.items() if path.is_relative_to(ROOT / "outputs" / "reference")
    )
    assert reference < 5e6, "outputs/reference/ is over 5 MB"


def test_no_committed_file_holds_a_home_folder_or_an_index_address() -> None:
    private = re.compile(r"/root/|/home/[a-z]|index-url *= *.?(http|file):")
    for path in tracked_files():
        if path.suffix in {
            ".py",
            ".toml",
            ".yml",
            ".yaml",
            ".md",
            ".cff",
            ".lock",
            ".ipynb",
            ".json",
            ".csv",
            "",
        }:
            found = None if path == Path(__file__).resolve() else private.search(path.read_text())
            assert not found, f"{path.relative_to(ROOT)} holds {found and found[0]!r}"


def test_benchmark_table_is_what_its_rows_say() -> None:
    rows = record.read()
    assert record.TABLE.read_text() == record.render(rows), "run `python -m benchmarks --render`"
    assert {row.section for row in rows} == set(record.TITLES)
    for row in record.latest(rows):
        is_measured = row.status == record.MEASURED and row.value is not None and row.machine and row.commit
        assert is_measured or (row.status == record.WAITING and row.value is None and row.command), row


def test_benchmark_rows_are_kept_and_judged(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    slow = record.Row("scores", "a", 2.0, "s", 1.4, "share <= 1.3", "x")
    record.append([slow, record.waiting("scores", "b", "s")], path)
    record.append([dataclasses.replace(slow, value=1.0, share=1.2), record.waiting("scores", "b", "s")], path)
    rows = record.read(path)
    assert [(row.what, row.value, row.met()) for row in rows] == [
        ("a", 2.0, "no"),
        ("b", None, ""),
        ("a", 1.0, "yes"),
    ]
    assert [(row.what, row.value) for row in record.latest(rows)] == [("a", 1.0), ("b", None)]
    record.append([record.Row("scores", "b", 3.0, "s")], path)
    assert {row.what: row.value for row in record.latest(record.read(path))} == {"a": 1.0, "b": 3.0}
    assert "| a | 1 | s | 1.2 | share <= 1.3 | yes |" in record.render(rows)

"""Whatever is given ends in one line or in a correct result: generated profiles, folders, lists and files."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ood_utils import __main__ as cli
from ood_utils import config, data, store
from ood_utils.data import corpus, paths
from ood_utils.errors import UserError
from ood_utils.series import report

SLOWLY = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}
FIELDS = sorted(config.Profile.model_fields)
NASTY = [
    "",
    ".",
    "..",
    "../../x",
    "id_val",
    "a/b",
    "a\\b",
    "a\nb",
    "\x00",
    "\ud800",
    "~nobody-here/x",
    "x" * 5000,
]
WORDS = st.sampled_from([*NASTY, "glyphs", "folder", "auto", "near", "1e-5", "2020-99-99", "<b>"]) | st.text(
    max_size=9
)
NUMBERS = (
    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf"), True])
    | st.integers()
)
LEAVES = st.none() | NUMBERS | WORDS | st.dates()
VALUES = st.recursive(
    LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(WORDS | st.integers(), x, max_size=3)
)
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a disk takes milliseconds to forget a folder
PNG = Image.fromarray(np.zeros((4, 4, 3), np.uint8))


def one_line(call: Any, *values: Any) -> Any:
    """What a call returns, or None where it ends in one line; anything else that it raises is a fault."""
    try:
        return call(*values)
    except UserError as mistake:
        assert "\n" not in str(mistake) and len(str(mistake)) < 2000
        str(mistake).encode()
    except OSError as fault:  # the command line says it in one line, too
        assert fault.filename
    return None


@settings(max_examples=250, **SLOWLY)
@given(st.dictionaries(st.sampled_from(FIELDS) | WORDS, VALUES, max_size=3))
def test_profiles(values: dict[str, Any]) -> None:
    made = one_line(config.make_profile, values, "test")
    if made:
        json.dumps(made.model_dump(), allow_nan=False).encode()
        assert made.key() and one_line(lambda: list(data.needs(made))) is not False
        for name in {**made.ood_roots, **made.ood_groups}:
            outside = os.path.normpath(f"embeddings/{name}-0.safetensors")
            assert outside == f"embeddings/{name}-0.safetensors" and name not in (
                "train",
                "id_val",
                "id_test",
            )


@settings(max_examples=150, **SLOWLY)
@given(
    st.sampled_from(FIELDS),
    WORDS | VALUES.map(lambda x: yaml.safe_dump(x, allow_unicode=True)),
    st.booleans(),
)
def test_command_lines_and_profile_files(field: str, text: str, as_file: bool) -> None:
    if not as_file:
        one_line(lambda: config.load_profile("glyphs-tiny", config.parse_changes([f"{field}={text}"])))
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        file = Path(folder, "mine.yaml")
        file.write_bytes(f"{field}: {text}\n".encode("utf-8", "surrogatepass"))
        one_line(config.load_profile, file)


NAMES = st.sampled_from(
    [
        "cat",
        "Cat",
        "c_a t",
        "é",
        "e\u0301",
        "<img src=x onerror=alert(1)>",
        "train",
        "._x",
        "-",
        "caf\udce9",
        "a\nb",
        "CON",
    ]
)
KINDS = st.sampled_from(
    ["png", "png", "png", "text", "empty", "gone", "itself", "up", "pipe", "folder", "utf-8"]
)
TREES = st.dictionaries(NAMES, st.lists(KINDS, max_size=7), max_size=4)


def plant(root: Path, tree: dict[str, list[str]]) -> None:
    """Class folders with files of these kinds; no two images of one content."""
    for k, (name, kinds) in enumerate(tree.items()):
        folder = root / name
        folder.mkdir(parents=True)
        for i, kind in enumerate(kinds):
            path = folder / (f"{i}.png" if kind != "utf-8" else f"{i}\udcff.png")
            if kind in ("png", "utf-8"):
                PNG.putpixel((0, 0), (k + len(root.name), i, 9))
                PNG.save(path)
            elif kind in ("text", "empty"):
                path.write_text("no image" * (kind == "text"))
            elif kind in ("gone", "itself", "up"):
                path.symlink_to({"gone": "nothing", "itself": path.name, "up": "../.."}[kind])
            elif kind == "pipe":
                os.mkfifo(path)
            else:
                path.mkdir()


@pytest.mark.skipif(os.name != "posix", reason="names and links as Linux has them")
@settings(max_examples=80, **SLOWLY)
@given(TREES, TREES, st.sampled_from(["ood", "id", "id/cat", "."]))
def test_folder_trees(tree: dict[str, list[str]], other: dict[str, list[str]], ood: str) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as base:
        plant(Path(base, "id"), tree)
        plant(Path(base, "ood"), other)
        values = {"data": "folder", "data_root": f"{base}/id", "ood_roots": {"x": f"{base}/{ood}"}}
        profile = config.make_profile(values | {"corpus_words": 5}, "test")
        for need in (needs := list(data.needs(profile))):
            assert "\n" not in str(need)
            str(need).encode()
        study = one_line(data.load, profile)
        if study:
            assert ood == "ood" and len(set(study.class_names)) == len(study.class_names) >= 2
            tested = set(study.id_test.labels) == set(range(len(study.class_names)))
            assert tested or any("has no test image" in need.what for need in needs)
            parts = [{*one.ids} for one in (study.train, study.id_val, study.id_test)]
            assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
            "".join([*study.class_names, *study.id_test.ids]).encode()
            json.dumps(study.ood["x"].ids)


@settings(max_examples=100, **SLOWLY)
@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_lists_and_records(content: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        file = Path(folder, "words.txt")
        file.write_bytes(content)
        words = one_line(corpus.load_corpus, config.Profile(corpus=str(file)))
        assert words is None or all(word.strip() for word, _ in words)
        one_line(paths.listed, file)
        file.rename(Path(folder, "run.json"))
        one_line(store.read_record, Path(folder))


@settings(max_examples=100, **SLOWLY)
@given(
    st.dictionaries(st.sampled_from(["notebooks", "changes", "parameters", "provenance", "id"]), VALUES)
    | st.fixed_dictionaries({"notebooks": st.dictionaries(WORDS, st.dictionaries(
        st.sampled_from(["status", "outputs", "inputs", "error", "copy", "seconds"]), VALUES), max_size=2)})
)  # fmt: skip
def test_run_records(record: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        text = json.dumps({"schema_version": store.SCHEMA_VERSION} | record, default=str)
        Path(folder, "run.json").write_text(text)
        if one_line(store.read_record, Path(folder)):
            one_line(report.build, Path(folder))


@settings(max_examples=60, **SLOWLY)
@given(
    st.lists(
        st.sampled_from(["--run", "--profile", "--only", "--timeout", "-p", "--verify"]) | WORDS, max_size=4
    )
)
def test_words_of_the_command_line(words: list[str]) -> None:
    def act() -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cli.signal, "signal", lambda *_: None)
            return cli.main(["report", *words])

    try:
        assert act() in (0, 2)
    except SystemExit as end:  # argparse's own sentence
        assert end.code in (0, 2)

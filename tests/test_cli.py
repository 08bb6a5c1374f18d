"""The command line: what it refuses, what it says, what it returns."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fakes import executor, notebook

from ood_utils import __main__ as cli
from ood_utils import check
from ood_utils import run as runs
from ood_utils.errors import UserError
from ood_utils.execution import Executor


@pytest.fixture
def world(tmp_path, monkeypatch):
    notebook(tmp_path / "notebooks" / "01_first.ipynb", prose="# 01 - Is it so?")
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--profile", "glyhps"], "unknown profile 'glyhps'; did you mean glyphs"),
        (["run", "--only", "1_first"], "unknown notebook '1_first'; did you mean 01_first?"),
        (["run", "-p", "lamda=1"], "unknown parameter 'lamda'; did you mean lam"),
        (["run", "-p", "lam=2"], "lam = 2"),
        (["run", "-p", "lam=much"], "lam = 'much'"),
        (["run", "-p", "lam=0.1", "temperature=0"], "temperature = 0"),
        (["run", "-p", "steps"], "-p steps has no value"),
        (["run", "-p", "lams=[0,"], "not a YAML value"),
        (["run", "--timeout", "-1"], "--timeout -1 is refused"),
        (["run", "--run", "../up"], "run name '../up'"),
        (["run", "--profile", "imagenet"], "data_root = '' is no folder"),
        (["check", "--profile", "glyhps"], "unknown profile"),
        (["report", "--run", "nothing"], "holds no run"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(world, capsys, monkeypatch, words, said):
    monkeypatch.setattr(Executor, "execute", lambda *_: pytest.fail("a kernel was started"))
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("ood: ") and said in error and error.count("\n") == 1


def test_a_profile_file_that_is_not_yaml(world, capsys):
    (world / "mine.yaml").write_text("a: [")
    assert cli.main(["run", "--profile", str(world / "mine.yaml")]) == 2
    assert "mine.yaml, line 1 is not YAML" in capsys.readouterr().err


def test_unknown_commands_end_with_status_2(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["rum"])
    assert end.value.code == 2 and "run" in capsys.readouterr().err


def test_values_are_read_by_the_field_s_type(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.images").mkdir()
    changes = cli.parse_changes(["lam=1e-3", "lams=[0, 1e-2]", "title=007: a title", "data_root=my.images", "model="])
    assert changes == {"lam": 1e-3, "lams": [0, 1e-2], "title": "007: a title", "model": ""} | {
        "data_root": str(tmp_path / "my.images")
    }


def test_run_list_and_report(world, capsys, monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(Executor, "execute", executor(calls, {"01_first": {"results/01_first.json": "{}"}}))
    assert cli.main(["run", "--profile", "glyphs-tiny", "--run", "mine", "-p", "lam=0.5", "seeds=[3]"]) == 0
    assert calls == ["01_first"] and runs.read_record(runs.OUTPUTS / "mine")["parameters"]["seeds"] == [3]
    assert cli.main(["report", "--run", "mine"]) == 0
    capsys.readouterr()
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    for part in ("01 - Is it so?", "glyphs-tiny", "imagenet", "mine", "done: 01 done"):
        assert part in said


def test_a_failed_notebook_is_status_1_and_an_interrupt_130(world, capsys, monkeypatch):
    monkeypatch.setattr(
        Executor, "execute", executor([], {}, {"kind": "X", "message": "it broke", "tail": ["last line"]})
    )
    assert cli.main(["run"]) == 1
    assert "01_first failed: it broke\n    last line" in capsys.readouterr().err

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Executor, "execute", interrupt)
    assert cli.main(["run"]) == 130
    assert runs.read_record(runs.OUTPUTS / "glyphs")["notebooks"]["01_first"]["status"] == "interrupted"


def test_other_rooms_get_their_words(monkeypatch):
    from ood_utils import train

    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr(train, "main", lambda argv=None: sys.argv)
    assert cli.main(["train", "--lam", "0.1"]) == ["ood train", "--lam", "0.1"]


def test_help_and_import_are_light():
    code = (
        "import sys\nfrom ood_utils import __main__ as cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'sklearn', 'pydantic', 'papermill', 'open_clip'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ood run --profile glyphs-tiny" in done.stdout and "pretrain" in done.stdout


def test_check_says_that_the_glyph_world_is_ready(world, capsys):
    assert cli.main(["check", "--profile", "glyphs"]) == 0
    said = capsys.readouterr().out
    assert "Ready." in said and "torch" in said and "GiB free" in said and "expected minutes: 01" in said


def test_check_of_the_paper_lane_says_what_is_missing_and_whence(world, capsys):
    root = world / "data"
    for name in ("imagenet/val/n01440764", "MOS/SUN"):
        (root / name).mkdir(parents=True)
    (root / "MOS" / "SUN" / "1.jpg").touch()
    assert cli.main(["check", "--profile", "imagenet", "-p", f"data_root={root}", f"corpus={root}/dict"]) == 1
    said = capsys.readouterr().out
    for part in ("1 of 1000 class folders", "138 GB; image-net.org", "0 of 7 image lists", "MIT", "wordnet-base"):
        assert part in said, part
    assert f"ok      SUN (far, 10,000 images) in {root}/MOS/SUN" in said and "MISSING Places" in said
    assert "MISSING SSB-hard" in said and "Something is missing" in said


def test_check_of_weights_names_near_tags():
    item = check._weights(runs.Profile(model="ViT-B-16-quickgelu", pretrained="opnai"))
    assert item.ok is False and "openai" in item.remedy
    assert check._weights(runs.Profile()).ok


def test_check_without_a_profile_asks_only_for_what_the_default_needs(world, capsys, monkeypatch):
    monkeypatch.setattr(runs, "load_profile", lambda name, changes=None: runs.Profile(title=name))
    assert cli.main(["check"]) == 0 and "Profile glyphs-tiny" in capsys.readouterr().out


def test_outputs_that_cannot_be_written_are_seen(world, capsys):
    runs.OUTPUTS.write_text("a file")
    assert cli.main(["check", "--profile", "glyphs"]) == 1
    assert "MISSING outputs folder" in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot write"):
        runs.atomic_write(runs.OUTPUTS / "x", "")

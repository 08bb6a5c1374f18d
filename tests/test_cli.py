"""The command line: what it refuses, what it says, what it returns."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fakes import notebook, stand_in
from mini_imagenet import noise

from ood_utils import __main__ as cli
from ood_utils import config, data, files, models, store
from ood_utils.data.lanes import imagenet
from ood_utils.errors import UserError
from ood_utils.series import check, runner


@pytest.fixture
def world(tmp_path, monkeypatch):
    notebook(tmp_path / "notebooks" / "01_first.ipynb", prose="# 01 - Is it so?")
    monkeypatch.setattr(config, "ROOT", tmp_path)
    monkeypatch.setattr(store, "OUTPUTS", tmp_path / "outputs")
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
        (["run", "-p", "lam=2020-99-99"], "-p lam=2020-99-99 is not a YAML value"),
        (["run", "-p", "lam=2020-01-01"], "lam = datetime.date(2020, 1, 1)"),
        (["run", "-p", "ood_roots={../../x: /tmp}"], "ood_roots = {'../../x'"),
        (["run", "-p", "relation=0.3"], "a series takes relations=[0.3]"),
        (["run", "-p", "id_classes=4"], "id_classes = 4 tell too little"),
        (["run", "--profile", "p" * 5000], "unknown profile 'ppp"),
        (["run", "--profile", "a\nb"], "unknown profile 'a\\nb'"),
        (["run", "--profile", "~nobody"], "'~nobody'"),
        (["run", "--run", "r" * 300], "at most 100 letters"),
        (["check", "-p", "title=a\ud800"], "title = 'a\\ud800' is refused"),
        (["train", "--folder", "x", "--save-every", "0"], "--save-every 0 is refused: give steps, 1 or more"),
        (["train", "--folder", "x", "--seed", "9" * 25], "seed = 9999"),
        (["pretrain", "--steps", "0"], "--steps 0 is refused: give 1 or more"),
        (["pretrain", "--seed", "-1"], "--seed -1 is refused"),
        (["pretrain", "--lr", "nan"], "--lr nan is refused"),
        (["pretrain", "--device", "nope"], "device is 'nope'; choose auto, cpu, cuda or cuda:N"),
        (["run", "--timeout", "inf"], "--timeout inf is refused"),
        (["run", "--timeout", "-1"], "--timeout -1 is refused"),
        (["run", "--run", "../up"], "run name '../up'"),
        (["run", "--profile", "imagenet"], "data_root = '' is no folder"),
        (["check", "--profile", "glyhps"], "unknown profile"),
        (["report", "--run", "nothing"], "holds no run"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(world, capsys, monkeypatch, words, said):
    monkeypatch.setattr(runner, "surroundings", lambda *_: pytest.fail("a kernel was started"))
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
    changes = config.parse_changes(
        ["lam=1e-3", "lams=[0, 1e-2]", "title=007: a title", "data_root=my.images", "model="]
    )
    assert changes == {"lam": 1e-3, "lams": [0, 1e-2], "title": "007: a title", "model": ""} | {
        "data_root": str(tmp_path / "my.images")
    }


def test_run_list_and_report(world, capsys, monkeypatch):
    calls: list[str] = []
    stand_in(monkeypatch, calls, {"01_first": {"results/01_first.json": "{}"}})
    assert cli.main(["run", "--profile", "glyphs-tiny", "--run", "mine", "-p", "lam=0.5", "seeds=[3]"]) == 0
    assert calls == ["01_first"] and store.read_record(store.OUTPUTS / "mine")["parameters"]["seeds"] == [3]
    assert cli.main(["report", "--run", "mine"]) == 0
    capsys.readouterr()
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    for part in ("01 - Is it so?", "glyphs-tiny", "imagenet", "mine", "done: 01 done"):
        assert part in said


def test_a_failed_notebook_is_status_1_and_an_interrupt_130(world, capsys, monkeypatch):
    stand_in(monkeypatch, [], {}, {"kind": "X", "message": "it broke", "tail": ["last line"]})
    assert cli.main(["run"]) == 1
    assert "01_first failed: it broke\n    last line" in capsys.readouterr().err

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "execute", interrupt)
    assert cli.main(["run"]) == 130
    assert store.read_record(store.OUTPUTS / "glyphs")["notebooks"]["01_first"]["status"] == "interrupted"


@pytest.mark.parametrize("command", ["_check", "_run"])
def test_only_what_resumes_says_so_when_it_is_interrupted(world, capsys, monkeypatch, command):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, command, interrupted)
    assert cli.main([command[1:]]) == 130
    again = "; the same command takes the run up again" * (command == "_run")
    assert capsys.readouterr().err == f"ood: interrupted{again}\n"


def test_train_is_a_command_with_arguments_of_its_own(monkeypatch, capsys):
    room = SimpleNamespace(
        add_train_arguments=lambda command: command.add_argument("--lam", type=float),
        train_command=lambda options: print(f"lam {options.lam}") or 0,
    )
    monkeypatch.setitem(sys.modules, "ood_utils.sweep", room)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    assert cli.main(["train", "--lam", "0.1"]) == 0 and "lam 0.1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = capsys.readouterr().out
    assert "--lam" in said and "torchrun --standalone" in said


def test_pretraining_gets_its_words(monkeypatch):
    room = SimpleNamespace(main=lambda words: ["--steps", "3"].index(words[0]))
    monkeypatch.setitem(sys.modules, "ood_utils.tools", SimpleNamespace(pretrain=room))
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    assert cli.main(["pretrain", "--steps", "3"]) == 0


def test_help_and_import_are_light():
    code = (
        "import sys\nfrom ood_utils import __main__ as cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'sklearn', 'pydantic', 'papermill'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ood run --profile glyphs-tiny" in done.stdout and "pretrain" in done.stdout


def test_a_notebook_that_imports_us_is_not_told_to_get_ipywidgets():
    code = "import ood_utils, tqdm, warnings\nwarnings.warn('IProgress not found. Please', tqdm.TqdmWarning)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True).returncode == 0


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
    for part in (
        "1 of 1000 class folders", "138 GB; image-net.org", "val_imagenet.txt", "MIT", "wordnet-base",
        "11 checkpoints 6.1",
    ):  # fmt: skip
        assert part in said, part
    assert f"WRONG   SUN (far) in {root}/MOS/SUN: 1 of 10,000 images; its first or last" in said
    assert "MISSING Places" in said
    assert "MISSING SSB-hard" in said and "Something is missing" in said


def test_check_of_weights_names_near_tags():
    item = check.weights_need(config.Profile(model="ViT-B-16-quickgelu", pretrained="opnai"))
    assert item.ok is False and "openai" in item.remedy
    item = check.weights_need(config.Profile(model="ViT-B-16", pretrained="openai"))
    assert item.ok is False and item.remedy == "use model 'ViT-B-16-quickgelu'"
    assert "builtin" in check.weights_need(config.Profile(pretrained="bultin")).remedy
    assert (
        check.weights_need(config.Profile()).ok and check.weights_need(config.Profile(pretrained="random")).ok
    )


def test_weights_that_the_model_cannot_read_are_refused_alike_by_check_and_run(world, capsys):
    cut, junk, whole = (world / f"{name}.safetensors" for name in ("cut", "junk", "whole"))
    whole.write_bytes(models.GLYPH_WEIGHTS.read_bytes())
    cut.write_bytes(models.GLYPH_WEIGHTS.read_bytes()[:-1])
    junk.write_text("not weights")
    for path in (cut, junk):
        assert cli.main(["check", "--profile", "glyphs", "-p", f"pretrained={path}"]) == 1
        said = capsys.readouterr().out
        assert f"WRONG   weights file {path} is no plain" in said and "Ready" not in said
        assert cli.main(["run", "-p", f"pretrained={path}"]) == 2
        refused = capsys.readouterr().err
        assert f"ood: profile glyphs: wrong: weights file {path} is no plain" in refused
        assert not list(store.OUTPUTS.glob("glyphs"))
    item = check.weights_need(config.Profile(pretrained=str(whole)))
    assert item.ok and "by tensor names and shapes" in item.what
    cut.replace(whole)  # kept by what the file was, not by its name
    assert check.weights_need(config.Profile(pretrained=str(whole))).ok is False


def test_torch_is_not_asked_for_gpus_where_there_is_none(monkeypatch):
    monkeypatch.setattr(check.provenance, "machine", lambda: {"gpus": []})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1 / 0)
    assert check._gpus() == []


def test_check_of_an_unknown_model_names_near_ones():
    profile = config.Profile(model="ViT-B-16-quikgelu", pretrained="openai")
    item = check.weights_need(profile)
    assert item.ok is False and "did you mean ViT-B-16-quickgelu" in item.remedy
    assert "not known" in str(check.disk_need(profile))


def test_check_names_openai_s_licence_for_openai_s_weights_only(monkeypatch):
    monkeypatch.setattr(check, "cached", lambda _: False)
    for model, tag in (("ViT-B-16-quickgelu", "openai"), ("ViT-B-16", "laion2b_s34b_b88k")):
        item = check.weights_need(config.Profile(model=model, pretrained=tag))
        assert item.ok is None and ("OpenAI's" in item.what) == (tag == "openai")
        assert "not on this machine: open_clip downloads it" in item.what


def test_check_reckons_the_disk_that_a_profile_needs(monkeypatch):
    paper = config.load_profile("imagenet")
    assert 12 < sum(check.room(paper).values()) < 25 and sum(check.room(config.Profile()).values()) < 1
    usage = type("Usage", (), {"free": 2**30})
    monkeypatch.setattr(check.shutil, "disk_usage", lambda _: usage)
    low = check.disk_need(paper)
    assert (
        low.ok is False
        and str(low).startswith("  LOW ")
        and "1.0 GiB free" in str(low)
        and "OOD_OUTPUTS" in low.remedy
    )
    assert str(check.disk_need(config.Profile())).startswith("  ok ")


def test_check_wants_both_files_of_a_wordnet_folder(tmp_path):
    profile = config.Profile(corpus=str(tmp_path))

    def corpus():
        return next(item for item in check.needs(profile) if item.what.startswith("corpus"))

    assert corpus().ok is False and "without data.noun and data.adj" in str(corpus())
    (tmp_path / "data.noun").touch()
    assert "without data.adj" in str(corpus())
    (tmp_path / "data.adj").touch()
    assert corpus().ok


def test_check_compares_class_folders_by_name(tmp_path):
    for part, names in {"train": imagenet.wnids(), "val": [f"{n:03d}" for n in range(1000)]}.items():
        for name in names:
            noise(tmp_path / "imagenet" / part / name / "0.jpg")
    lines = [str(need) for need in data.needs(config.Profile(data="imagenet", data_root=str(tmp_path)))]
    whole = "train: 1000 of 1000 class folders: 1,000 of 1,281,167 images, not the published number"
    assert any(line.startswith("  - ") and whole in line for line in lines)
    assert any(
        line.startswith("  WRONG ") and "val: 1000 folders" in line and "'000'" in line for line in lines
    )
    assert any(line.startswith("  MISSING") and "val: 0 of 1000" in line for line in lines)


def test_check_without_a_profile_asks_only_for_what_the_default_needs(world, capsys, monkeypatch):
    monkeypatch.setattr(config, "load_profile", lambda name, changes=None: config.Profile(title=name))
    assert cli.main(["check"]) == 0 and "Profile glyphs-tiny" in capsys.readouterr().out


def test_outputs_that_cannot_be_written_are_seen(world, capsys):
    store.OUTPUTS.write_text("a file")
    assert cli.main(["check", "--profile", "glyphs"]) == 1
    assert "MISSING outputs folder" in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot write"):
        files.atomic_write(store.OUTPUTS / "x", "")

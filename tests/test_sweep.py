from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import one_thread  # noqa: F401 - a fixture

from ood_utils import config, models, processes, registry, sweep, training
from ood_utils.config import Profile
from ood_utils.errors import UserError


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A profile of the folder lane: 3 classes of coloured squares, weights in a file, everything tiny."""
    root, rng = tmp_path_factory.mktemp("lane"), np.random.default_rng(0)
    for folder in ("id/red", "id/green", "id/blue", "ood"):
        (root / folder).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
    model, *_ = models.load("GlyphCLIP", "random")
    models.save(model, root / "start.safetensors", "GlyphCLIP")
    return {
        "data": "folder", "data_root": str(root / "id"), "ood_roots": {"noise": str(root / "ood")},
        "pretrained": str(root / "start.safetensors"), "device": "cpu", "parallel": 1,
        "steps": 3, "batch": 4, "warmup": 1, "seeds": [0], "lams": [0, 0.1],
        "relations": [], "image_lrs": [],
    }  # fmt: skip


def carry_out(
    profile: Profile, folder: Path, lams: tuple[float, ...] = (0.1,), **options: object
) -> pd.DataFrame:
    """The trainings of a plan with these lams alone: one is enough for most."""
    planned = sweep.plan(profile)
    planned = planned[planned.lam.isin(lams)].reset_index(drop=True)
    return sweep.carry_out(planned, profile, folder, progress=False, **options)


def cards(planned: pd.DataFrame, folder: Path) -> list[dict]:
    return [json.loads((folder / path).with_name("card.json").read_text()) for path in planned.weights]


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    sweep.add_train_arguments(parser)
    return parser.parse_args(words)


# --- what is planned ---


def test_the_plan_trains_each_model_once() -> None:
    changes = {"lams": [0, 0.01, 0.1], "lam": 0.01, "seeds": [3, 4], "relations": [0.3], "image_lrs": [0]}
    profile = config.make_profile(changes, "test")
    first, whole = sweep.plan(profile), sweep.plan(profile, closed=0.1, relation=0.3)
    swept = ["lam0_seed3", "lam0.01_seed3", "lam0.1_seed3", "lam0_seed3_relation0.3", "lam0_seed3_image0"]
    assert list(first.tag) == swept and set(first.role) == {"sweep"}
    headline = whole[whole.role == "headline"]
    names = ["FLYP", "CMA", "CMA closed"]
    names = [name for name in [*names, *(f"{name} + relation" for name in names)] for _ in profile.seeds]
    assert list(headline.method) == ["zero-shot", *names]
    recipes = sweep.planned_jobs(whole, profile)
    assert (
        "zero-shot" not in recipes and len(recipes) == 12 + 1
    )  # all of the sweep but the locked tower is in both
    assert recipes["lam0_seed4"] == profile.recipe(objective="clip", lam=0.0, seed=4)
    kept = recipes["lam0.1_seed3_relation0.3"]
    assert kept == profile.recipe(objective="cma", lam=0.1, seed=3, relation=0.3)
    assert recipes["lam0_seed3_image0"] == profile.recipe(objective="clip", lam=0.0, seed=3, image_lr=0.0)
    assert "CMA closed" not in set(sweep.plan(profile, closed=0.01).method)
    usual = profile.model_copy(update={"image_lr": 0.0, "image_lrs": [0, 2e-5], "relations": [0, 0.3, 0.3]})
    others = ["lam0_seed3_relation0.3", "lam0_seed3_image2e-05"]
    assert list(sweep.plan(usual).tag) == [*swept[:3], *others]


# --- carried out ---


@pytest.mark.slow
def test_side_by_side_alone_and_from_the_shell_are_the_same(
    lane: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = config.make_profile(lane | {"parallel": 2}, "test")
    planned = carry_out(profile, tmp_path, (0, 0.1))
    assert list(planned.weights) == [f"checkpoints/lam{x}_seed0/model.safetensors" for x in ("0", "0.1")]
    found = cards(planned, tmp_path)
    assert found[0]["weights"] != found[1]["weights"] and found[1]["recipe"]["lam"] == 0.1
    assert found[0]["provenance"]["torch"]["threads"] == 1 and not multiprocessing_children()
    # finished work starts no child
    monkeypatch.setattr(sweep, "_in_children", lambda *_: pytest.fail("finished work was started again"))
    pd.testing.assert_frame_equal(carry_out(profile, tmp_path, (0, 0.1)), planned)
    # in this process, and from the shell
    alone = config.make_profile(lane | {"parallel": 0}, "test")
    assert (
        cards(carry_out(alone, tmp_path / "alone"), tmp_path / "alone")[0]["weights"] == found[1]["weights"]
    )
    (tmp_path / "p.yaml").write_text(json.dumps(lane))
    words = ["--profile", str(tmp_path / "p.yaml"), "--lam", "0.1", "--folder", str(tmp_path / "shell")]
    assert sweep.train_command(parsed(words)) == 0
    shell = json.loads((tmp_path / "shell/card.json").read_text())
    assert shell["identity"] == found[1]["identity"] and shell["weights"] == found[1]["weights"]


def multiprocessing_children() -> list[psutil.Process]:
    """Training processes below this one: all that use some memory, less the fork server itself."""
    below = psutil.Process().children(recursive=True)
    return [p for p in below if p.parent().pid != os.getpid()]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_group_of_processes_trains_what_one_trains(lane: dict[str, object], tmp_path: Path) -> None:
    """``processes`` = 2 with ``parallel`` = 0 too: the same model, within rounding."""
    ends, logs, found = [], [], []
    for count in (1, 2):
        profile, folder = (
            config.make_profile(lane | {"processes": count, "parallel": 0}, "test"),
            tmp_path / str(count),
        )
        planned = carry_out(profile, folder)
        weights = folder / planned.weights[0]
        ends.append(load_file(weights))
        logs.append(pd.read_parquet(weights.with_name("log.parquet")).drop(columns="seconds"))
        found += cards(planned, folder)
    assert [card["processes"] for card in found] == [1, 2] and found[0]["identity"] == found[1]["identity"]
    np.testing.assert_allclose(*logs, rtol=1e-3, atol=1e-4)
    start = load_file(str(lane["pretrained"]))
    # Adam moves a weight whose gradient is rounding noise as far as any other: all are judged together
    moved = sum((ends[0][key] - start[key]).double().square().sum() for key in start)
    apart = sum((ends[0][key] - ends[1][key]).double().square().sum() for key in start)
    assert apart.sqrt() < 0.1 * moved.sqrt()  # seen: 0.009


# --- faults ---


def spoilt(lane: dict[str, object], folder: Path, **changes: object) -> Profile:
    """A profile whose starting weights load but give no finite loss."""
    model, *_ = models.load("GlyphCLIP", "random")
    model.visual.conv1.weight.data.fill_(float("nan"))
    models.save(model, folder / "nan.safetensors", "GlyphCLIP")
    return config.make_profile(lane | {"pretrained": str(folder / "nan.safetensors")} | changes, "test")


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.distributed)])
def test_a_child_s_mistake_is_one_sentence_here(
    lane: dict[str, object], tmp_path: Path, capfd: pytest.CaptureFixture[str], count: int
) -> None:
    profile = spoilt(lane, tmp_path, processes=count)
    with pytest.raises(UserError, match="^loss is not finite at step 1[^\\n]*$") as caught:
        carry_out(profile, tmp_path)
    assert caught.value.__cause__ is None and not multiprocessing_children()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_mistake_that_can_be_seen_here_starts_no_child(lane: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/nowhere"):
        carry_out(config.make_profile(lane | {"data_root": "/nowhere"}, "test"), tmp_path)


def at_work(folder: Path, steps: int = 10) -> int:
    """Wait until the training in a folder has made some steps; the process that makes them."""
    progress, deadline = folder / "progress.json", time.time() + 120
    while time.time() < deadline:
        facts = json.loads(progress.read_text()) if progress.exists() else {"step": 0}
        if facts["step"] >= steps:
            return facts["pid"]
        time.sleep(0.01)
    raise TimeoutError(folder)


@pytest.mark.slow
def test_ctrl_c_ends_the_children_and_the_next_call_resumes(lane: dict[str, object], tmp_path: Path) -> None:
    def interrupt() -> None:
        below.extend(at_work(folder) for folder in places)
        os.kill(os.getpid(), signal.SIGINT)

    profile = config.make_profile(lane | {"steps": 60, "parallel": 2}, "test")
    places, below = [tmp_path / f"checkpoints/lam{lam}_seed0" for lam in ("0", "0.1")], []
    killer = threading.Thread(target=interrupt)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    killer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            carry_out(profile, tmp_path, (0, 0.1), save_every=5)
    finally:
        signal.signal(signal.SIGINT, handler)
    killer.join()
    assert len(set(below)) == 2 and not any(psutil.pid_exists(pid) for pid in below)
    states = [torch.load(place / "state.pt", weights_only=True)["step"] for place in places]
    assert min(states) >= 5
    whole = carry_out(profile, tmp_path / "whole", (0, 0.1))
    resumed = carry_out(profile, tmp_path, (0, 0.1))
    weights = [[card["weights"] for card in cards(planned, at)] for planned, at in
               ((whole, tmp_path / "whole"), (resumed, tmp_path))]  # fmt: skip
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_killed_child_is_named(lane: dict[str, object], tmp_path: Path) -> None:
    place = tmp_path / "checkpoints/lam0.1_seed0"
    killer = threading.Thread(target=lambda: os.kill(at_work(place), signal.SIGKILL))
    killer.start()
    with pytest.raises(RuntimeError, match="died .*while training lam0.1_seed0; run again"):
        carry_out(config.make_profile(lane | {"steps": 100_000}, "test"), tmp_path)
    killer.join()


SCRIPT = """
from pathlib import Path
from ood_utils import config, sweep
profile = config.make_profile({values!r}, "test")
sweep.carry_out(sweep.plan(profile).iloc[1:], profile, Path({folder!r}), progress=False)
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_nothing_outlives_a_killed_parent(lane: dict[str, object], tmp_path: Path) -> None:
    """A script without ``if __name__ == "__main__"`` trains with two processes and is killed with -9."""
    values = lane | {"steps": 100_000, "processes": 2}
    (tmp_path / "script.py").write_text(SCRIPT.format(values=values, folder=str(tmp_path)))
    environment = os.environ | {"PYTHONPATH": str(config.PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], env=environment)
    at_work(tmp_path / "checkpoints/lam0.1_seed0")
    below = psutil.Process(parent.pid).children(recursive=True)
    assert len(below) >= 4  # the fork server, its child, two processes of the group
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(below, timeout=20)[1] == []


def test_a_child_sees_the_environment_of_the_call_and_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before, threads = dict(os.environ), torch.get_num_threads()
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(processes, "end_with_parent", lambda: None)
    try:
        sweep._prepare({"OOD_TEST": "here", **sweep.ONE_THREAD})
        assert os.environ["OOD_TEST"] == "here" and torch.get_num_threads() == 1
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # Ctrl-C in a terminal reaches every process
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGINT, handler)
        os.environ.clear()
        os.environ.update(before)


# --- the command ---


def test_the_readme_s_commands_train_what_notebook_02_looks_for() -> None:
    """Folder and recipe of both torchrun commands are those of the plan: 02 finds its training done."""
    readme = (Path(__file__).parents[1] / "README.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in readme.splitlines() if line.startswith(".venv/bin/torchrun")]
    assert len(commands) == 2
    profile = config.load_profile("imagenet", {"data_root": "/data"})
    planned = sweep.planned_jobs(sweep.plan(profile, profile.lam), profile)
    for words in commands:
        start = words.index("-m")
        assert words[start + 1 : start + 3] == ["ood_utils", "train"]
        options = parsed(words[start + 3 :])
        found, recipe = sweep.asked(options)
        assert options.folder.parent == Path("outputs/imagenet/checkpoints") and found.data_root == "/data"
        assert recipe == planned[options.folder.name]


def test_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--folder x -p lam=0.1 steps=7 -p lr=1e-3 --deterministic --objective m2mix --seed 4".split()
    profile, recipe = sweep.asked(parsed(words))
    assert (recipe.lam, recipe.steps, recipe.lr, recipe.seed) == (0.1, 7, 1e-3, 4) and profile.deterministic
    assert recipe.deterministic and recipe.objective == "m2mix" and registry.names("objectives")
    for wrong, said in (("-p stepz=3", "stepz"), ("-p steps", "no value"), ("--lam 2", "lam = 2")):
        with pytest.raises(UserError, match=said):
            sweep.asked(parsed(["--folder", "x", *wrong.split()]))
    with pytest.raises(SystemExit):
        parsed(["--objective", "cmma", "--folder", "x"])
    assert "invalid choice: 'cmma'" in capsys.readouterr().err


TORCHRUN = """
import argparse, sys
from ood_utils import sweep
parser = argparse.ArgumentParser()
sweep.add_train_arguments(parser)
sys.exit(sweep.train_command(parser.parse_args()))
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_torchrun_trains(lane: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TORCHRUN)
    (tmp_path / "p.yaml").write_text(json.dumps(lane))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        str(tmp_path / "train.py"),
        "--profile",
        str(tmp_path / "p.yaml"),
        "--folder",
        str(tmp_path / "a"),
    ]
    environment = os.environ | {"PYTHONPATH": str(config.PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    how = {"env": environment, "capture_output": True, "text": True}
    assert subprocess.run(command, **how).returncode == 0
    card = json.loads((tmp_path / "a/card.json").read_text())
    assert card["processes"] == 2 and training.finished(tmp_path / "a", card["identity"])


# --- processes ---


def test_ending_children_takes_what_is_below_them_and_what_does_not_listen() -> None:
    deaf = """if True:
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(1, flush=True)
        time.sleep(60)
    """
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert child.stdout.read(1) == b"1"
    (below,) = psutil.Process(child.pid).children()
    processes.end_children([child.pid, 2**22 + 1])
    assert not psutil.pid_exists(child.pid)
    assert not below.is_running() or below.status() == psutil.STATUS_ZOMBIE  # until somebody reads its status

"""The runner: what runs, what is skipped, and what every fault leaves behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from fakes import notebook, stand_in

from ood_utils import config, files, provenance, store
from ood_utils.errors import UserError
from ood_utils.series import kernel, progress, report, runner, state

FIRST = """
import json, os, sys
from pathlib import Path
from ood_utils import config, files, provenance, store
r = store.start("01_first", profile, run, changes)
facts = {"python": sys.executable, "folder": os.getcwd(), "lam": r.profile.lam}
facts["provenance"] = {"weights_sha256": "ab"}
r.save_results(facts)
print("encode 1\\rencode 2\\rencode 3")
"""
SECOND = """
import json, os
from pathlib import Path
here = Path(os.environ["OOD_OUTPUTS"]) / run
print(json.loads((here / "results" / "01_first.json").read_text())["lam"])
"""
WRITES = {
    "01_first": {
        "results/01_first.json": '{"gap": 0.8, "provenance": {"weights_sha256": "ab"}}',
        "figures/a.csv": "x",
    },
    "02_second": {"results/02_second.json": "{}", "tables/t.csv": "x\n1\n", "checkpoints/cma/model.bin": "w"},
}


STRAY = (  # a process that nothing but its mark ties to the notebook
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
    "start_new_session=True)\nopen({pid!r}, 'w').write(str(child.pid))\n"
)
PARAMETERS = {"profile": "glyphs-tiny", "run": "", "changes": {}}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux alone")


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two notebooks, a package of one module, an empty outputs folder."""
    notebook(tmp_path / "notebooks" / "01_first.ipynb", FIRST)
    notebook(tmp_path / "notebooks" / "02_second.ipynb", SECOND)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "scores.py").write_text("x = 1\n")
    find = state.find
    monkeypatch.setattr(state, "find", lambda _: find(tmp_path / "notebooks"))
    monkeypatch.setattr(state, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(store, "OUTPUTS", tmp_path / "outputs")
    return tmp_path


def run(world, profile="glyphs-tiny", changes=None, **words):
    return runner.run_series(profile, changes, **words)


def record(world, name="glyphs-tiny"):
    return json.loads((world / "outputs" / name / "run.json").read_text())


def status(world, name="glyphs-tiny"):
    return {notebook: entry["status"] for notebook, entry in record(world, name)["notebooks"].items()}


@pytest.fixture
def calls(world, monkeypatch):
    """Notebooks executed, by a stand-in that writes WRITES."""
    done: list[str] = []
    stand_in(monkeypatch, done, WRITES)
    return done


# --- real kernels ---


@pytest.mark.series
def test_two_notebooks_run_in_this_interpreter_and_leave_a_report(world, capsys):
    folder = run(world, changes={"lam": 0.25})
    made = record(world)
    assert made["status"] == "done" and set(status(world).values()) == {"done"}
    results = json.loads((folder / "results" / "01_first.json").read_text())
    assert (results["python"], results["folder"]) == (sys.executable, str(config.ROOT))
    assert results["lam"] == 0.25 == made["parameters"]["lam"] and made["changes"] == {"lam": 0.25}
    entry = made["notebooks"]["01_first"]
    assert entry["outputs"]["results/01_first.json"]["sha256"] == files.file_hash(
        folder / "results" / "01_first.json"
    )
    assert entry["facts"]["weights_sha256"] == "ab" and entry["seconds"] > 0 and entry["peak_mib"] > 0
    assert {"commit", "versions", "machine"} <= made["provenance"].keys()
    assert sorted(p.name for p in (folder / "notebooks").iterdir()) == [
        *("01_first.html", "01_first.ipynb", "02_second.html", "02_second.ipynb")
    ]
    executed = (folder / "notebooks" / "01_first.ipynb").read_text()
    assert "encode 3" in executed and "encode 2\\r" not in executed
    assert "0.25" in (folder / "notebooks" / "02_second.html").read_text()
    assert "report:" in capsys.readouterr().out and (folder / "index.html").is_file()


@pytest.mark.series
def test_a_raising_cell_is_named_and_ends_the_series(world):
    notebook(
        world / "notebooks" / "01_first.ipynb",
        "a = 1",
        "# a comment\nlines = 'three'\nraise KeyError('no such')",
    )
    with pytest.raises(runner.NotebookFailed) as failure:
        run(world)
    message = str(failure.value)
    for part in (
        "01_first failed in code cell 4 of 4",
        "`lines = 'three'`",
        "KeyError: 'no such'",
        "---->",
        ".failed.",
    ):
        assert part in message
    assert status(world) == {"01_first": "failed"} and record(world)["status"] == "failed"
    copies = world / "outputs" / "glyphs-tiny" / "notebooks"
    assert sorted(p.name for p in copies.iterdir()) == ["01_first.failed.html", "01_first.failed.ipynb"]
    assert "failed" in (world / "outputs" / "glyphs-tiny" / "index.html").read_text()


@pytest.mark.series
def test_a_time_out_ends_every_process(world, monkeypatch):
    pid = world / "pid"
    stray, wait = STRAY.format(pid=str(pid)), "import time; time.sleep(600)"
    notebook(world / "notebooks" / "01_first.ipynb", stray, wait)

    class Clock:  # the limit has come when the last cell begins, however slow the machine is
        @staticmethod
        def monotonic():
            return time.monotonic() + 1e6 * pid.exists()

    monkeypatch.setattr(runner, "time", Clock)
    with pytest.raises(runner.NotebookFailed, match="in code cell 4 of 4, .*: time-out after 0.5 minutes"):
        run(world, timeout=0.5)
    assert status(world) == {"01_first": "failed"} and not alive(int(pid.read_text()))
    assert record(world)["notebooks"]["01_first"]["error"]["kind"] == "TimeOut"


@pytest.fixture(params=[pytest.param(True, marks=LINUX), False], ids=["forked", "plain"])
def fork(request, monkeypatch):
    """Both ways to make a kernel."""
    monkeypatch.setattr(kernel, "can_fork", lambda: request.param)
    return request.param


def go(folder, *code):
    progress = SimpleNamespace(cell=0, cells=2 + len(code))
    return runner.execute(
        notebook(folder / "n.ipynb", *code), folder / "out.ipynb", PARAMETERS, 120, progress
    )


@pytest.mark.series
@pytest.mark.slow
def test_every_kernel_is_as_jupyter_starts_it_and_knows_nothing_of_the_one_before(tmp_path, fork):
    asked = (
        "import matplotlib, os, sys\n"
        f"assert sys.executable == {sys.executable!r} and os.getcwd() == {str(config.ROOT)!r}\n"
        "assert matplotlib.get_backend().endswith('inline') and __name__ == '__main__'\n"
        "assert sys.stdin.read() == '' and os.environ['PYTHONHASHSEED'] == '0'\n"
        "assert os.getpgid(0) == os.getpid() and os.environ['OOD_RUNNER'] == '1'\n"
        "import multiprocessing\nassert multiprocessing.get_start_method(allow_none=True) is None"
    )
    loaded = f"import sys\nassert ('ood_utils.arrays' in sys.modules) is {fork}\n"
    spoil = (
        "from ood_utils import arrays\nassert not hasattr(arrays, 'mark')\narrays.mark = 1\nsys.path.clear()"
    )
    before = dict(os.environ)
    with kernel.environment(tmp_path, {"ood_utils.arrays", "no_such_module"}):
        for _ in range(1 + fork):
            assert go(tmp_path, loaded + asked, spoil, "print('said')") is None
            assert "said" in (tmp_path / "out.ipynb").read_text()
        mistake = go(tmp_path, "from ood_utils.errors import UserError\nraise UserError('no such; do so')")
    assert dict(os.environ) == before
    assert mistake["message"] == "no such; do so" and "tail" not in mistake  # it has no traceback


@pytest.mark.series
@pytest.mark.slow
def test_a_killed_kernel_is_named_leaves_nothing_and_the_next_notebook_runs(tmp_path, fork):
    pid = tmp_path / "pid"
    stray = STRAY.format(pid=str(pid))
    with kernel.environment(tmp_path, ()):
        error = go(tmp_path, stray + "import os\nos.kill(os.getpid(), 9)", "print('never')")
        assert error["kind"] == "DeadKernelError" and "the kernel was killed" in error["message"]
        assert (error["cell"], error["of"], error["line"]) == (3, 4, "import subprocess, sys")
        assert not alive(int(pid.read_text()))
        if fork:
            server = "import os\nos.kill(os.getppid(), 9)\nimport time; time.sleep(600)"
            assert go(tmp_path, server)["kind"] == "DeadKernelError"
        assert go(tmp_path, stray) is None and not alive(int(pid.read_text()))


@pytest.mark.series
@pytest.mark.slow
def test_a_runner_killed_with_9_takes_everything_with_it(tmp_path, fork):
    pid, stray = tmp_path / "pid", tmp_path / "stray"
    who = f"import os\nopen({str(pid)!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}} ')\n"
    notebook(tmp_path / "n.ipynb", STRAY.format(pid=str(stray)) + who + "import time; time.sleep(600)")
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom types import SimpleNamespace\n"
        f"from ood_utils.series import kernel, runner\nkernel.can_fork = lambda: {fork}\n"
        f"here, progress = Path({str(tmp_path)!r}), SimpleNamespace(cell=0, cells=3)\n"
        "with kernel.environment(here, ()):\n"
        f"    runner.execute(here / 'n.ipynb', here / 'o.ipynb', {PARAMETERS}, 99, progress)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(config.PACKAGE.parent)}
    killed = subprocess.Popen([sys.executable, script], cwd=tmp_path, env=environment)
    while not (pid.exists() and pid.read_text().endswith(" ")):
        assert killed.poll() is None
        time.sleep(0.1)
    below = [
        int(number) for number in [*pid.read_text().split(), stray.read_text()] if int(number) != killed.pid
    ]
    killed.kill()
    killed.wait()
    deadline = time.monotonic() + 30
    while any(map(alive, below)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, below))


@pytest.mark.series
@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path):
    (tmp_path / "pyproject.toml").touch()
    profiles = tmp_path / "notebooks" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / "glyphs.yaml").write_text((config.PROFILES / "glyphs.yaml").read_text())
    mark = tmp_path / "mark"
    notebook(tmp_path / "notebooks" / "01_first.ipynb", "print('quick')")
    wait = f"if not os.path.exists({str(mark)!r}):\n    open({str(mark)!r}, 'w')\n    time.sleep(600)"
    notebook(tmp_path / "notebooks" / "02_second.ipynb", f"import os, time\n{wait}")
    environment = {key: value for key, value in os.environ.items() if key != "OOD_OUTPUTS"}
    environment |= {"OOD_ROOT": str(tmp_path), "PYTHONPATH": str(config.PACKAGE.parent)}
    command = [sys.executable, "-m", "ood_utils", "run"]
    first = subprocess.Popen(
        command, env=environment, cwd="/", stderr=subprocess.PIPE, text=True,
        # a shell that starts its jobs in the background hands down an ignored SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not mark.exists() and first.poll() is None:
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=60)[1]
    assert said == "ood: interrupted; the same command takes the run up again\n" and first.returncode == 130
    assert status(tmp_path, "glyphs") == {"01_first": "done", "02_second": "interrupted"}
    call = "import sys\nfrom ood_utils.__main__ import main\nassert main(['run']) == 0\n"
    light = f"{call}assert 'torch' not in sys.modules"
    again = subprocess.run(
        [sys.executable, "-c", light], env=environment, cwd="/", capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert (
        "01_first: done already" in again.stdout
        and "02_second: started (interrupted last time" in again.stdout
    )
    assert status(tmp_path, "glyphs") == {"01_first": "done", "02_second": "done"}
    heavy = "[name for name in ('torch', 'pandas', 'papermill', 'nbconvert') if name in sys.modules]"
    idle = f"{call}assert not {heavy}, {heavy}"
    quick = subprocess.run(
        [sys.executable, "-c", idle], env=environment, cwd="/", capture_output=True, text=True
    )
    assert quick.returncode == 0 and quick.stdout.count("done already") == 2, quick.stderr


# --- what must run ---


def test_nothing_changed_runs_nothing(world, calls):
    folder = run(world)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    run(world)
    assert calls == ["01_first", "02_second"]
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}


def test_prose_may_change_code_may_not(world, calls):
    run(world)
    notebook(world / "notebooks" / "02_second.ipynb", SECOND, prose="# 02 - Other words\n\nmore of them")
    run(world)
    assert calls == ["01_first", "02_second"]
    notebook(world / "notebooks" / "02_second.ipynb", SECOND + "\nprint(1)")
    run(world)
    assert calls == ["01_first", "02_second", "02_second"]
    assert record(world)["notebooks"]["02_second"]["reason"] == "its code changed"


def test_the_module_decides_too_but_not_the_runner_s_own_files(world, calls):
    run(world)
    files.atomic_write(world / "package" / "series" / "report.py", "y = 1")
    files.atomic_write(world / "package" / "tools" / "reference.py", "y = 1")
    run(world)
    assert len(calls) == 2
    (world / "package" / "scores.py").write_text("x = 2\n")
    run(world)
    assert len(calls) == 4 and record(world)["notebooks"]["01_first"]["reason"] == "ood_utils changed"


def test_a_method_of_the_gallery_concerns_the_notebook_that_imports_it(world, calls):
    notebook(world / "notebooks" / "02_second.ipynb", "from ood_utils import gallery\n" + SECOND)
    run(world)
    files.atomic_write(world / "package" / "gallery" / "scores" / "mine.py", "y = 1")
    run(world)
    assert calls == ["01_first", "02_second", "02_second"]


def test_values_decide_too(world, calls):
    run(world)
    run(world, changes={"workers": 3})  # changes no result
    assert len(calls) == 2
    run(world, changes={"lam": 0.5})
    assert (
        len(calls) == 4
        and record(world)["notebooks"]["02_second"]["reason"] == "the profile's values changed"
    )


def test_versions_decide_too(world, calls, monkeypatch):
    run(world)
    monkeypatch.setattr(provenance, "versions", lambda: {"numpy": "9"})
    run(world)
    assert len(calls) == 4


def test_what_an_earlier_notebook_wrote_decides_for_the_later(world, calls, monkeypatch):
    run(world)
    changed = WRITES | {"01_first": {"results/01_first.json": '{"gap": 0.7}'}}
    stand_in(monkeypatch, calls, changed)
    run(world, only=["01"], force=True)
    assert record(world)["notebooks"]["02_second"]["stale"] == "files that it reads changed"
    assert record(world)["status"] == "partial"
    run(world)
    assert calls == ["01_first", "02_second", "01_first", "02_second"] and record(world)["status"] == "done"


def test_lost_or_changed_outputs_are_made_again(world, calls):
    folder = run(world)
    os.utime(folder / "tables" / "t.csv", (1, 1))  # a copy of the folder has other times and the same bytes
    run(world)
    assert len(calls) == 2
    (folder / "tables" / "t.csv").write_text("x\n2\n")
    run(world)
    (folder / "checkpoints" / "cma" / "model.bin").unlink()
    run(world)
    (folder / "notebooks" / "02_second.ipynb").unlink()
    run(world)
    assert calls == ["01_first"] + 4 * ["02_second"]


def test_the_user_s_files_decide_too(world, calls):
    images, other = world / "images", world / "other"
    for folder in (*(images / name for name in ("cat", "dog", "cow")), other):
        folder.mkdir(parents=True)
        for k in range(3):
            (folder / f"{k}.png").write_text(f"picture {k} of {folder.name}")
    changes = {"data": "folder", "data_root": str(images), "ood_roots": {"birds": str(other)}}
    changes |= {"smoke_test": True}
    run(world, changes=changes)
    run(world, changes=changes)
    assert len(calls) == 2
    (other / "3.png").write_text("a bird")
    run(world, changes=changes)
    assert len(calls) == 4


def test_the_executed_notebook_and_the_detector_are_outputs_too(world, calls, monkeypatch):
    writes = {"detector/card.json": "{}", "detector/text/class.bin": "rows"}
    stand_in(monkeypatch, calls, WRITES | {"02_second": WRITES["02_second"] | writes})
    folder = run(world)
    assert set(writes) <= set(record(world)["notebooks"]["02_second"]["outputs"])
    (folder / "detector/text/class.bin").unlink()
    run(world)
    assert (
        record(world)["notebooks"]["02_second"]["reason"]
        == "detector/text/class.bin is missing or was changed"
    )
    (folder / "detector/card.json").write_text("{")
    run(world)
    copy = folder / "notebooks/02_second.ipynb"
    copy.write_text(copy.read_text()[:100])
    run(world)
    assert (
        record(world)["notebooks"]["02_second"]["reason"]
        == "notebooks/02_second.ipynb is missing or was changed"
    )
    assert calls == ["01_first"] + 4 * ["02_second"] and record(world)["status"] == "done"


@pytest.mark.parametrize("path", ["tables/t.csv", "checkpoints/cma/model.bin", "notebooks/02_second.ipynb"])
def test_verify_notices_a_flipped_byte_whose_time_was_kept(world, calls, capsys, path):
    folder = run(world)
    stat, content = (folder / path).stat(), bytearray((folder / path).read_bytes())
    content[-1] ^= 1
    (folder / path).write_bytes(content)
    os.utime(folder / path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run(world)
    assert len(calls) == 2  # nobody looks into a file whose time and size are as recorded
    run(world, verify=True)
    assert calls[2:] == ["02_second"] and f"({path} is missing or was changed" in capsys.readouterr().out
    run(world, verify=True)
    assert len(calls) == 3 and capsys.readouterr().out.count("nothing changed, every output hashed") == 2


OLD = {"schema_version": 1, "notebooks": {"01_first": {"status": "done"}}}  # without inputs


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([], "run.json cannot be read .it holds no JSON object but a list.; delete it or use --force"),
        ("text", "holds no JSON object but a str"),
        ({"schema_version": 1}, "run.json is damaged .'notebooks': field required.; run again with --force"),
        ({"schema_version": 1, "notebooks": []}, "run.json is damaged .'notebooks'"),
        ({"schema_version": 1, "notebooks": {"01_first": 3}}, "damaged .'01_first of notebooks'"),
        (
            {"schema_version": 1, "notebooks": {"01_first": {}}},
            "damaged .'status of 01_first of notebooks': field",
        ),
        (OLD | {"changes": 3}, "damaged .'changes'"),
        *(
            (
                {"schema_version": 1, "notebooks": {"x": {"status": "done", "outputs": {path: {}}}}},
                "outputs of x",
            )
            for path in ("../../else", "tables/../../../else", "/etc/passwd", "C:/x", "")
        ),
    ],
)
def test_a_run_json_of_another_shape_is_one_sentence(world, calls, made, said):
    path = files.atomic_write(world / "outputs" / "glyphs-tiny" / "run.json", json.dumps(made))
    for call in (run, lambda _: report.build(path.parent)):
        with pytest.raises(UserError, match=said) as caught:
            call(world)
        assert "\n" not in str(caught.value)
    run(world, force=True)
    assert len(calls) == 2 and record(world)["status"] == "done"


def test_an_entry_that_does_not_say_from_what_it_was_made_is_made_again(world, calls):
    files.atomic_write(world / "outputs" / "glyphs-tiny" / "run.json", json.dumps(OLD))
    assert report.build(world / "outputs" / "glyphs-tiny")
    run(world)
    assert calls == ["01_first", "02_second"]
    assert record(world)["notebooks"]["01_first"]["reason"] == "run.json does not say from what it was made"


def test_only_and_force(world, calls):
    run(world, only=["02"])
    assert calls == ["02_second"] and record(world)["status"] == "partial"
    run(world)
    run(world, only=["02_second.ipynb", "01_first"], force=True)
    assert calls == ["02_second", "01_first", "02_second", "01_first", "02_second"]


def test_what_an_older_version_wrote_goes_but_checkpoints_stay(world, calls, monkeypatch):
    folder = run(world)
    stand_in(monkeypatch, calls, {"02_second": {"tables/new.csv": "y\n"}})
    run(world, only=["02"], force=True)
    assert sorted(p.name for p in (folder / "tables").iterdir()) == ["new.csv"]
    outputs = record(world)["notebooks"]["02_second"]["outputs"]
    assert set(outputs) == {"tables/new.csv", "checkpoints/cma/model.bin"}


def test_a_failure_keeps_what_was_there(world, calls, monkeypatch):
    folder = run(world)
    stand_in(monkeypatch, calls, {}, {"kind": "X", "message": "it broke"})
    with pytest.raises(runner.NotebookFailed, match="01_first failed: it broke"):
        run(world, force=True)
    assert (folder / "figures" / "a.csv").is_file() and (folder / "notebooks" / "01_first.ipynb").is_file()
    assert status(world) == {"01_first": "failed", "02_second": "done"}
    stand_in(monkeypatch, calls, WRITES)
    run(world)  # the same results again: the second has nothing to do
    assert calls[2:] == ["01_first", "01_first"] and record(world)["status"] == "done"


def test_checkpoints_of_a_failed_execution_are_kept_and_stay_its_own(world, calls, monkeypatch):
    run(world, only=["01"])
    written = {"02_second": {"checkpoints/cma/model.bin": "w", "checkpoints/lane.log": "x"}}
    stand_in(monkeypatch, calls, written, {"kind": "X", "message": "it broke"})
    with pytest.raises(runner.NotebookFailed):
        run(world)
    trained = dict(WRITES, **{"02_second": {"results/02_second.json": "{}"}})  # and does not train again
    stand_in(monkeypatch, calls, trained)
    run(world, only=["01"], force=True)
    assert set(record(world)["notebooks"]["01_first"]["outputs"]) == set(WRITES["01_first"])
    run(world)
    outputs = record(world)["notebooks"]["02_second"]["outputs"]
    assert set(outputs) == {"results/02_second.json", "checkpoints/cma/model.bin"}


def test_checkpoints_of_a_runner_that_was_killed_are_kept(world, calls, monkeypatch):
    folder = run(world)
    made = record(world)
    made["notebooks"]["02_second"] = {"status": "running"}
    store.write_record(folder, made)
    stand_in(monkeypatch, calls, {"02_second": {"results/02_second.json": "{}"}})
    run(world)
    assert "checkpoints/cma/model.bin" in record(world)["notebooks"]["02_second"]["outputs"]


@pytest.mark.parametrize(("left", "reason"), [("running", "cut off"), ("interactive", "by hand")])
def test_what_only_the_runner_can_say_is_not_believed(world, calls, left, reason):
    folder = run(world)
    made = record(world)
    made["notebooks"]["02_second"]["status"] = left
    store.write_record(folder, made)
    run(world)
    assert calls == ["01_first", "02_second", "02_second"]
    assert reason in record(world)["notebooks"]["02_second"]["reason"]


# --- what is said meanwhile ---


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    told = progress.Progress("02_second", 4, 90, "not run yet")
    told.cell = 4
    told.close("done")
    said = capsys.readouterr()
    assert ("cell 4/4, done in 00:0" in said.err) is terminal
    lines = ["02_second: started (not run yet, about 01:30 expected)", "02_second: done in 00:00"]
    assert said.out.splitlines() == ([] if terminal else lines)


# --- refused before a kernel starts ---


@pytest.fixture
def no_kernel(monkeypatch):
    monkeypatch.setattr(runner, "surroundings", lambda *_: pytest.fail("a kernel was started"))


@pytest.mark.usefixtures("no_kernel")
class TestRefused:
    def test_unknown_notebook(self, world):
        with pytest.raises(UserError, match="unknown notebook '01_fist'; did you mean 01_first"):
            run(world, only=["01_fist"])

    def test_no_notebooks(self, tmp_path):
        with pytest.raises(UserError, match=r"no notebook 0\*\.ipynb"):
            state.find(tmp_path)

    def test_a_file_that_is_no_notebook(self, world):
        (world / "notebooks" / "03_third.ipynb").write_text("{}")
        with pytest.raises(UserError, match=r"03_third\.ipynb is not a notebook"):
            run(world)

    @pytest.mark.parametrize("parameters", ["lam = 1", "profile = 'x'\nrun = ''", "def f(:"])
    def test_a_notebook_with_other_parameters(self, world, parameters):
        notebook(world / "notebooks" / "02_second.ipynb", parameters=parameters)
        with pytest.raises(UserError, match="02_second.*'parameters' that sets profile, run and changes"):
            run(world)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"lam": 2}, "lam = 2"),
            ({"data": "folder"}, "data_root = '' is no folder"),
            ({"data": "folder", "data_root": "/"}, "GlyphCLIP knows only glyphs"),
            (
                {"data": "folder", "data_root": "/", "ood_roots": {"birds": "/no"}},
                "birds = '/no' is no folder",
            ),
            ({"corpus": "/no/dict"}, "missing: corpus /no/dict"),
        ],
    )
    def test_wrong_values_and_missing_folders(self, world, changes, words):
        with pytest.raises(UserError, match=words):
            run(world, changes=changes)
        assert not (world / "outputs").exists()

    def test_a_folder_of_another_version(self, world):
        old = files.atomic_write(world / "outputs" / "glyphs-tiny" / "run.json", '{"schema_version": 0}')
        with pytest.raises(UserError, match=r"another version.*--force"):
            run(world)
        assert json.loads(old.read_text()) == {"schema_version": 0}

    def test_outputs_that_cannot_be_written(self, world):
        (world / "outputs").write_text("a file")
        with pytest.raises(UserError, match="outputs folder .* is not writable"):
            run(world)

    def test_a_full_disk(self, world, monkeypatch):
        monkeypatch.setattr(state.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
        with pytest.raises(UserError, match="only 1 MiB are free"):
            run(world)

    def test_a_run_at_work(self, world):
        fcntl = pytest.importorskip("fcntl")
        folder = world / "outputs" / "glyphs-tiny"
        folder.mkdir(parents=True)
        with open(folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(UserError, match="another run is at work"):
                run(world)


def test_force_begins_a_folder_of_another_version_anew(world, calls):
    files.atomic_write(
        world / "outputs" / "glyphs-tiny" / "run.json", '{"schema_version": 0, "notebooks": {}}'
    )
    run(world, force=True)
    assert len(calls) == 2 and record(world)["schema_version"] == store.SCHEMA_VERSION


def test_a_disk_that_fills_up_is_one_sentence(world, calls, monkeypatch):
    run(world)
    before = record(world)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match="No space left on device; free space"):
            run(world, force=True)
    assert record(world) == before
    run(world)
    assert len(calls) == 2


def test_tree_hash_sees_names_sizes_and_times(tmp_path):
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "1.png"
    seen = set()
    for text in ("one", "other"):
        file.write_text(text)
        seen.add(state.tree_hash(tmp_path))
    file.rename(tmp_path / "a" / "2.png")
    seen.add(state.tree_hash(tmp_path))
    (tmp_path / "a" / "circle").symlink_to(tmp_path)  # links are part of it, wherever they lead
    for name in ("gone.png", "itself.png"):
        (tmp_path / "a" / "itself.png").unlink(missing_ok=True)
        (tmp_path / "a" / "itself.png").symlink_to(name)
        seen.add(state.tree_hash(tmp_path))
    assert len(seen) == 5 and state.tree_hash(tmp_path) in seen
    assert state.tree_hash(tmp_path / "a" / "2.png") != state.tree_hash(Path(__file__))

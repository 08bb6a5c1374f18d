"""One notebook in a process: forked from the nursery or started plainly, what it sees and what is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from fakes import notebook

from ood_utils import config, kernels
from ood_utils.execution import Executor

PARAMETERS = {"profile": "glyphs-tiny", "run": "", "changes": {}}
WHO = "import os\nopen({pid!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}}')\n"

linux = pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux alone")
both = pytest.mark.parametrize("fork", [pytest.param(True, marks=linux), False], ids=["forked", "plain"])


def go(executor, folder, *code):
    return executor.execute(notebook(folder / "n.ipynb", *code), folder / "out.ipynb", PARAMETERS, 120)


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.series
@both
def test_every_kernel_is_as_jupyter_starts_it_and_knows_nothing_of_the_one_before(
    tmp_path, monkeypatch, fork
):
    monkeypatch.setattr(kernels, "can_fork", lambda: fork)
    asked = (
        "import matplotlib, os, sys\n"
        f"assert sys.executable == {sys.executable!r} and os.getcwd() == {str(config.ROOT)!r}\n"
        "assert matplotlib.get_backend().endswith('inline') and __name__ == '__main__' and sys.stdin.read() == ''\n"
        "assert os.getpgid(0) == os.getpid() and os.environ['PYTHONHASHSEED'] == '0'"
    )
    loaded = f"import sys\nassert ('ood_utils.words' in sys.modules) is {fork}\n"
    with Executor(tmp_path, ["ood_utils.words", "no_such_module"]) as executor:
        for _ in range(2):
            spoil = "from ood_utils import words\nassert not hasattr(words, 'mark')\nwords.mark = 1\nsys.path.clear()"
            assert go(executor, tmp_path, loaded + asked, spoil, "print('said')")[0] is None
            assert "said" in (tmp_path / "out.ipynb").read_text()
        error, peak = go(executor, tmp_path, "import no_such_module")
        mistake, _ = go(
            executor, tmp_path, "from ood_utils.errors import UserError\nraise UserError('no such; do so')"
        )
    assert error["kind"] == "ModuleNotFoundError" and error["tail"] and peak > 10
    assert mistake["message"] == "no such; do so" and not mistake["tail"]  # a user's mistake has no traceback


@pytest.mark.series
@both
def test_a_killed_process_is_named_and_the_next_notebook_runs(tmp_path, monkeypatch, fork):
    monkeypatch.setattr(kernels, "can_fork", lambda: fork)
    with Executor(tmp_path) as executor:
        error, _ = go(executor, tmp_path, "import os\nos.kill(os.getppid(), 9)\nimport time; time.sleep(600)")
        assert error["kind"] == "ProcessDied" and "status -9" in error["message"] and error["cell"] == 3
        error, _ = go(executor, tmp_path, "import os\nos.kill(os.getpid(), 9)")
        assert error["kind"] == "DeadKernelError"
        if fork:
            nursery = "import os, psutil\npsutil.Process(os.getppid()).parent().kill()\nimport time; time.sleep(600)"
            assert go(executor, tmp_path, nursery)[0]["kind"] == "ProcessDied"
        assert go(executor, tmp_path, "1 + 1")[0] is None


@pytest.mark.series
@both
def test_a_runner_killed_with_9_takes_everything_with_it(tmp_path, fork):
    pid = tmp_path / "pid"
    path = notebook(tmp_path / "n.ipynb", WHO.format(pid=str(pid)) + "import time; time.sleep(600)")
    script = (
        "from pathlib import Path; from ood_utils import kernels; from ood_utils.execution import Executor\n"
        f"kernels.can_fork = lambda: {fork}\n"
        f"with Executor(Path({str(tmp_path)!r})) as e: e.execute(Path({str(path)!r}), Path({str(tmp_path / 'o.ipynb')!r}), {PARAMETERS}, 99)"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": "."}
    )
    while not (pid.exists() and " " in pid.read_text()):
        assert runner.poll() is None
        time.sleep(0.1)
    below = [int(number) for number in pid.read_text().split()] + [
        p.pid for p in psutil.Process(runner.pid).children()
    ]
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    deadline = time.monotonic() + 30
    while any(map(alive, below)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, below))


@pytest.mark.series
def test_processes_that_a_notebook_leaves_end_with_it(tmp_path):
    pid = tmp_path / "pid"
    leave = "import subprocess, sys\nc = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
    with Executor(tmp_path) as executor:
        note = f"start_new_session=True)\nopen({str(pid)!r}, 'w').write(str(c.pid))"
        assert go(executor, tmp_path, leave + note)[0] is None
        assert not alive(int(pid.read_text()))
        assert go(executor, tmp_path, "1 + 1")[0] is None

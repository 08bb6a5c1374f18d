"""Kernels of a series: this interpreter, an environment of their own, and an end that leaves nothing running.

Importing torch, open_clip and scikit-learn takes as long as a short notebook's own work. So where it can, a
series has one process that imports them once, the fork server of ``multiprocessing``, and each kernel is its
fork, as fresh as a new interpreter but for those modules. Linux without a GPU (CUDA does not survive a fork);
elsewhere kernels start plainly and nothing else differs.
"""

from __future__ import annotations

import multiprocessing.context
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

from .. import config, processes

SERVER = forkserver._forkserver  # private, but Python has no other way to end it


def can_fork() -> bool:
    """Whether kernels may be forked here: Linux without an NVIDIA device."""
    return sys.platform == "linux" and not Path("/dev/nvidiactl").exists()


@contextmanager
def environment(outputs: Path, modules: Iterable[str]) -> Iterator[None]:
    """What kernels find around them, set in os.environ; at the end it is as before and no process is left.

    modules: what the notebooks import, loaded once for all of them where kernels can be forked.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="ood-", ignore_cleanup_errors=True) as aside:
        paths = [str(config.PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        if can_fork():
            resource_tracker.ensure_running()  # before the token is there: it lives as long as the runner
        os.environ |= {
            "JUPYTER_RUNTIME_DIR": f"{aside}/runtime",
            "IPYTHONDIR": f"{aside}/ipython",  # nothing of the user's IPython
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as every kernel sets it
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONHASHSEED": "0",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm.auto of others would like ipywidgets
            "OOD_ROOT": str(config.ROOT),
            "OOD_OUTPUTS": str(outputs),
            "OOD_RUNNER": "1",
            "OOD_RUNNER_PID": str(os.getpid()),
            "OOD_TOKEN": uuid.uuid4().hex,
            "OOD_PRELOAD": " ".join(sorted(modules)),
        }
        try:
            if can_fork():
                forkserver.set_forkserver_preload([f"{__package__}.preload"])
                forkserver.ensure_running()
            yield
        finally:
            end_marked()
            if SERVER._forkserver_pid:
                os.kill(SERVER._forkserver_pid, signal.SIGKILL)  # it may still be importing
            SERVER._stop()
            os.environ.clear()
            os.environ |= before


def end_marked(but_server: bool = True) -> None:
    """End every process with this series' token, whoever its parent is by now; not this one or the server."""
    spared = (os.getpid(), SERVER._forkserver_pid if but_server else None)
    for _ in range(3):  # one may have been starting another
        marked = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):  # gone, or another user's
                token = process.environ().get("OOD_TOKEN")
                if token == os.environ["OOD_TOKEN"] and process.pid not in spared:
                    marked.append(process)
        if not marked:
            return
        for act in (psutil.Process.terminate, psutil.Process.kill):
            for process in marked:
                with suppress(psutil.Error):
                    act(process)
            _, marked = psutil.wait_procs(marked, timeout=3)


class _Process(getattr(multiprocessing.context, "ForkServerProcess", multiprocessing.Process)):
    """A fork of the server, with what jupyter_client uses of subprocess.Popen."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class _Fork(LocalProvisioner):
    async def launch_kernel(self, cmd: list[str], **words: Any) -> Any:
        self.cwd = str(words.get("cwd") or os.getcwd())
        self.process = _Process(target=_become, args=(cmd[2:], words["env"], self.cwd))
        with processes.main_hidden():
            self.process.start()
        self.pid = self.pgid = self.process.pid
        return self.connection_info


class Manager(AsyncKernelManager):
    """Makes kernels of this very interpreter, whatever kernels are installed and a notebook asks for."""

    def __init__(self, **words: Any) -> None:
        super().__init__(**words)
        if can_fork():
            self.provisioner = _Fork(kernel_spec=self.kernel_spec, parent=self)

    @property
    def kernel_spec(self) -> KernelSpec:
        """The one kernel there is."""
        command = [
            sys.executable,
            "-m",
            "ood_utils.series.kernel",
            "--log-level=50",
            "-f",
            "{connection_file}",
        ]
        return KernelSpec(argv=command, display_name="python3", language="python")


def _become(argv: list[str], environment: dict[str, str], folder: str) -> None:
    """In a fork: become the kernel, in a process group of its own so that interrupts reach it alone."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    sys.argv = argv
    _serve()


def _serve() -> None:
    """Be a kernel until it is told to end or the runner is gone, however it went: then nothing stays."""
    os.environ.pop("JPY_PARENT_PID", None)  # ipykernel's own watch would end the kernel alone
    threading.Thread(target=_follow, daemon=True).start()
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance()


def _follow() -> None:
    with suppress(psutil.NoSuchProcess):
        runner = psutil.Process(int(os.environ["OOD_RUNNER_PID"]))
        while runner.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    end_marked(but_server=False)
    os._exit(1)


if __name__ == "__main__":
    _serve()

"""Kernels of a series: children of this process that end with it, in an environment of their own.

Importing torch, open_clip and scikit-learn takes as long as a short notebook's own work. So where it can, a
series has one process that imports them once, the fork server of ``multiprocessing``, and each kernel is its
fork, as fresh as a new interpreter but for those modules. Linux without a GPU (CUDA does not survive a fork);
elsewhere kernels are spawned and nothing else differs.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import SimpleNamespace
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
    paths = [str(config.PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory(prefix="ood-", ignore_cleanup_errors=True) as aside:
        os.environ |= {
            "JUPYTER_RUNTIME_DIR": f"{aside}/runtime",
            "IPYTHONDIR": f"{aside}/ipython",  # nothing of the user's IPython
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as every kernel sets it
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONHASHSEED": "0",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "OOD_ROOT": str(config.ROOT),
            "OOD_OUTPUTS": str(outputs),
            "OOD_RUNNER": "1",
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


def end_marked() -> None:
    """End every process with this series' token, whoever its parent is, but this one and its helpers."""
    spared = (os.getpid(), SERVER._forkserver_pid, resource_tracker._resource_tracker._pid)
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


class _Child(LocalProvisioner):
    """Starts the kernel as a child of ``multiprocessing`` and shows jupyter_client a subprocess.Popen."""

    async def launch_kernel(self, cmd: list[str], **words: Any) -> Any:
        context = multiprocessing.get_context("forkserver" if can_fork() else "spawn")
        child = context.Process(target=_become, args=(cmd, os.getcwd()))
        with processes.main_hidden():
            child.start()
        calls = {"poll": lambda: child.exitcode, "wait": child.join, "kill": child.kill}
        calls |= {"terminate": child.terminate, "send_signal": lambda number: os.kill(child.pid, number)}
        self.process = SimpleNamespace(stdin=None, stdout=None, stderr=None, win32_interrupt_event=0, **calls)
        self.pid = self.pgid = child.pid
        return self.connection_info


class Manager(AsyncKernelManager):
    """Makes kernels of this very interpreter, whatever kernels are installed and a notebook asks for."""

    kernel_spec = KernelSpec(argv=["kernel", "--log-level=50", "-f", "{connection_file}"], language="python")

    def __init__(self, **words: Any) -> None:
        super().__init__(**words)
        self.provisioner = _Child(kernel_spec=self.kernel_spec, parent=self)


def _become(argv: list[str], folder: str) -> None:
    """In the child: be a kernel in a process group of its own, so that interrupts reach it alone."""
    if hasattr(os, "setsid"):
        os.setsid()
    os.chdir(folder)
    sys.argv = argv
    multiprocessing.set_start_method(None, force=True)  # the notebook's own choice, not this child's
    threading.Thread(target=_follow, daemon=True).start()
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance()


def _follow() -> None:
    """Once the runner is gone, however it went, nothing stays."""
    multiprocessing.parent_process().join()
    end_marked()
    os._exit(1)

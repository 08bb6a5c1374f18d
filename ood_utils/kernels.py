"""Processes that a series' notebooks run in: forked from one that has imported what the notebooks import.

Importing torch, torchvision, open_clip and scikit-learn takes as long as a short notebook's own work. So the runner
starts one process a series, the nursery, which imports it once; of every notebook's papermill and kernel it then
makes a fork, as fresh as a new interpreter but for those modules. Linux only, and only where no GPU is (CUDA does
not survive a fork): elsewhere the runner starts plain processes and nothing else differs.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

Work = Callable[[Path, type], None]  # executes the notebook that a folder describes, with a kernel manager


def can_fork() -> bool:
    """Whether notebooks may be forked here: Linux without an NVIDIA device."""
    return sys.platform == "linux" and not Path("/dev/nvidiactl").exists()


class Nursery:
    """The runner's end: starts the process, asks it for one fork at a time and hears how that one ended."""

    def __init__(self, command: list[str], words: dict[str, Any]) -> None:
        """`command` calls `nurse`; `words` (environment, directory, where errors go) are subprocess.Popen's."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        self.process = subprocess.Popen(command, start_new_session=True, **pipes, **words)
        self.pid = self.process.pid
        self.returncode: int | None = None

    def start(self, folder: Path) -> Nursery:
        """Have the nursery's work done on `folder` in a fork. Returns itself."""
        self.returncode = None
        self.process.stdin.write(f"{folder}\n".encode())
        return self

    def wait(self, timeout: float | None = None) -> int | None:
        """The fork's exit status, as subprocess gives it (-9: killed), or None when it still runs after `timeout` s."""
        if self.returncode is None and select.select([self.process.stdout], [], [], timeout)[0]:
            line = self.process.stdout.readline()
            self.returncode = int(line) if line else self.process.wait()
        return self.returncode

    def poll(self) -> int | None:
        """The fork's exit status, or None while it runs."""
        return self.wait(0)

    def close(self) -> None:
        """End the nursery; a fork at work is the caller's to end."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def nurse(modules: Iterable[str], work: Work) -> None:
    """The nursery itself: import, then fork for every folder named on standard input, one after the other."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what an import prints is no answer
    for name in ("papermill", "psutil", "ipykernel.kernelapp", *modules):
        with suppress(Exception):  # the notebook that needs it will say what is wrong with it
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page that it looks at
    while folder := sys.stdin.readline().rstrip("\n"):
        pid = os.fork()
        if pid == 0:
            os.close(answers)
            return _papermill(Path(folder), work)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(answers, f"{status}\n".encode())
    return None


def _papermill(folder: Path, work: Work) -> None:
    """In a fork: set a kernel's process aside while everything is still quiet, then execute the notebook."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        return _kernel(reading)
    os.close(reading)
    return work(folder, kernel_manager(pid, writing))


def _kernel(reading: int) -> None:
    """In a fork of the fork: become the kernel when told its command, directory and environment."""
    with open(reading, "rb") as pipe:
        told = json.loads(pipe.read() or "null")
    if told is None:  # the notebook's process ended before it needed a kernel
        return
    os.setsid()
    os.chdir(told["cwd"])
    os.environ.clear()
    os.environ.update(told["env"])
    sys.argv = told["argv"]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


class _Forked:
    """What jupyter_client uses of subprocess.Popen, for a child made by os.fork."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        return self._reap(0)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def kernel_manager(pid: int, writing: int) -> type:
    """A kernel manager for nbclient whose kernel is the waiting process `pid`, told what it is by `writing`."""
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning import LocalProvisioner

    class Handover(LocalProvisioner):
        async def launch_kernel(self, cmd: list[str], **words: Any) -> Any:
            environment = words["env"] | {"JPY_PARENT_PID": str(os.getpid())}
            told = {"argv": cmd[2:], "cwd": str(words.get("cwd") or os.getcwd()), "env": environment}
            with open(writing, "w") as pipe:  # cmd: python -m ipykernel_launcher -f FILE
                json.dump(told, pipe)
            self.process, self.pid, self.pgid, self.cwd = _Forked(pid), pid, pid, told["cwd"]
            return self.connection_info

    class Manager(AsyncKernelManager):
        def __init__(self, **words: Any) -> None:
            super().__init__(**words)
            self.provisioner = Handover(kernel_spec=self.kernel_spec, parent=self)

    return Manager

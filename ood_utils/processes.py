"""Child processes that start fast, end with their parent, and leave nothing behind."""

import multiprocessing
import os
import sys
import threading
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import BaseContext

import psutil


def forkserver(*preload: str) -> BaseContext:
    """Context whose children are forks of one server that has imported these modules; "spawn" on Windows.

    Third-party modules only: the server may not find this package. It keeps the modules of its first use.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


@contextmanager
def main_hidden() -> Iterator[None]:
    """Children started inside do not import the caller's script, which then needs no guard for that."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def end_with_parent() -> None:
    """End this child as soon as the process that asked for it is gone, however it went (kill -9 too)."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def end_children(pids: Iterable[int]) -> None:
    """Kill these processes and all below them, and wait until they are gone."""
    doomed = []
    for pid in pids:
        with suppress(psutil.Error):
            doomed += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in doomed:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(doomed, timeout=3)

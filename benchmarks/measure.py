"""Clocks and memory meters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import psutil

GB = 1e9


def seconds(function: Callable[[], object], repeat: int = 3, device: str = "cpu") -> float:
    """Shortest wall-clock time of ``repeat`` calls, the device's queue included."""
    times = []
    for _ in range(repeat):
        synchronise(device)
        began = time.perf_counter()
        function()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return min(times)


def side_by_side(*functions: Callable[[], object], rounds: int = 3, device: str = "cpu") -> list[float]:
    """Shortest time of each, called in turn, so that a busy minute of the machine hits them all."""
    times = [[seconds(function, 1, device) for function in functions] for _ in range(rounds)]
    return [min(column) for column in zip(*times, strict=True)]


def synchronise(device: str) -> None:
    """Wait until a CUDA device has done what it was asked."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def tree_memory(process: psutil.Process) -> int:
    """Bytes resident of a process and its descendants; memory that several share is counted once."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            facts = one.memory_full_info()
            total += getattr(facts, "pss", facts.rss)
        except psutil.Error:  # it ended meanwhile
            continue
    return total


class Peak(AbstractContextManager["Peak"]):
    """Most memory used above that in use on entry, ``.gb``: of the device on CUDA, else of this process."""

    def __init__(self, device: str = "cpu") -> None:
        self.cuda, self.gb = device.startswith("cuda"), 0.0
        self._process, self._done = psutil.Process(), threading.Event()

    def __enter__(self) -> Peak:
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
            return self
        self._start = self._most = self._process.memory_info().rss
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._most = max(self._most, self._process.memory_info().rss)

    def __exit__(self, *failure: object) -> None:
        if self.cuda:
            import torch

            self._most = torch.cuda.max_memory_allocated()
        else:
            self._done.set()
            self._watcher.join()
        self.gb = (self._most - self._start) / GB


def ceiling(device: str, half: bool) -> float:
    """FLOP/s of the device's best matrix product in bf16 or float32, measured now on random data."""
    import torch

    size, dtype = (8192 if device.startswith("cuda") else 2048), (torch.bfloat16 if half else torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    times = 10 if device.startswith("cuda") else 2
    product = lambda: [torch.mm(a, b, out=out) for _ in range(times)]  # noqa: E731
    product()
    return times * 2 * size**3 / seconds(product, 5, device)

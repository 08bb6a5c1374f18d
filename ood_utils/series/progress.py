"""What a runner says while a notebook is at work, and the memory that it takes meanwhile."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .state import Notebook


class Progress:
    """One live line per notebook on a terminal; elsewhere a line at the start, every 30 s, and at the end.

    A thread of its own keeps the clock going; ``peak`` is the most memory seen, in MiB, of this process and
    all below it.
    """

    def __init__(self, notebook: Notebook, expected: float, reason: str) -> None:
        """`expected`: seconds that the notebook should take, 0 when not known."""
        self.name, self.expected, self.begun = notebook.name, expected, time.monotonic()
        self.said, self.cell, self.of, self.peak, self.bar = self.begun, 0, len(notebook.code), 0, None
        if sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{desc} |{bar:24}| cell {n_fmt}/{total_fmt}{postfix}"
            width = min(shutil.get_terminal_size((100, 24)).columns, 120)  # some say that they have no size
            self.bar = tqdm(
                total=self.of, desc=f"{self.name} ({reason})", bar_format=layout, ncols=width, nrows=9
            )
        else:
            about = f", about {_clock(expected)} expected" if expected else ""
            print(f"{self.name}: started ({reason}{about})", flush=True)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def show(self, cell: int, of: int) -> None:
        """Note the code cell at work."""
        self.cell, self.of = cell, of

    def _follow(self) -> None:
        turn = 0
        while not self.ended.wait(0.5):
            if turn % 4 == 0:
                self.peak = max(self.peak, _memory())
            turn += 1
            self._tell()

    def _tell(self) -> None:
        spent = time.monotonic() - self.begun
        left = f", about {_clock(self.expected - spent)} left" if self.expected > spent else ""
        if self.bar is not None:
            self.bar.n, self.bar.total = max(self.cell - 1, 0), self.of
            self.bar.set_postfix_str(f"{_clock(spent)}{left}")
        elif time.monotonic() - self.said >= 30:
            self.said = time.monotonic()
            print(f"{self.name}: cell {self.cell}/{self.of}, {_clock(spent)}{left}", flush=True)

    def close(self, word: str) -> None:
        """End the line with the notebook's fate."""
        self.ended.set()
        self.thread.join()
        spent = _clock(time.monotonic() - self.begun)
        if self.bar is not None:
            self.bar.n = self.bar.total if word == "done" else self.bar.n
            self.bar.set_postfix_str(f"{word} in {spent}")
            self.bar.close()
        else:
            print(f"{self.name}: {word} in {spent}", flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _memory() -> int:
    """MiB of this process and all below it; shared pages count once where the system tells (Linux)."""
    import psutil

    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total // 2**20

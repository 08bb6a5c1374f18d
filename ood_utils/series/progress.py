"""What a runner says while a notebook is at work, and the memory that it takes meanwhile."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from contextlib import suppress

import psutil
from tqdm import tqdm


class Progress(threading.Thread):
    """One live line per notebook on a terminal; elsewhere a line at the start, every 30 s, and at the end.

    ``cell`` (set by the runner) and ``cells``: the code cell at work, and how many there are. ``peak``: the
    most memory seen, in MiB, of this process and all below it.
    """

    def __init__(self, name: str, cells: int, expected: float, reason: str) -> None:
        """`expected`: seconds that the notebook should take, 0 when not known. `reason`: why it runs."""
        super().__init__(daemon=True)
        self.title, self.cell, self.cells, self.expected, self.peak = name, 0, cells, expected, 0
        self.begun, self.ended, self.bar = time.monotonic(), threading.Event(), None
        if sys.stderr.isatty():
            layout = "{desc} |{bar:24}| cell {n_fmt}/{total_fmt}{postfix}"
            width = min(shutil.get_terminal_size((100, 24)).columns, 120)  # some say that they have no size
            self.bar = tqdm(total=cells, desc=f"{name} ({reason})", bar_format=layout, ncols=width, nrows=9)
        else:
            about = f", about {_clock(expected)} expected" if expected else ""
            print(f"{name}: started ({reason}{about})", flush=True)
        self.start()

    def run(self) -> None:
        """Twice a second until the end: the clock, and at times the memory."""
        turn = 0
        while not self.ended.wait(0.5):
            if turn % 4 == 0:
                self.peak = max(self.peak, _memory())
            turn += 1
            spent = time.monotonic() - self.begun
            left = f", about {_clock(self.expected - spent)} left" if self.expected > spent else ""
            if self.bar is not None:
                self.bar.n, self.bar.total = max(self.cell - 1, 0), self.cells
                self.bar.set_postfix_str(f"{_clock(spent)}{left}")
            elif turn % 60 == 0:
                print(f"{self.title}: cell {self.cell}/{self.cells}, {_clock(spent)}{left}", flush=True)

    def close(self, word: str) -> None:
        """End the line with the notebook's fate."""
        self.ended.set()
        self.join()
        spent = _clock(time.monotonic() - self.begun)
        if self.bar is None:
            print(f"{self.title}: {word} in {spent}", flush=True)
            return
        self.bar.n = self.bar.total if word == "done" else self.bar.n
        self.bar.set_postfix_str(f"{word} in {spent}")
        self.bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _memory() -> int:
    """MiB of this process and all below it; shared pages count once where the system tells (Linux)."""
    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total // 2**20

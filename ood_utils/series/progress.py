"""What a runner says while a notebook is at work, and the memory that it takes meanwhile."""

import shutil
import threading
import time
from contextlib import suppress

import psutil
from tqdm import tqdm

clock = tqdm.format_interval  # seconds -> "1:02:03"


class Progress(threading.Thread):
    """One live line per notebook on a terminal; elsewhere a line at the start, every 30 s, and at the end.

    ``cell`` (set by the runner) and ``cells``: the code cell at work, and how many there are. ``peak``: the
    most memory seen, in MiB, of this process and all below it.
    """

    def __init__(self, name: str, cells: int, expected: float, reason: str) -> None:
        """`expected`: seconds that the notebook should take, 0 when not known. `reason`: why it runs."""
        super().__init__(daemon=True)
        self.title, self.cell, self.cells, self.expected, self.peak = name, 0, cells, expected, 0
        self.begun, self.ended = time.monotonic(), threading.Event()
        layout = "{desc} |{bar:24}| cell {n_fmt}/{total_fmt}{postfix}"
        width = min(shutil.get_terminal_size((100, 24)).columns, 120)  # some say that they have no size
        terminal = {"bar_format": layout, "ncols": width, "nrows": 9, "disable": None}
        self.bar = tqdm(total=cells, desc=f"{name} ({reason})", **terminal)
        about = f", about {clock(expected)} expected" if expected else ""
        self._print(f"started ({reason}{about})")
        self.start()

    def _print(self, words: str) -> None:
        if self.bar.disable:  # no terminal
            print(f"{self.title}: {words}", flush=True)

    def run(self) -> None:
        """Twice a second until the end: the clock, and at times the memory."""
        turn = 0
        while not self.ended.wait(0.5):
            if turn % 4 == 0:
                self.peak = max(self.peak, _memory())
            turn += 1
            spent = time.monotonic() - self.begun
            left = f", about {clock(self.expected - spent)} left" if self.expected > spent else ""
            self.bar.n = max(self.cell - 1, 0)
            self.bar.set_postfix_str(f"{clock(spent)}{left}")
            if turn % 60 == 0:
                self._print(f"cell {self.cell}/{self.cells}, {clock(spent)}{left}")

    def close(self, word: str) -> None:
        """End the line with the notebook's fate."""
        self.ended.set()
        self.join()
        fate = f"{word} in {clock(time.monotonic() - self.begun)}"
        self.bar.n = self.cells if word == "done" else self.bar.n
        self.bar.set_postfix_str(fate)
        self._print(fate)
        self.bar.close()  # a closed bar looks as if there were no terminal


def _memory() -> int:
    """MiB of this process and all below it; shared pages count once where the system tells (Linux)."""
    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total // 2**20

"""Kills and a full disk: `python tests/soak.py [--kills 20] [--full 3] [--seed 0]`, about a minute for each.

A glyphs-tiny run is killed again and again, at a random moment, by a random signal to a random one of its
processes, and started again with the same words; whenever it comes to its end, its tables must be those of a
run that nobody disturbed, byte for byte. Then the same on a small tmpfs that is full at some moment (needs
the right to mount; said where there is none). The exit status is 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RUN = [sys.executable, "-m", "ood_utils", "run", "--profile", "glyphs-tiny", "-p", "parallel=2"]


def start(outputs: Path) -> subprocess.Popen:
    """The series in a process group of its own; what it says goes to a file beside its outputs."""
    environment = os.environ | {"OOD_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}
    said = open(outputs.with_suffix(".log"), "w")
    return subprocess.Popen(RUN, env=environment, stdout=said, stderr=said, start_new_session=True)


def tables(outputs: Path) -> dict[str, bytes]:
    """Name -> content of every table of the run."""
    return {path.name: path.read_bytes() for path in sorted(outputs.glob("glyphs-tiny/tables/*.csv"))}


def kill(run: subprocess.Popen, draw: random.Random, after: float) -> str:
    """Wait, then send a signal to one process or to all; what was done, "" where the run was done before."""
    try:
        run.wait(after)
        return ""
    except subprocess.TimeoutExpired:
        below = psutil.Process(run.pid).children(recursive=True)
    victims, number = [run.pid, *(child.pid for child in below)], draw.choice(SIGNALS)
    victim = draw.choice([0, run.pid, *victims])
    for pid in victims if victim == 0 else [victim]:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
    try:
        run.wait(30)
    except subprocess.TimeoutExpired:  # one that does not listen to this signal, or is none that matters
        run.kill()
        run.wait()
    left = psutil.wait_procs(below, timeout=30)[1]
    assert not left, f"left running: {left}"
    return f"{number.name} to {'all' if victim == 0 else 'the runner' if victim == run.pid else 'a child'}"


def finish(outputs: Path, wanted: dict[str, bytes]) -> str:
    """Take the run up to its end; what is wrong with it, or ""."""
    if status := start(outputs).wait():
        return f"exit status {status}: {outputs.with_suffix('.log').read_text()[-400:]}"
    found = tables(outputs)
    apart = [name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)]
    return f"other tables: {', '.join(sorted(apart))}" if apart else ""


def full(base: Path, size: int) -> str:
    """A run on a disk of `size` MiB, which is then made large; what is wrong with it, "" or "no mount"."""
    disk = base / "disk"
    disk.mkdir(exist_ok=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", disk], capture_output=True
    ).returncode:
        return "no mount"
    try:
        status, log = start(disk / "runs").wait(), (disk / "runs.log").read_text()
        if status and "ood: " not in log:
            return f"no sentence, exit status {status}: {log[-400:]}"
        print(f"  {size} MiB: exit status {status}, {log.strip().splitlines()[-1][:150]!r}", flush=True)
        subprocess.run(["mount", "-o", "remount,size=4g", disk], check=True)
        return finish(disk / "runs", tables(base / "whole"))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def main() -> int:
    """Run it; the number of faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("kills", 20), ("full", 3), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    draw, faults = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        base, begun = Path(folder), time.monotonic()
        assert start(base / "whole").wait() == 0, (base / "whole.log").read_text()
        whole, seconds = tables(base / "whole"), time.monotonic() - begun
        print(f"undisturbed: {len(whole)} tables in {seconds:.0f} s", flush=True)
        for number in range(options.kills):
            after = draw.uniform(0, seconds)
            done = kill(start(base / "run"), draw, after)
            last = number + 1 == options.kills or draw.random() < 0.3
            fault = finish(base / "run", whole) if last or not done else ""
            state = fault or ("resumed to equal tables" if last or not done else "started again")
            print(f"kill {number + 1} after {after:.0f} s: {done or 'done before'}; {state}", flush=True)
            faults += [fault] if fault else []
            if last or not done:
                subprocess.run(["rm", "-r", base / "run"], check=True)
        for _ in range(options.full):
            fault = full(base, size := draw.randint(52, 80))
            print(f"full disk, {size} MiB: {fault or 'resumed to equal tables'}", flush=True)
            faults += [fault] if fault not in ("", "no mount") else []
    print(f"{len(faults)} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())

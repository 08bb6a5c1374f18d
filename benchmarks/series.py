"""What `make reproduce` costs after installation: time, memory, and a second call with nothing changed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from .measure import GB, seconds, tree_memory
from .record import Row

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"glyphs": (720, 3), "glyphs-tiny": (90, 3)}  # seconds, GB (the project's own targets)


def reproduce(profile: str, outputs: str) -> tuple[float, float]:
    """(seconds, peak GB of the process tree) of one run of the series; its progress goes to the terminal."""
    command = [sys.executable, "-m", "ood_utils", "run", "--profile", profile]
    began, most = time.perf_counter(), 0
    child = psutil.Popen(command, cwd=ROOT, env=os.environ | {"OOD_OUTPUTS": outputs})
    while child.poll() is None:
        try:
            most = max(most, tree_memory(child))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.25)
    if child.wait():
        raise SystemExit(
            f"error: the series failed with status {child.returncode}; its own message stands above"
        )
    return time.perf_counter() - began, most / GB


def measure(profile: str, scale: float = 1.0) -> list[Row]:
    """Rows of the series for one profile, run in an empty folder (OOD_OUTPUTS, or a temporary one)."""
    command = f"python -m benchmarks series --profile {profile}"
    most_seconds, most_memory = LIMITS.get(profile, (None, None))
    with tempfile.TemporaryDirectory() as temporary:
        outputs = os.environ.get("OOD_OUTPUTS") or temporary
        if (Path(outputs) / profile).exists():
            raise SystemExit(f"error: {outputs}/{profile} exists; name an empty folder in OOD_OUTPUTS")
        first, memory = reproduce(profile, outputs)
        second, _ = reproduce(profile, outputs)
        size = sum(path.stat().st_size for path in (Path(outputs) / profile).rglob("*") if path.is_file())
    rows = [
        ("whole series, first call", first, "s", f"value <= {most_seconds}" if most_seconds else ""),
        ("peak memory, all processes", memory, "GB", f"value <= {most_memory}" if most_memory else ""),
        ("second call, nothing changed", second, "s", "value <= 10"),
        ("size of the run's folder", size / GB, "GB", ""),
    ]
    started = [
        Row("series", f"{profile}: {what}", value, unit, None, to, command) for what, value, unit, to in rows
    ]
    return [*started, Row("series", "import ood_utils", import_seconds(), "s", None, "value <= 0.5", command)]


def import_seconds() -> float:
    """What `import ood_utils` adds to starting Python."""

    def start(code: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True), repeat=5)

    return max(0.0, start("import ood_utils") - start("pass"))

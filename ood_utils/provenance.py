"""With what a result was made: time, commit, versions, machine, torch's settings."""

import hashlib
import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "torch torchvision open_clip_torch numpy scipy scikit-learn pandas pyarrow umap-learn matplotlib seaborn "
    "plotly pillow papermill nbclient nbconvert ipykernel pydantic"
).split()


def now() -> str:
    """The time as UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _command(*words: str) -> str | None:
    try:
        done = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Versions of Python and of the main packages, read without importing them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """Operating system, processor, cores, memory (GiB) and GPUs; the host's name is nobody's business."""
    cpu = platform.processor()
    if (info := Path("/proc/cpuinfo")).is_file():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x), cpu)
    gpus = _command("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return {
        "system": platform.platform(),
        "cpu": cpu or platform.machine(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": (gpus or "").splitlines(),
    }


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def provenance() -> dict[str, Any]:
    """Facts that say what made a result; the commit is that of the checkout this package lies in."""
    commit = _command("git", "rev-parse", "HEAD")
    status = _command("git", "status", "--porcelain") if commit else None
    diff = _command("git", "diff", "HEAD") if status else None
    return {
        "time": now(),
        "commit": commit,
        "dirty": None if status is None else bool(status),
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
        "versions": versions(),
        "machine": machine(),
        "torch": torch_facts(),
    }


def torch_facts() -> dict[str, Any] | None:
    """torch's threads, determinism and CUDA; None where torch is not imported yet (it never is for this)."""
    if (torch := sys.modules.get("torch")) is None:
        return None
    cuda = torch.cuda.is_available()
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }

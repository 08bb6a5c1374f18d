"""The numeric tests as other CPUs would run them: `python tests/portable.py [pytest arguments]`.

What one machine rounds one way another rounds otherwise: torch, oneDNN, MKL, OpenBLAS and numpy pick their
kernels by the CPU's instructions, and sums depend on the number of threads. Each setting below holds them to
an older CPU, as far as this one can act it. One line per setting; the exit status is 1 if a test failed in
any.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOMS = "arrays scores negatives metrics geometry sphere objectives training embeddings".split()
KINDS = {  # of CPU: how each library is told; the names are the libraries' own
    "default": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},
    "avx512": {},
}
THREADS = (1, 2, 4)


def kinds() -> list[str]:
    """The kinds up to what this CPU is; "default" alone where it is no x86."""
    best = torch.backends.cpu.get_cpu_capability().lower()
    return list(KINDS)[: list(KINDS).index(best) + 1] if best in KINDS else ["default"]


def run(kind: str, threads: int, arguments: list[str]) -> bool:
    """Run the tests in one setting and print its line; whether all passed."""
    counts = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    files = [str(HERE / f"test_{room}.py") for room in ROOMS]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not distributed",
        "--tb=short",
        *files,
        *arguments,
    ]
    began = time.perf_counter()
    done = subprocess.run(
        command,
        env={**os.environ, **KINDS[kind], **counts, "ATEN_CPU_CAPABILITY": kind},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    output = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    print(
        f"{kind:8} {threads} threads  {time.perf_counter() - began:4.0f} s  {output[-1].strip('= ')}",
        flush=True,
    )
    if done.returncode:
        print(done.stdout + done.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    passed = [run(kind, threads, sys.argv[1:]) for kind in kinds() for threads in THREADS]
    sys.exit(0 if all(passed) else 1)

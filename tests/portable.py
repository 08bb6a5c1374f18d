"""The numeric tests as other CPUs would run them: `python tests/portable.py [pytest arguments]`.

What one machine rounds one way another rounds otherwise: torch, oneDNN, MKL, OpenBLAS and numpy pick their
kernels by the CPU's instructions, and sums depend on the number of threads. Each setting acts an
older CPU, as far as this one can. One line per setting; the exit status is 1 if a test failed in any.
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
NEWEST = "X86_V4 AVX512_ICL AVX512_SPR"  # what numpy calls the kernels that AVX2 lacks
KINDS = {  # of CPU, oldest first: how each library is told, in its own words
    "default": {
        "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": f"X86_V3 {NEWEST}",
    },
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": NEWEST,
    },
    "avx512": {},
}  # fmt: skip
THREADS = (1, 2, 4)


def kinds() -> list[str]:
    """The kinds up to what this CPU is; "default" alone where it is no x86."""
    best = torch.backends.cpu.get_cpu_capability().lower()
    return list(KINDS)[: list(KINDS).index(best) + 1] if best in KINDS else ["default"]


def run(kind: str, threads: int, arguments: list[str]) -> bool:
    """Run the tests in one setting and print its line; whether all passed."""
    counts = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    settings = {**os.environ, **KINDS[kind], **counts, "ATEN_CPU_CAPABILITY": kind}
    files = [str(HERE / f"test_{room}.py") for room in ROOMS]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", *files, *arguments]
    began = time.perf_counter()
    done = subprocess.run(command, env=settings, cwd=HERE.parent, capture_output=True, text=True)
    took, output = time.perf_counter() - began, done.stdout + done.stderr
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]
    print(f"{kind:8} {threads} threads  {took:4.0f} s  {last}", flush=True)
    if done.returncode:
        print(output)
    return done.returncode == 0


if __name__ == "__main__":
    passed = [run(kind, threads, sys.argv[1:]) for kind in kinds() for threads in THREADS]
    sys.exit(0 if all(passed) else 1)

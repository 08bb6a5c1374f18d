"""The numeric tests as other CPUs would run them: `python tests/portable.py [pytest arguments]`.

What one machine rounds one way another rounds otherwise: torch, oneDNN, MKL, OpenBLAS and numpy pick their
kernels by the CPU's instructions, and sums depend on the number of threads. Each setting acts an
older CPU, as far as this one can. MKL also has kernels of its own for Intel; "on Intel" preloads the answer
yes to its question for the maker (on an AMD machine this repeated to the digit what had failed on a Xeon).
One line per setting; the exit status is 1 if a test failed in any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOMS = "arrays scores negatives metrics geometry sphere objectives training embeddings".split()
ROOMS += "leaderboard gallery_scores gallery_adaptive gallery_features gallery_prompts".split()
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
ANSWER = "int mkl_serv_intel_cpu_true(void) { return 1; } int mkl_serv_intel_cpu(void) { return 1; }"


def kinds() -> list[str]:
    """The kinds up to what this CPU is; "default" alone where it is no x86."""
    best = torch.backends.cpu.get_cpu_capability().lower()
    return list(KINDS)[: list(KINDS).index(best) + 1] if best in KINDS else ["default"]


def on_intel(folder: Path) -> dict[str, str]:
    """What makes MKL take its kernels for Intel; nothing on an Intel, or without Linux and a C compiler."""
    compiler, answer = shutil.which("cc"), folder / "intel.so"
    if sys.platform != "linux" or compiler is None:
        print("on Intel: not tried, for want of Linux and a C compiler (cc)")
        return {}
    if "GenuineIntel" in Path("/proc/cpuinfo").read_text():
        return {}
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(answer)]
    subprocess.run(command, input=ANSWER, text=True, check=True)
    maker = {"LD_PRELOAD": str(answer)}
    if mkl_speaks_of(maker) == mkl_speaks_of({}):
        print("on Intel: not tried, for this torch does not ask for the maker")
        return {}
    return maker


def mkl_speaks_of(settings: dict[str, str]) -> str:
    """The processors that torch's MKL says it takes its kernels for."""
    command = [sys.executable, "-c", "import torch; torch.ones(64, 64) @ torch.ones(64, 64)"]
    environment = os.environ | settings | {"MKL_VERBOSE": "1"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return said.partition(", Lnx")[0]


def run(kind: str, maker: dict[str, str], threads: int, arguments: list[str]) -> bool:
    """Run the tests in one setting and print its line; whether all passed."""
    counts = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    settings = {**os.environ, **KINDS[kind], **maker, **counts, "ATEN_CPU_CAPABILITY": kind}
    files = [str(HERE / f"test_{room}.py") for room in ROOMS]
    side_by_side = ["-n", str((os.cpu_count() or 1) // threads), "--dist", "loadfile"]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", *side_by_side, *files, *arguments]
    began = time.perf_counter()
    done = subprocess.run(command, env=settings, cwd=HERE.parent, capture_output=True, text=True)
    took, output = time.perf_counter() - began, done.stdout + done.stderr
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]
    name = f"{kind} on Intel" if maker else kind
    print(f"{name:16} {threads} threads  {took:4.0f} s  {last}", flush=True)
    if done.returncode:
        print(output)
    return done.returncode == 0


def main(arguments: list[str]) -> int:
    """Every kind with every number of threads, then the same on Intel; the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        makers: list[dict[str, str]] = [{}, *filter(None, [on_intel(Path(folder))])]
        each = ((kind, maker, threads) for maker in makers for kind in kinds() for threads in THREADS)
        return 0 if all([run(*setting, arguments) for setting in each]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

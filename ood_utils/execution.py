"""One notebook in a process of its own: started, followed, limited, and ended with everything it left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import config, kernels
from .config import PACKAGE

Show = Callable[[int, int], None]


class Executor:
    """Executes notebooks with papermill, one process each; used as a context, whose end ends the nursery too.

    modules: what the notebooks import, imported once for all of them where processes can be forked. The
    kernel is this very interpreter whatever kernels are installed, the working directory the project's root.
    """

    def __init__(self, outputs: Path, modules: Sequence[str] = ()) -> None:
        self.outputs, self.modules, self.token = outputs, modules, uuid.uuid4().hex
        self.nursery: kernels.Nursery | None = None

    def __enter__(self) -> Executor:
        self.aside = tempfile.TemporaryDirectory(prefix="ood-")
        return self

    def __exit__(self, *_: Any) -> None:
        if self.nursery:  # nothing else outlives `execute`
            self._end()
        self.aside.cleanup()

    def execute(
        self,
        notebook: Path,
        output: Path,
        parameters: dict[str, Any],
        limit: float,
        show: Show = lambda cell, of: None,
    ) -> tuple[dict[str, Any] | None, int]:
        """Execute one with a wall-clock limit in seconds. Returns (None or the error, peak resident memory in
        MiB).
        """
        aside = Path(self.aside.name)
        spec = {
            "input": str(notebook),
            "output": str(output),
            "parameters": parameters,
            "cwd": str(config.ROOT),
        }
        (aside / "spec.json").write_text(json.dumps(spec | {"runner": os.getpid()}))
        (aside / "events").write_text("")
        (aside / "log").write_text("")
        child = self._start(aside)
        spare = None
        try:
            answer = _watch(child, aside, limit, show)
            with suppress(subprocess.TimeoutExpired):
                if (
                    child.wait(timeout=10) is not None
                    and self.nursery
                    and self.nursery.process.poll() is None
                ):
                    spare = self.nursery.pid
            return answer
        finally:
            self._end(spare)

    def _start(self, aside: Path) -> kernels.Nursery | subprocess.Popen:
        """The process of one notebook: a fork of the nursery, or a new interpreter where forks are not to be
        had.
        """
        words: dict[str, Any] = {
            "cwd": config.ROOT,
            "env": self._environment(aside),
            "stderr": open(aside / "log", "ab"),
        }
        with words["stderr"]:
            if kernels.can_fork():
                command = [sys.executable, "-m", __name__, "--nursery", *self.modules]
                self.nursery = self.nursery or kernels.Nursery(command, words)
                return self.nursery.start(aside)
            words |= {"stdin": subprocess.DEVNULL, "stdout": words["stderr"], "start_new_session": True}
            return subprocess.Popen([sys.executable, "-m", __name__, str(aside)], **words)

    def _environment(self, aside: Path) -> dict[str, str]:
        """The child's environment: its own kernel list, nothing of the user's IPython, this package on the
        path.
        """
        kernel = aside / "kernels" / "python3"
        kernel.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        about = {"argv": argv, "display_name": "python3", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(about))
        paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        return (
            dict(os.environ)
            | {
                "JUPYTER_PATH": str(aside),
                "JUPYTER_RUNTIME_DIR": str(aside / "runtime"),
                "IPYTHONDIR": str(aside / "ipython"),
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as every kernel sets it
                "PYTHONPATH": os.pathsep.join(paths),
                "PYTHONHASHSEED": "0",
                "PYDEVD_DISABLE_FILE_VALIDATION": "1",
                "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm.auto of other packages would like ipywidgets
                "OOD_ROOT": str(config.ROOT),
                "OOD_OUTPUTS": str(self.outputs),
                "OOD_RUNNER": "1",
                "OOD_TOKEN": self.token,
            }
        )

    def _end(self, spare: int | None = None) -> None:
        """End what the notebook left behind; the nursery lives on only where its fork is known to have ended."""
        _end(self.token, spare)
        if spare is None and self.nursery:
            self.nursery.close()
            self.nursery = None


def _watch(
    child: kernels.Nursery | subprocess.Popen, aside: Path, limit: float, show: Show
) -> tuple[dict[str, Any] | None, int]:
    """Follow a child to its end or the limit. Its success counts only if it says so itself."""
    begun, peak, turn, at = time.monotonic(), 0, 0, {"cell": 0, "of": 0, "line": ""}
    while True:
        ended = child.poll() is not None
        for event in _events(aside):
            if event.get("end"):
                return event["error"], peak
            at = event
        if ended:
            log = (aside / "log").read_text(errors="replace").splitlines()[-12:]
            fault = f"its process ended with status {child.returncode} (killed: out of memory?)"
            return {"kind": "ProcessDied", "message": fault, "tail": log, **at}, peak
        if time.monotonic() - begun > limit:
            fault = f"time-out after {limit / 60:.3g} minutes; give more with --timeout"
            return {"kind": "TimeOut", "message": fault, **at}, peak
        show(at["cell"], at["of"])
        if turn % 10 == 0:
            peak = max(peak, _memory(child.pid))
        turn += 1
        time.sleep(0.2)


def _events(aside: Path) -> list[dict[str, Any]]:
    lines = (aside / "events").read_text().split("\n")[:-1]  # what has no line end yet is being written
    return [json.loads(line) for line in lines]


def _memory(pid: int) -> int:
    """MiB resident in a process and all below it; pages that several share count once where the system tells
    (Linux).
    """
    import psutil

    total = 0
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.Error):
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.rss)
    return total // 2**20


def _end(token: str, spare: int | None = None) -> None:
    """End every process that carries the token: kernel, training processes, whoever their parent is by now."""
    import psutil

    for _ in range(3):  # one may have been starting another
        marked = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid not in (os.getpid(), spare) and process.environ().get("OOD_TOKEN") == token:
                    marked.append(process)
        if not marked:
            return
        for act, patience in (("terminate", 3), ("kill", 3)):
            for process in marked:
                with suppress(psutil.Error):
                    getattr(process, act)()
            _, marked = psutil.wait_procs(marked, timeout=patience)


def execute_here(aside: Path, manager: type | None = None) -> None:
    """In the notebook's process: execute what spec.json names, tell every cell and the end in `events`.

    manager: the kernel manager to use (see kernels), None for jupyter_client's own.
    """
    spec = json.loads((aside / "spec.json").read_text())

    def follow() -> None:  # a runner killed with -9 takes the kernel with it
        while psutil.pid_exists(spec["runner"]):
            time.sleep(1)
        _end(os.environ["OOD_TOKEN"])
        os._exit(1)

    import psutil

    threading.Thread(target=follow, daemon=True).start()
    with open(aside / "events", "w", buffering=1) as events:
        error = _papermill(spec, manager, lambda event: events.write(json.dumps(event) + "\n"))
        events.write(json.dumps({"end": True, "error": error}) + "\n")
    sys.exit(1 if error else 0)


def _papermill(
    spec: dict[str, Any], manager: type | None, tell: Callable[[dict], Any]
) -> dict[str, Any] | None:
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    source = papermill.iorw.load_notebook_node(spec["input"])
    at = {
        "cell": 0,
        "of": 1 + sum(cell.cell_type == "code" for cell in source.cells),
        "line": "",
    }  # 1: injected

    def begin(cell: Any, **_: Any) -> None:
        if cell.cell_type == "code" and cell.source.strip():
            at.update(cell=at["cell"] + 1, line=_first_line(cell.source))
            tell(at)

    try:
        notebook = papermill.execute_notebook(
            **{"input_path": spec["input"], "output_path": spec["output"], "parameters": spec["parameters"]},
            **{"cwd": spec["cwd"], "kernel_name": "python3", "language": "python", "progress_bar": False},
            on_cell_start=begin,
            **({"kernel_manager_class": manager} if manager else {}),
        )
        _coalesce(notebook)
        papermill.iorw.write_ipynb(notebook, spec["output"])
    except PapermillExecutionError as fault:
        if fault.ename in ("UserError", "UnreadableImage"):  # one sentence says it all
            return {"kind": fault.ename, "message": str(fault.evalue), "tail": [], **at}
        rows = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(fault.traceback)).rstrip().splitlines()
        message = f"{fault.ename}: {fault.evalue}".strip()
        return {"kind": fault.ename, "message": message.split("\n")[0], "tail": rows[-12:], **at}
    except DeadKernelError:
        return {"kind": "DeadKernelError", "message": "the kernel was killed (often: out of memory)", **at}
    except CellTimeoutError as fault:
        return {"kind": "CellTimeoutError", "message": str(fault).split("\n")[0], **at}
    except Exception as fault:  # whatever it is, the runner must hear of it
        return {"kind": type(fault).__name__, "message": f"{type(fault).__name__}: {fault}", **at}
    return None


def _first_line(source: str) -> str:
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    line = next((line for line in lines if not line.startswith("#")), lines[0])
    return line if len(line) <= 80 else line[:79] + "…"


def _coalesce(notebook: Any) -> None:
    """Keep of each progress line only its last state, as a terminal would show it."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = re.sub(r"[^\n]*\r(?=[^\n])", "", output.text.replace("\r\n", "\n"))


if __name__ == "__main__":
    if sys.argv[1] == "--nursery":
        kernels.nurse(sys.argv[2:], execute_here)
    else:
        execute_here(Path(sys.argv[1]))

"""The command line: `python -m ood_utils`, also installed as `ood`. Nothing heavy is imported until it is
needed.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .errors import UserError

EXAMPLES = """examples:
  ood run                                   the glyph world, four notebooks, a report; minutes, nothing to download
  ood run --profile glyphs-tiny             the same, cut down to about a minute
  ood run -p lam=0.01 seeds=[0] --run mine  with other values, in outputs/mine
  ood run --only 03 04 --force              these two again
  ood check --profile imagenet              what the paper's experiment needs and what of it is there
  ood list                                  the notebooks, their questions, and the runs so far
  ood train --help                          one fine-tuning (also under torchrun)
"""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    main = argparse.ArgumentParser(
        prog="ood",
        description="Notebooks on the modality gap and out-of-distribution detection, run end to end.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the notebooks that must run, then write the report")
    run.add_argument(
        "--profile", default="glyphs", help="name in notebooks/profiles or path (default: glyphs)"
    )
    run.add_argument("--run", default="", help="folder below outputs/ (default: the profile's name)")
    _changes(run)
    run.add_argument("--only", nargs="+", default=[], metavar="NB", help="only these, by number or name")
    run.add_argument("--force", action="store_true", help="run them even if they are done")
    run.add_argument("--timeout", type=float, metavar="MIN", help="wall-clock limit of one notebook, minutes")
    check = commands.add_parser("check", help="say what this machine has and what each profile needs")
    check.add_argument("--profile", help="one profile (default: all)")
    _changes(check)
    commands.add_parser("list", help="list the notebooks, the profiles and the runs")
    report = commands.add_parser("report", help="write a run's report again")
    report.add_argument("--run", required=True, help="folder below outputs/")
    commands.add_parser("train", help="fine-tune once; see `ood train --help`", add_help=False)
    commands.add_parser(
        "pretrain", help="train GlyphCLIP from scratch; see `ood pretrain --help`", add_help=False
    )
    return main


def _changes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-p", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change values of the profile"
    )


def _run(options: argparse.Namespace) -> int:
    from . import config, series

    if options.timeout is not None and not options.timeout > 0:
        raise UserError(f"--timeout {options.timeout:g} is refused: give minutes above 0")
    changes = config.parse_changes(options.p)
    try:
        series.run_series(options.profile, changes, options.run, options.only, options.force, options.timeout)
    except series.NotebookFailed as failure:
        print(f"ood: {failure}", file=sys.stderr)
        return 1
    return 0


def _check(options: argparse.Namespace) -> int:
    from . import check, config

    return check.main(options.profile, config.parse_changes(options.p))


def _report(options: argparse.Namespace) -> int:
    from . import config, report, series, store

    folder = store.OUTPUTS / store.run_name(options.run, "")
    written = report.build(folder, series.find(config.ROOT / "notebooks"))
    print(f"report: {folder / 'index.html'}{'' if written else ' (up to date)'}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from . import config, files, series, store

    print("Notebooks")
    for notebook in series.find(config.ROOT / "notebooks"):
        print(f"  {notebook.name:22} {notebook.question}")
    print("Profiles")
    for name in config.profile_names():
        print(f"  {name:22} {config.load_profile(name).title}")
    print(f"Runs in {store.OUTPUTS}")
    records = sorted(store.OUTPUTS.glob("*/run.json"))
    for path in records:
        record = files.read_json(path)
        states = [
            f"{n.split('_')[0]} {e.get('status')}" for n, e in sorted(record.get("notebooks", {}).items())
        ]
        print(f"  {path.parent.name:22} {record.get('status', 'unknown')}: {', '.join(states)}")
    if not records:
        print("  none yet; `ood run` makes one")
    return 0


def _pass_on(command: str, words: Sequence[str]) -> int:
    """Hand all further words to the command line of another room."""
    if command == "train":
        from .train import main
    else:
        from .tools.pretrain import main
    sys.argv = [f"ood {command}", *words]
    return main() or 0


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 done, 1 a notebook failed or something is missing, 2 a mistake in what was asked (one sentence on
    standard error), 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    handlers: dict[str, Callable[[argparse.Namespace], int]]
    handlers = {"run": _run, "check": _check, "list": _list, "report": _report}
    try:
        if words and words[0] in ("train", "pretrain"):
            return _pass_on(words[0], words[1:])
        options = parser().parse_args(words)
        signal.signal(signal.SIGTERM, _interrupt)  # a batch system's end is as orderly as Ctrl-C
        return handlers[options.command](options)
    except UserError as mistake:
        print(f"ood: {mistake}", file=sys.stderr)
        return 2
    except OSError as fault:
        print(
            f"ood: {fault.filename or 'a file'}: {fault.strerror or fault}; see `ood check`", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("ood: interrupted; the same command takes the run up again", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

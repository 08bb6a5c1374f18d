"""The command line: `python -m ood_utils`, also installed as `ood`. Heavy rooms are imported when needed."""

import argparse
import signal
import sys
from collections.abc import Sequence

from .errors import UserError

EXAMPLES = """examples:
  ood run                                   the glyph world, all notebooks, a report; minutes, no download
  ood run --profile glyphs-tiny             the same, cut down to about a minute
  ood run -p lam=0.01 seeds=[0] --run mine  with other values, in outputs/mine
  ood run --only 03 04 --force              these two again
  ood check --profile imagenet              what the paper's experiment needs and what of it is there
  ood list                                  the notebooks, their questions, and the runs so far
  ood train --help                          one fine-tuning (also under torchrun)
  ood embed --help                          an image lane's embeddings, to share and to run without a GPU
  ood score --help                          which images are none of the classes: a detector that a run saved
"""
TRAIN = """One fine-tuning, in one process or under torchrun, on one machine or many:

  ood train --profile glyphs --objective cma --lam 0.003 --seed 0 --folder outputs/mine
  torchrun --standalone --nproc-per-node 8 -m ood_utils train --profile imagenet -p data_root=/data ...
  torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m ood_utils train ...

The profile's batch is that of all processes together. Started again with the same words, it resumes. Rank 0
writes the folder; on several machines it is on the one whose host name sorts first, unless they share the
disk, and every machine needs the data under the same path. Below the line that says what is wrong torchrun
prints a traceback of its own (ChildFailedError), which says nothing more.
"""


def parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of all commands; of train's arguments only where the words are train's."""
    layout = argparse.RawDescriptionHelpFormatter
    about = "Notebooks on the modality gap and out-of-distribution detection, run end to end."
    main = argparse.ArgumentParser(prog="ood", description=about, epilog=EXAMPLES, formatter_class=layout)
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the notebooks that must run, then write the report")
    where = "name in notebooks/profiles or path (default: glyphs)"
    run.add_argument("--profile", default="glyphs", help=where)
    run.add_argument("--run", default="", help="folder below outputs/ (default: the profile's name)")
    run.add_argument("--only", nargs="+", default=[], metavar="NB", help="only these, by number or name")
    run.add_argument("--force", action="store_true", help="run them even if they are done")
    run.add_argument(
        "--verify", action="store_true", help="hash every output of the run, not only changed ones"
    )
    run.add_argument("--timeout", type=float, metavar="MIN", help="wall-clock limit of one notebook, minutes")
    check = commands.add_parser("check", help="say what this machine has and what each profile needs")
    check.add_argument("--profile", help="one profile (default: all)")
    listing = commands.add_parser("list", help="list the notebooks, the profiles and the runs")
    report = commands.add_parser("report", help="write a run's report again")
    report.add_argument("--run", required=True, help="folder below outputs/")
    for command in (run, check):
        several = {"nargs": "+", "action": "extend", "default": [], "metavar": "KEY=VALUE"}
        command.add_argument("-p", help="change values of the profile", **several)
    for command, act in ((run, _run), (check, _check), (listing, _list), (report, _report)):
        command.set_defaults(act=act)
    short = "fine-tune once; see `ood train --help`"
    train = commands.add_parser("train", help=short, description=TRAIN, formatter_class=layout)
    if words[:1] == ["train"]:
        from .sweep import add_train_arguments, train_command

        add_train_arguments(train)
        train.set_defaults(act=train_command)
    short = "write a study of embeddings from an image lane; see `ood embed --help`"
    embed = commands.add_parser("embed", help=short, formatter_class=layout)
    if words[:1] == ["embed"]:
        from . import share

        embed.description = share.EMBED
        share.add_arguments(embed)
        embed.set_defaults(act=share.command)
    short = "score images with a detector that a run saved; see `ood score --help`"
    score = commands.add_parser("score", help=short, formatter_class=layout)
    if words[:1] == ["score"]:
        from . import scoring

        score.description = scoring.SCORE
        scoring.add_arguments(score)
        score.set_defaults(act=scoring.command)
    commands.add_parser("pretrain", help="train GlyphCLIP from scratch; see `ood pretrain --help`")
    return main


def _run(options: argparse.Namespace) -> int:
    from . import config
    from .series import runner

    if options.timeout is not None and not 0 < options.timeout <= 1e6:
        raise UserError(f"--timeout {options.timeout:g} is refused: give minutes above 0, at most a million")
    changes = config.parse_changes(options.p)
    try:
        how = (options.run, options.only, options.force, options.timeout, options.verify)
        runner.run_series(options.profile, changes, *how)
    except runner.NotebookFailed as failure:
        print(f"ood: {failure}", file=sys.stderr)
        return 1
    return 0


def _check(options: argparse.Namespace) -> int:
    from . import config
    from .series import check

    return check.main(options.profile, config.parse_changes(options.p))


def _report(options: argparse.Namespace) -> int:
    from . import config, store
    from .series import report, state

    folder = store.OUTPUTS / store.run_name(options.run, "")
    written = report.build(folder, state.find(config.ROOT / "notebooks"))
    print(f"report: {folder / 'index.html'}{'' if written else ' (up to date)'}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from . import config, store
    from .series import state

    rows = {"Notebooks": [(n.name, n.question) for n in state.find(config.ROOT / "notebooks")]}
    rows["Profiles"] = [(name, config.load_profile(name).title) for name in config.profile_names()]
    runs = rows[f"Runs in {store.OUTPUTS}"] = []
    for path in sorted(store.OUTPUTS.glob("*/run.json")):
        try:
            record = store.read_record(path.parent)
        except UserError as fault:
            runs.append((path.parent.name, str(fault)))
            continue
        entries = sorted(record["notebooks"].items())
        states = ", ".join(f"{name.split('_')[0]} {entry['status']}" for name, entry in entries)
        runs.append((path.parent.name, f"{record['status']}: {states}"))
    for heading, pairs in rows.items():
        print(heading)
        for name, what in pairs or [("none yet", "`ood run` makes one")]:
            print(f"  {name:22} {what}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 done, 1 a notebook failed or something is missing, 2 a mistake in what was asked (one sentence on
    standard error), 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        # a batch system's end is as orderly as Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if words[:1] == ["pretrain"]:
            from .tools import pretrain

            return pretrain.main(words[1:]) or 0
        options = parser(words).parse_args(words)
        return options.act(options)
    except UserError as mistake:
        print("ood:", *str(mistake).split(), file=sys.stderr)  # one line, whatever a library's words in it
        return 2
    except OSError as fault:
        what = f"{fault.filename or 'a file'}: {fault.strerror or fault}"
        print(f"ood: {what}; see `ood check`", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        resumed = words[:1] in (["run"], ["train"], ["embed"], ["pretrain"])
        print("ood: interrupted" + "; the same command takes the run up again" * resumed, file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

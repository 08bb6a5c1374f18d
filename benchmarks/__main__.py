"""Measure this machine: `python -m benchmarks [series scores metrics encode train] [--profile NAME]`."""

from __future__ import annotations

import argparse
import subprocess
import sys

from . import record


def rows_of(section: str, options: argparse.Namespace) -> list[record.Row]:
    """Measure one section; what it measures is imported here, so that no section needs another's modules."""
    if section == "series":
        from . import series

        return series.measure(options.profile)
    if section in ("scores", "metrics"):
        from . import scoring

        measure = scoring.measure_scores if section == "scores" else scoring.measure_metrics
        return measure(options.scale)
    from . import encoders

    return encoders.measure(section, options.scale, options.workers)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    made.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"any of {', '.join(record.TITLES)}; all by default"
    )
    made.add_argument(
        "--profile", default="glyphs", help="profile of the series section (default: %(default)s)"
    )
    made.add_argument(
        "--scale", type=float, default=1.0, help="share of the full size; below 1 nothing is recorded"
    )
    made.add_argument(
        "--workers", type=int, default=0, help="data loader processes of encode and train (default: 0)"
    )
    made.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's own choice)")
    made.add_argument("--render", action="store_true", help="only render RESULTS.md from results.csv")
    return made


def main() -> None:
    """Measure, print each row, append to results.csv and render RESULTS.md."""
    options = parser().parse_args()
    if unknown := set(options.sections) - set(record.TITLES):
        parser().error(f"unknown section {sorted(unknown)[0]!r}; choose from {', '.join(record.TITLES)}")
    if not 0 < options.scale <= 1:
        parser().error(f"--scale is {options.scale}; give a share above 0 and up to 1")
    if options.render:
        record.TABLE.write_text(record.render(record.read()))
        return
    sections = options.sections or list(record.TITLES)
    # each section in a process of its own: memory that one has freed would hide what the next needs
    if len(sections) > 1:
        shared = [f"--{name}={getattr(options, name)}" for name in ("profile", "scale", "workers", "threads")]
        for section in sections:
            command = [sys.executable, "-m", "benchmarks", section, *shared]
            subprocess.run(command, cwd=record.HERE.parent, check=True)
        return
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    rows = rows_of(sections[0], options)
    for row in rows:
        share = f"  share {record.figure(row.share)}" if row.share is not None else ""
        value = record.figure(row.value) or row.status
        print(f"{row.section}: {row.what}: {value} {row.unit}{share}  {row.met()}")
    if options.scale == 1:
        record.append(rows)
        record.TABLE.write_text(record.render(record.read()))


if __name__ == "__main__":
    main()

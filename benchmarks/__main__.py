"""Measures grain_mix, prints a table, and writes it as JSON and as a plot."""

import argparse
import importlib
import os
import pathlib
import sys

from benchmarks import _report

SUBJECTS = {
    "peers": "mixing a batch, beside copying it and beside other libraries",
    "device": "mixing on an accelerator, beside a copy on it",
    "pipeline": "a whole Grain loader, with and without mixing",
    "compiled": "what XLA's compilers make of it for GPUs and TPUs that are not here",
    "stacking": "from records to a mixed batch on the host",
    "scaling": "batch size, image side, devices, classes and memory",
}


# Otherwise glibc hands large freed arrays back, and whether the next call waits for fresh pages, a
# multiple of the time of a copy, depends on what other sides freed. So all keep their memory.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="subject", required=True)
    for subject, summary in SUBJECTS.items():
        command = commands.add_parser(subject, help=summary, description=summary)
        command.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
        command.add_argument(
            "--output", type=pathlib.Path, default="benchmarks/results", help="a folder"
        )
        command.add_argument("--rounds", type=int, help="how often each side has its turn")
        if subject == "peers":
            command.add_argument(
                "--readme", type=pathlib.Path, help="a file to write the table into, too"
            )
        if subject == "compiled":
            command.add_argument(
                "--target", action="append", help="h200, v5e, ..., may be repeated; default: all"
            )
            command.add_argument(
                "--before", type=pathlib.Path, help="a compiled.json to compare with"
            )
    args = parser.parse_args()
    if args.subject == "peers" and not ALLOCATOR.keys() <= os.environ.keys():
        command = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | ALLOCATOR)
    module = importlib.import_module(f"benchmarks.{args.subject}")
    more = (args.target or (), args.before) if args.subject == "compiled" else ()
    report = module.run(args.quick, args.rounds, *more)
    _report.write(report, args.output)
    if getattr(args, "readme", None):
        _report.insert(report, args.readme)


if __name__ == "__main__":
    main()

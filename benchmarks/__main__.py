"""Measures grain_mix, prints a table, and writes it as JSON and as a plot."""

import argparse
import functools
import importlib
import pathlib
import sys
from typing import Any

from benchmarks import _report

SUBJECTS = {
    "peers": "mixing a batch, beside copying it and beside other libraries",
    "device": "mixing on an accelerator, beside a copy on it",
    "pipeline": "a whole Grain loader, with and without mixing",
    "compiled": "what XLA's compilers make of it for GPUs and TPUs that are not here",
    "overhead": "`map`, beside the jitted function that it calls",
    "stacking": "from records to a mixed batch on the host",
    "scaling": "batch size, image side, devices, classes and memory",
}
GPU = "on a GPU: its tests and then `device`, in a few minutes"


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
        if subject in ("compiled", "overhead"):
            command.add_argument(
                "--before", type=pathlib.Path, help="an earlier JSON of it to compare with"
            )
        if subject == "device":
            command.add_argument("--minutes", type=float, help="skips what would take longer")
    command = commands.add_parser("gpu", help=GPU, description=GPU)
    command.add_argument("--output", type=pathlib.Path, default="build/gpu", help="a folder")
    command.add_argument("--minutes", type=float, default=8, help="that all takes at most")
    command.add_argument("--wheels", type=pathlib.Path, help="a folder with what is missing here")
    command.add_argument("--rehearse", action="store_true", help="takes a CPU for the GPU")
    args = parser.parse_args()
    if args.subject == "gpu":
        from benchmarks import gpu

        sys.exit(not gpu.run(args.output, args.minutes, args.wheels, args.rehearse))
    module = importlib.import_module(f"benchmarks.{args.subject}")
    more: tuple[Any, ...] = ()
    if args.subject == "compiled":
        more = args.target or (), args.before
    if args.subject == "overhead":
        more = (args.before,)
    if args.subject == "device":
        more = args.minutes, functools.partial(_report.save, folder=args.output)
    report = module.run(args.quick, args.rounds, *more)
    _report.write(report, args.output)
    if getattr(args, "readme", None):
        _report.insert(report, args.readme)


if __name__ == "__main__":
    main()

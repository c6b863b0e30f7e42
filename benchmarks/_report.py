"""The output of a benchmark: a table on the terminal, JSON, a plot, and the README's table."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Callable
from typing import Any

import jax
import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

PACKAGES = ("grain", "jax", "jaxlib", "numpy", "torch", "torchvision", "timm", "keras", "kornia")
BEGIN, END = "<!-- from here on written by the benchmark -->", "<!-- up to here -->"


@dataclasses.dataclass
class Report:
    """A finished benchmark.

    Attributes:
        subject: its name.
        setting: shapes and repeats, in words.
        rows: every figure, as JSON takes it.
        table: what a reader sees, a list of dicts with the same keys.
        plot: draws the figures on a new figure.
        notes: lines beneath the table, such as what was skipped and why.
        summary: lines above the table.
        more_tables: by their titles; then `title` is that of the first one.
        more_plots: by the ends of their files' names.
        inches: width and height of each plot.
    """

    subject: str
    setting: str
    rows: list[dict[str, Any]]
    table: list[dict[str, Any]]
    plot: Callable[[Any], None]
    notes: list[str] = dataclasses.field(default_factory=list)
    summary: list[str] = dataclasses.field(default_factory=list)
    title: str = ""
    more_tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    more_plots: dict[str, Callable[[Any], None]] = dataclasses.field(default_factory=dict)
    inches: tuple[float, float] = (9, 5)


def machine() -> str:
    """Processor, cores and accelerators, by kind."""
    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        cpu = next((value.strip() for key, _, value in lines if key.strip() == "model name"), cpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kinds = sorted({device.device_kind for device in jax.devices() if device.platform != "cpu"})
    return ", ".join(
        [f"{cpu}, {cores} cores", *(f"{kind} x{jax.device_count()}" for kind in kinds)]
    )


def versions() -> dict[str, str]:
    """Of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, "albumentations", "datarax", "libtpu", "jax-cuda13-plugin"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def text(report: Report) -> str:
    """The tables in Markdown, with the machine and the versions."""
    software = ", ".join(f"{name} {version}" for name, version in versions().items())
    parts = [f"- {line}" for line in report.summary]
    for title, table in {report.title: report.table, **report.more_tables}.items():
        parts += ["", f"**{title}**", ""] if title else []
        parts += _markdown(table)
    parts += ["", f"{report.setting} {machine()}; {software}."]
    return "\n".join([*parts, *(f"\n{note}" for note in report.notes)]).strip()


def _markdown(table: list[dict[str, Any]]) -> list[str]:
    cells = [list(table[0]), *([_cell(value) for value in line.values()] for line in table)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in cells
    ]


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)


def write(report: Report, folder: pathlib.Path) -> None:
    """Prints the table, and writes `SUBJECT.md`, `.json` and `.png` into a folder."""
    print(text(report))
    save(report, folder)


def save(report: Report, folder: pathlib.Path) -> None:
    """Writes the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{report.subject}.md").write_text(text(report) + "\n")
    content = {
        "subject": report.subject,
        "machine": machine(),
        "versions": versions(),
        "setting": report.setting,
        "notes": report.notes,
        "rows": report.rows,
    }
    (folder / f"{report.subject}.json").write_text(json.dumps(content, indent=1) + "\n")
    for end, plot in {"": report.plot, **report.more_plots}.items():
        figure = plt.figure(figsize=report.inches, layout="constrained")
        plot(figure)
        figure.savefig(folder / f"{report.subject}{end}.png", dpi=100)
        plt.close(figure)


def insert(report: Report, readme: pathlib.Path) -> None:
    """Puts the table between the two marks of a file."""
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{readme} lacks the lines {BEGIN} and {END}")
    readme.write_text(f"{before}{begin}\n\n{text(report)}\n\n{end}{after}")


def reason(error: Exception) -> str:
    """The reason why a peer is skipped, in one line."""
    text = str(error).strip() or "no reason given"
    return f"{type(error).__name__}: {text.splitlines()[0][:120]}"


def bars(axes: Any, values: dict[str, float], title: str, unit: str) -> None:
    """Horizontal bars, the first at the top, ours in another colour."""
    colours = ["C1" if name.startswith("grain_mix") else "C0" for name in values]
    drawn = axes.barh(list(values), list(values.values()), color=colours)
    axes.bar_label(drawn, fmt="%.3g", padding=2, fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(unit)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)

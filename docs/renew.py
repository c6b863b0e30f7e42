"""Writes what scripts can: README's result and cost, the runs of `own_images.md`, two pictures.

python docs/renew.py    # needs the extra `examples`; takes four minutes
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
LOOK = ROOT / "docs" / "guides" / "look.md"
OWN = ROOT / "docs" / "start" / "own_images.md"


def programs(page: pathlib.Path) -> list[str]:
    """Returns the Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def run(program: str, folder: pathlib.Path) -> str:
    """Runs a program in a folder, and returns what it printed."""
    (folder / "program.py").write_text(program)
    return subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env=os.environ | {"MPLBACKEND": "agg"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def killed_and_resumed(program: str, folder: pathlib.Path, step: int) -> tuple[str, str]:
    """Kills a program and its workers once the checkpoint of a step is there, and runs it again.

    Returns what both runs printed.
    """
    (folder / "program.py").write_text(program)
    command = [sys.executable, "program.py"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as killed:
        while not (folder / "checkpoints" / str(step)).exists():
            if killed.poll() is not None:
                raise RuntimeError(f"the program ended before step {step}")
            time.sleep(0.01)
        os.killpg(killed.pid, signal.SIGKILL)
        first, _ = killed.communicate()
    return first, run(program, folder)


def cost() -> str:
    """Says what `uint8` images cost, from the last run of `benchmarks peers`."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text())["rows"]

    def span(side: str) -> str:
        wanted = {
            "side": side,
            "size": "224²",
            "memory": "kept",
            "task": "stacked",
            "dtype": "uint8",
        }
        pairs = [row for row in rows if row.get("kind") in ("MixUp", "CutMix")]
        ratios = [row["ratio"] for row in pairs if wanted.items() <= row.items()]
        low, high = f"{min(ratios):.1f}", f"{max(ratios):.1f}"
        return f"{low} times" if low == high else f"{low} to {high} times"

    inside = span("grain_mix, inside jit, one draw per record")
    outside = span("grain_mix, map, one draw per record")
    return (
        f"inside `jit`, mixing `uint8` images takes {inside} as long as copying them,\n"
        "  on two CPU cores. `map`, which a loader calls, also copies the batch in and out:\n"
        f"  {outside}"
    )


def chart() -> None:
    """Draws the first figure of `benchmarks.md` from the last run of `benchmarks peers`."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    rows = json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text())["rows"]
    colours = {"copy": "0.6", "grain_mix": "tab:orange", "per batch": "tab:green", "": "tab:blue"}
    figure, axes = plt.subplots(2, 1, figsize=(7, 6), layout="constrained")
    for axis, kind in zip(axes, ("MixUp", "CutMix"), strict=True):
        wanted = {"size": "224²", "memory": "kept", "task": "stacked", "dtype": "uint8"}
        wanted |= {"kind": kind}
        found = [row for row in rows if wanted.items() <= row.items()]
        ratios = {row["side"]: row["ratio"] for row in found if "weight map" not in row["side"]}
        ratios["copy"] = 1.0
        names = sorted(ratios, key=ratios.__getitem__)
        bars = axis.barh(
            names,
            [ratios[name] for name in names],
            color=[next(c for part, c in colours.items() if part in name) for name in names],
        )
        axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(f"{kind}, uint8", fontsize=11)
    axes[1].set_xlabel("time / time of a jitted copy of the same images")
    figure.savefig(ROOT / "docs" / "images" / "benchmarks.png", dpi=100)
    plt.close(figure)


def filled(text: str, name: str, content: str) -> str:
    """Replaces what stands between `<!-- name -->` and `<!-- /name -->`."""
    marks = rf"(<!-- {name} -->).*?(<!-- /{name} -->)"
    return re.sub(marks, lambda match: match[1] + content + match[2], text, flags=re.DOTALL)


def main() -> None:
    """Renews both files."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        [script] = programs(README)
        result = f"\n```text\n{run(script, folder)}```\n"
        text = filled(README.read_text(), "result", result)
        README.write_text(filled(text, "cost", cost()))
        chart()
        script, make_photos = programs(OWN)
        run(make_photos, folder)
        text = OWN.read_text()
        runs = killed_and_resumed(script, folder, step=200)
        for name, printed in zip(("killed", "resumed"), runs, strict=True):
            text = filled(text, name, f"\n```text\n{printed}```\n")
        OWN.write_text(text)
        if LOOK.exists():
            run("\n".join(programs(LOOK)), folder)
            (ROOT / "docs" / "images" / "look.png").write_bytes((folder / "batch.png").read_bytes())


if __name__ == "__main__":
    main()

"""Mosaic: four scenes that meet in one point, with their boxes, and a figure.

    python examples/mosaic.py

draws `mosaic.png`: scenes whose boxes are known exactly (see `scenes.py`), and below them the
mosaics that they become, each with its boxes, their weights, and the weights of the four labels.
"""

import argparse
import pathlib
from typing import Any

import numpy as np
import picture
import scenes
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import grain_mix as gm

MIX = gm.MosaicBatch(
    targets={
        "boxes": gm.Boxes("yxyx", fields=("class",)),
        "label": gm.OneHot(4),  # here the number of the scene, to see how much of each is shown
    }
)
COLOURS = ("yellow", "cyan", "magenta", "lime")  # of the four scenes


def main() -> None:
    """Draws."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=pathlib.Path, default="mosaic.png")
    args = parser.parse_args()
    picture.save(draw(), args.output)
    print(f"wrote {args.output}")


def four_scenes() -> dict[str, np.ndarray]:
    """Returns a batch of four scenes, as it comes out of `RecordSeed` and `Batch`."""
    source = scenes.Scenes(4, seed=37)
    records = [source[i] for i in range(4)]
    batch = {name: np.stack([each[name] for each in records]) for name in records[0]}
    del batch["map"]
    return batch | {"label": np.arange(4), "mix_seed": np.array([31, 32, 33, 34], np.uint32)}


def draw() -> Figure:
    """Draws four scenes, and below them the mosaics; a box has the colour of its scene."""
    batch = four_scenes()
    mixed: dict[str, Any] = MIX.map(batch)
    sources: Any = MIX.draw(batch["mix_seed"], batch["image"].shape).sources
    figure = Figure((12, 6.6), dpi=80, layout="constrained")
    above, below = figure.subplots(2, 4)
    for i, axis in enumerate(above):
        axis.imshow(batch["image"][i])
        axis.set_title(f"scene {i}", color="black", fontsize=10)
        for box in batch["boxes"][i]:
            outline(axis, box, COLOURS[i], "")
    for i, axis in enumerate(below):
        axis.imshow(mixed["image"][i])
        axis.set_title("label " + " ".join(f"{w:.2f}" for w in mixed["label"][i]), fontsize=10)
        owners = np.repeat(sources[i], scenes.MOST)
        for box, weight, owner in zip(
            mixed["boxes"][i], mixed["boxes_weight"][i], owners, strict=True
        ):
            outline(axis, box, COLOURS[owner], f"{weight:.2f}")
    for axis in (*above, *below):
        axis.axis("off")
    figure.suptitle("Four scenes, and the mosaics of each: boxes with their weights, and labels")
    return figure


def outline(axis: Axes, box: Any, colour: str, text: str) -> None:
    """Draws a box and its weight; what is padding or hidden has no area."""
    top, left, bottom, right = map(float, box)
    if bottom <= top:
        return
    size = right - left, bottom - top
    style: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 1.8}
    axis.add_patch(Rectangle((left - 0.5, top - 0.5), *size, **style))
    if text:
        label: dict[str, Any] = {"facecolor": "black", "alpha": 0.6, "pad": 1, "linewidth": 0}
        axis.text(left, top + 1, text, color=colour, fontsize=8, va="top", bbox=label)


if __name__ == "__main__":
    main()

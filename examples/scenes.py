"""Scenes with exact targets: parts of photographs, pasted onto another photograph.

What is where is known, since we put it there: each box is where a part was pasted, cut to what
later parts leave visible, and the label map says for each pixel which part shows. Nothing is
guessed by a network and nothing is downloaded.
"""

import argparse
import dataclasses
import functools
import importlib.resources
import pathlib
from collections.abc import Callable
from typing import Any

import data
import grain
import numpy as np
import picture
from matplotlib.figure import Figure
from PIL import Image

import grain_mix as gm

SIDE = 96
MOST = 3  # objects in a scene
NAMES = ("cat", "coffee", "flower", "rocket")  # classes 1 to 4; 0 is the background
BACKGROUNDS = ("galaxies", "temple", "tissue")


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Records for Grain: `image` (H, W, 3), `boxes` (N, 4), `class` (N,) and `map` (H, W).

    Boxes are (y, x, y, x) in pixels. Those without area are padding. A scene depends on `seed` and
    its index alone.
    """

    count: int
    seed: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        image = crop(photograph(str(rng.choice(BACKGROUNDS))), SIDE, rng).copy()
        shown = np.zeros((SIDE, SIDE), np.int32)  # which object each pixel belongs to, from 1
        classes = np.zeros(MOST, np.int32)
        for k in range(rng.integers(1, MOST + 1)):
            side = int(rng.integers(24, 49))
            top, left = rng.integers(0, SIDE - side + 1, 2)
            classes[k] = rng.integers(len(NAMES)) + 1
            part = crop(photograph(NAMES[classes[k] - 1]), side, rng)
            image[top : top + side, left : left + side] = part
            shown[top : top + side, left : left + side] = k + 1
        boxes = np.array([bounds(shown == k + 1) for k in range(MOST)], np.int32)
        classes[(boxes == 0).all(axis=1)] = 0
        label_map = np.concatenate([[0], classes])[shown].astype(np.int32)
        return {"image": image, "boxes": boxes, "class": classes, "map": label_map}


@functools.cache
def photograph(name: str) -> Image.Image:
    """Returns a photograph that is installed with scikit-image or scikit-learn."""
    package, _, file = data.PICTURES[name].partition("/")
    with (importlib.resources.files(package) / file).open("rb") as opened:
        return Image.open(opened).convert("RGB")


def crop(picture: Image.Image, side: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a random square of the picture, half to all of its shorter side, scaled to `side`."""
    length = rng.uniform(1 / 2, 1) * min(picture.size)
    left, top = rng.uniform(0, np.subtract(picture.size, length))
    scaled = picture.resize((side, side), box=(left, top, left + length, top + length))
    return np.asarray(scaled)


def bounds(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Returns the box around the true pixels, as (y, x, y, x); zeros if there are none."""
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def load(mix: gm.MixBatch, count: int, seed: int = 0) -> grain.DataLoader:
    """Returns one epoch of mixed batches."""
    source: Any = Scenes(count, seed)
    return grain.DataLoader(
        data_source=source,
        sampler=grain.samplers.IndexSampler(count, shuffle=True, seed=0, num_epochs=1),
        operations=[gm.RecordSeed(), grain.transforms.Batch(64, drop_remainder=True), mix],
    )


def train(
    mix: gm.MixBatch,
    train_step: Callable[[Any], Any],
    draw: Callable[[Any], Figure],
    output: str,
) -> None:
    """Trains for `--steps`, prints the loss, and draws a batch of other scenes to `--output`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=pathlib.Path, default=output)
    args = parser.parse_args()
    losses = [float(train_step(batch)) for batch in load(mix, 64 * args.steps)]
    few = max(1, args.steps // 5)
    print(f"loss {np.mean(losses[:few]):.3f} at first, {np.mean(losses[-few:]):.3f} at last")
    picture.save(draw(next(iter(load(mix, 64, seed=1)))), args.output)
    print(f"wrote {args.output}")

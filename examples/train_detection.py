"""Trains a small detector with and without Mosaic and copy-paste, and writes a table of the gain.

    python examples/train_detection.py

Scenes are drawn by this program: scikit-learn's digits, cut out and pasted onto photographs that
are installed with scikit-image. Nothing is downloaded. The network says where which object is, as
in CenterNet (https://arxiv.org/abs/1904.07850), and which class each pixel belongs to.

With `--data fashion_mnist` it cuts out clothes instead; `train.py` says where they come from.
"""

import argparse
import dataclasses
import pathlib
from typing import Any

import compare
import data
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scenes
import training
from flax import nnx
from PIL import Image
from tqdm import tqdm
from train import open_dataset

import grain_mix as gm

SIDE = 48
CELL = 4  # pixels; the network answers for each cell
CELLS = SIDE // CELL
MOST = 4  # objects in a scene
NUM_CLASSES = 10
TARGETS = {
    "boxes": gm.Boxes("yxyx", fields=("class",), masks="masks"),
    "map": gm.LabelMap(),
}
MIXES: dict[str, Any] = {
    "none": gm.MosaicBatch(targets=TARGETS, prob=0.0),
    "mosaic": gm.MosaicBatch(targets=TARGETS),
    "copy-paste": gm.WeightMapMixBatch(gm.maps.CopyPaste("masks"), targets=TARGETS),
}
COLUMNS = {
    "precision": "mean average precision at IoU 0.5, %",
    "iou": "mean IoU of the classes of pixels, %",
}
COUNTS = {"scenes": 200, "tests": 500, "seeds": 5, "steps": 600, "batch-size": 16}


def main(args: argparse.Namespace) -> None:
    """Trains all over all seeds, and prints tables."""
    cut_outs = data.as_arrays(open_dataset(args, "train")[0])
    clean = [Scenes(*data.as_arrays(open_dataset(args, "test")[0]))[i] for i in range(args.tests)]
    test = {name: np.stack([record[name] for record in clean]) for name in clean[0]}
    optimizer = optax.adam(optax.cosine_decay_schedule(args.learning_rate, args.steps))
    runs = []
    for seed in tqdm(range(args.seeds), unit=" seeds"):
        drawn = Scenes(*cut_outs, seed)
        records = [drawn[i] for i in range(args.scenes)]
        for name, mix in MIXES.items():
            measured = train(args, mix, seed, records, optimizer, test)
            runs.append({"name": name, "seed": seed} | measured)
    names = {name: (name, name) for name in MIXES}
    pairs = {f"{name} less none": (name, "none") for name in MIXES if name != "none"}
    folder = f" --folder {args.folder}" if args.folder else ""
    line = f"--data {args.data} --learning-rate {args.learning_rate}" + "".join(
        f" --{name} {getattr(args, name.replace('-', '_'))}" for name in COUNTS
    )
    tables = (
        f"{args.scenes:,} training scenes of `{args.data}`, {args.steps:,} steps of"
        f" {args.batch_size}; {args.tests:,} test scenes. Mean ± standard deviation over"
        f" {args.seeds} seeds:\n\n{compare.make_table(runs, names, compare.spread, COLUMNS)}\n"
        f"Differences with the same seed, mean (95% interval):\n\n"
        f"{compare.make_table(runs, pairs, compare.difference, COLUMNS)}\n"
        f"```sh\npython examples/train_detection.py {line}{folder}\n```\n"
    )
    print(tables)
    if args.page:
        compare.renew(args.page, f"{args.data} {args.steps} steps of detection", tables)


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["digits", "fashion_mnist"], default="digits")
    parser.add_argument("--data-dir", type=pathlib.Path, help=f"default: {data.CACHE}")
    parser.add_argument("--folder", type=pathlib.Path, help="with the files of Fashion-MNIST")
    parser.add_argument("--download", action="store_true", help="fetch the data if it's not there")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    for name, default in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--page", type=pathlib.Path, help="where to renew the tables")
    return parser.parse_args()


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Scenes of objects that are cut out of images `[n, h, w, 1]`, on parts of photographs.

    `image` (H, W, 3), `boxes` (N, 4), `class` (N,), `masks` (N, H, W) and `map` (H, W); class 0 is
    the background. A scene depends on `seed` and its index alone.
    """

    images: np.ndarray
    labels: np.ndarray
    seed: int = -1

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed + 1, index))
        background = scenes.photograph(str(rng.choice(scenes.BACKGROUNDS)))
        image = scenes.crop(background, SIDE, rng).copy()
        shown = np.zeros((SIDE, SIDE), np.int32)  # which object each pixel belongs to, from 1
        classes = np.zeros(MOST, np.int32)
        for k in range(rng.integers(1, MOST + 1)):
            item, side = rng.integers(len(self.images)), int(rng.integers(12, 25))
            top, left = rng.integers(0, SIDE - side + 1, 2)
            part = self.images[item, ..., 0] * (255.0 / self.images[item].max())
            part = np.asarray(Image.fromarray(part.astype(np.uint8)).resize((side, side)))
            inside = slice(top, top + side), slice(left, left + side)
            image[inside][part > 50] = part[part > 50, None]
            shown[inside][part > 50] = k + 1
            classes[k] = self.labels[item] + 1
        masks = np.stack([shown == k + 1 for k in range(MOST)])
        boxes = np.array([scenes.bounds(mask) for mask in masks], np.int32)
        classes[~masks.any((1, 2))] = 0
        label_map = np.append(0, classes)[shown].astype(np.int32)
        return {"image": image, "boxes": boxes, "class": classes, "masks": masks, "map": label_map}


class Detector(nnx.Module):
    """Says for each cell what is centred there, the corners of its box, and its pixels' classes."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(3, 32, (5, 5), strides=2, rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)
        self.third = nnx.Conv(64, 64, (3, 3), rngs=rngs)
        self.objects = nnx.Conv(64, NUM_CLASSES + 4, (3, 3), rngs=rngs)
        self.pixels = nnx.Conv(64, CELL * CELL * (NUM_CLASSES + 1), (1, 1), rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns logits `[B, n, n, K]`, corners `[B, n, n, 4]`, and logits `[B, H, W, K + 1]`."""
        x = nnx.relu(self.first(images / 127.5 - 1))
        x = nnx.relu(self.third(nnx.relu(self.second(x))))
        objects = self.objects(x)
        middle = (jnp.arange(CELLS) + 0.5) * CELL
        centres = jnp.stack(jnp.meshgrid(middle, middle, indexing="ij"), axis=-1)
        corners = jnp.tile(centres, 2) + objects[..., -4:] * SIDE / 4
        pixels = self.pixels(x).reshape(len(x), CELLS, CELLS, CELL, CELL, -1)
        pixels = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), SIDE, SIDE, -1)
        # With -3 nothing is likely at first, as for the focal loss of https://arxiv.org/abs/1708.02002
        return objects[..., :-4] - 3, corners, pixels


def loss_of(net: Detector, batch: dict[str, jax.Array]) -> Any:
    """Returns the loss of objects, each with its weight, of their corners, and of all pixels."""
    logits, corners, pixels = net(batch["image"])
    boxes, weight = batch["boxes"].astype(jnp.float32), batch["boxes_weight"]
    at = jnp.clip((boxes[..., :2] + boxes[..., 2:]) / 2 // CELL, 0, CELLS - 1).astype(int)
    here = jnp.arange(len(boxes))[:, None], at[..., 0], at[..., 1]
    # 1 in the cell of an object's centre and less around it, where a miss costs less.
    cells = jnp.stack(jnp.meshgrid(*[jnp.arange(CELLS)] * 2, indexing="ij"), axis=-1)
    distance = ((cells - at[:, :, None, None]) ** 2).sum(-1)  # [B, N, n, n]
    near = jnp.where(weight[..., None, None] > 0, jnp.exp(-distance), 0)
    of_class = jax.nn.one_hot(batch["class"] - 1, logits.shape[-1])  # zeros for padding
    heat = (near[..., None] * of_class[:, :, None, None]).max(axis=1)
    own = jnp.take_along_axis(logits[here], jnp.maximum(batch["class"] - 1, 0)[..., None], -1)
    found = -weight * ((1 - nnx.sigmoid(own)) ** 2 * nnx.log_sigmoid(own))[..., 0]
    missed = (1 - heat) ** 4 * nnx.sigmoid(logits) ** 2 * -nnx.log_sigmoid(-logits)
    of_place = optax.huber_loss(corners[here] / CELL, boxes / CELL).sum(-1)
    of_pixels = optax.softmax_cross_entropy_with_integer_labels(pixels, batch["map"])
    objects = found.sum() + missed.sum() + 0.2 * (weight * of_place).sum()
    return objects / jnp.maximum(weight.sum(), 1) + 5 * of_pixels.mean()


@nnx.jit
def train_step(net: Detector, optimizer: nnx.Optimizer[Detector], batch: Any) -> Any:
    """Updates the detector and returns the loss."""
    loss, gradients = nnx.value_and_grad(loss_of)(net, batch)
    optimizer.update(net, gradients)
    return loss


def train(
    args: argparse.Namespace,
    mix: Any,
    seed: int,
    records: list[dict[str, Any]],
    optimizer: optax.GradientTransformation,
    test: dict[str, np.ndarray],
) -> dict[str, float]:
    """Trains and tests. The seed is that of the scenes, their order, the draws and the weights."""
    net = Detector(nnx.Rngs(seed))
    state = nnx.Optimizer(net, optimizer, wrt=nnx.Param)
    batches = training.load(records, mix, batch_size=args.batch_size, seed=seed, workers=0)
    for _ in range(args.steps):
        jax.block_until_ready(train_step(net, state, next(batches)))
    batches.close()
    chances, corners, pixels = map(np.asarray, answer(net, test["image"]))
    return {
        "precision": mean_average_precision(chances, corners, test["boxes"], test["class"]),
        "iou": mean_iou(pixels, test["map"]),
    }


@nnx.jit
def answer(net: Detector, images: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the chance of each class where it is the largest around, corners, and a label map."""
    logits, corners, pixels = net(images)
    is_peak = logits == nnx.max_pool(logits, (3, 3), padding="SAME")
    return jnp.where(is_peak, nnx.sigmoid(logits), 0), corners, pixels.argmax(-1)


def mean_average_precision(
    chances: np.ndarray, corners: np.ndarray, boxes: np.ndarray, classes: np.ndarray
) -> float:
    """Returns the mean over the classes of the area under precision against recall."""
    precisions = []
    for k in range(NUM_CLASSES):
        found = np.argwhere(chances[..., k] > 0.01)
        found = found[np.argsort(-chances[*found.T, k], kind="stable")]
        free = classes == k + 1  # objects that nothing was matched with yet
        total, right = free.sum(), np.zeros(len(found))
        for i, (image, row, column) in enumerate(found):
            overlap = iou(corners[image, row, column], boxes[image]) * free[image]
            best = overlap.argmax()
            if overlap[best] >= 0.5:
                right[i], free[image, best] = 1, False
        precision = right.cumsum() / (np.arange(len(found)) + 1)
        # The best precision at this recall or a larger one, as in Pascal VOC.
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        precisions.append((envelope * right).sum() / max(1, total))
    return float(np.mean(precisions))


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns intersection over union of a box with others `[N, 4]`."""
    inside = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    both = np.maximum(inside, 0).prod(axis=1)
    area, areas = (
        np.maximum(box[2:] - box[:2], 0).prod(),
        (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
    )
    return np.asarray(both / np.maximum(area + areas - both, 1e-9))


def mean_iou(predicted: np.ndarray, true: np.ndarray) -> float:
    """Returns intersection over union of the pixels of each class but the background, averaged."""
    pairs = [(predicted == k, true == k) for k in range(1, NUM_CLASSES + 1)]
    return float(np.mean([(a & b).sum() / max(1, (a | b).sum()) for a, b in pairs]))


if __name__ == "__main__":
    main(parse_arguments())

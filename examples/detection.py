"""Detection: boxes that are mixed with their pictures, a loss that weighs them, and a figure.

    python examples/detection.py

trains a tiny detector on scenes whose boxes are known exactly (see `scenes.py`), prints the loss,
and writes `detection.png`: mixed pictures with their boxes, each with its class and weight.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scenes
from absl import flags
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import grain_mix as gm

CELLS = 12  # the detector answers for a grid of 12 x 12 cells
COLOURS = ("yellow", "cyan", "magenta", "lime")  # of the boxes of each source, own first

MIX = gm.MixBatch(  # or MosaicBatch, without alpha
    mixup_alpha=1.0,
    targets={"boxes": gm.Boxes("yxyx", fields=("class",))},  # the classes belong to the boxes
)


def main() -> None:
    """Trains, then draws."""
    net = Detector(nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.adam(2e-3), wrt=nnx.Param)
    scenes.train(MIX, lambda batch: train_step(net, optimizer, batch), draw, "detection.png")


class Detector(nnx.Module):
    """Says for each cell what is centred there, and the corners of its box."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(3, 32, (5, 5), strides=4, rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)
        self.third = nnx.Conv(64, 64, (5, 5), rngs=rngs)
        self.head = nnx.Conv(64, len(scenes.NAMES) + 1 + 4, (1, 1), rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns logits `[B, 12, 12, K]` and corners `[B, 12, 12, 4]` in units of the image."""
        x = nnx.relu(self.first(images / 127.5 - 1))
        x = nnx.relu(self.third(nnx.relu(self.second(x))))
        answer = self.head(x)
        return answer[..., :-4], answer[..., -4:]


def loss_of(net: Detector, batch: dict[str, jax.Array]) -> Any:
    """Returns the loss of the boxes, each with its weight. That of hidden ones and padding is 0."""
    logits, corners = net(batch["image"])
    boxes = jnp.asarray(batch["boxes"]) / scenes.SIDE
    centre = jnp.clip((boxes[..., :2] + boxes[..., 2:]) / 2 * CELLS, 0, CELLS - 1).astype(int)
    record = jnp.arange(len(boxes))[:, None]
    at = record, centre[..., 0], centre[..., 1]
    of_class = optax.softmax_cross_entropy_with_integer_labels(logits[at], batch["class"])
    of_place = optax.huber_loss(corners[at], boxes).sum(axis=-1)
    weight = batch["boxes_weight"]
    total = jnp.maximum(weight.sum(), 1)  # not 0, which would make NaN of a batch without objects
    return (weight * (of_class + 10 * of_place)).sum() / total


@nnx.jit
def train_step(net: Detector, optimizer: nnx.Optimizer[Detector], batch: Any) -> Any:
    """Updates the detector and returns the loss."""
    loss, gradients = nnx.value_and_grad(loss_of)(net, batch)
    optimizer.update(net, gradients)
    return loss


def draw(batch: dict[str, np.ndarray]) -> Figure:
    """Draws eight mixed pictures with their boxes, a colour for each source."""
    figure = Figure((12, 6.4), dpi=80, layout="constrained")
    for i, axis in enumerate(figure.subplots(2, 4).flat):
        axis.imshow(batch["image"][i])
        axis.axis("off")
        boxes, weights = batch["boxes"][i], batch["boxes_weight"][i]
        for k, (box, weight) in enumerate(zip(boxes, weights, strict=True)):
            if weight == 0:
                continue
            top, left, bottom, right = box
            colour = COLOURS[k // scenes.MOST]
            size = right - left, bottom - top
            style: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 1.8}
            axis.add_patch(Rectangle((left - 0.5, top - 0.5), *size, **style))
            text = f"{scenes.NAMES[batch['class'][i, k] - 1]} {weight:.2f}"
            label: dict[str, Any] = {"facecolor": "black", "alpha": 0.6, "pad": 1, "linewidth": 0}
            axis.text(left, top + 1, text, color=colour, fontsize=8, va="top", bbox=label)
    figure.suptitle("Mixed pictures; own boxes yellow, the partner's cyan, each with its weight")
    return figure


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags
    main()

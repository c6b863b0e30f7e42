"""Segmentation: label maps that are mixed with their pictures, the loss for them, and a figure.

    python examples/segmentation.py

trains a tiny network on scenes whose label maps are known exactly (see `scenes.py`), prints the
loss, and writes `segmentation.png`: mixed pictures, and both label maps with their weights.
"""

from typing import Any

import jax
import numpy as np
import optax
import scenes
from absl import flags
from flax import nnx
from matplotlib.figure import Figure

import grain_mix as gm

# A blend shows two maps at once, so both come out, with a weight for each.
MIX = gm.MixBatch(mixup_alpha=1.0, targets={"map": gm.LabelMap()})


def main() -> None:
    """Trains, then draws."""
    net = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.adam(3e-3), wrt=nnx.Param)
    scenes.train(MIX, lambda batch: train_step(net, optimizer, batch), draw, "segmentation.png")


class Net(nnx.Module):
    """Three convolutions down, and back up to the size of the picture."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(3, 32, (5, 5), strides=4, rngs=rngs)
        self.second = nnx.Conv(32, 64, (5, 5), rngs=rngs)
        self.head = nnx.Conv(64, len(scenes.NAMES) + 1, (3, 3), rngs=rngs)

    def __call__(self, images: jax.Array) -> Any:
        """Returns logits `[B, H, W, K]`."""
        x = nnx.relu(self.first(images / 127.5 - 1))
        x = self.head(nnx.relu(self.second(x)))
        return jax.image.resize(x, (*images.shape[:3], x.shape[-1]), "linear")


def loss_of(net: Net, batch: dict[str, jax.Array]) -> Any:
    """Returns the mean over pixels of both maps' losses, each with its weight."""
    logits = net(batch["image"])[:, None]  # [B, 1, H, W, K] against maps [B, 2, H, W]
    of_pixel = optax.softmax_cross_entropy_with_integer_labels(logits, batch["map"])
    return (batch["map_weight"] * of_pixel.mean(axis=(2, 3))).sum(axis=1).mean()


@nnx.jit
def train_step(net: Net, optimizer: nnx.Optimizer[Net], batch: Any) -> Any:
    """Updates the network and returns the loss."""
    loss, gradients = nnx.value_and_grad(loss_of)(net, batch)
    optimizer.update(net, gradients)
    return loss


def draw(batch: dict[str, np.ndarray]) -> Figure:
    """Draws six mixed pictures above their two label maps."""
    figure = Figure((12, 6.6), dpi=80, layout="constrained")
    axes = figure.subplots(3, 6)
    style = {"cmap": "tab10", "vmin": 0, "vmax": 9, "interpolation": "nearest"}
    for i in range(6):
        axes[0, i].imshow(batch["image"][i])
        for side, owner in enumerate(("own, cut", "partner's")):
            weight = batch["map_weight"][i, side]
            axes[1 + side, i].imshow(batch["map"][i, side], alpha=0.15 + 0.85 * weight, **style)
            axes[1 + side, i].set_title(f"{owner}: weight {weight:.2f}", fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    names = ", ".join(scenes.NAMES)
    figure.suptitle(f"Mixed pictures and their label maps (background, {names}); pale: less weight")
    return figure


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags
    main()

"""The maps of `gm.maps`, each beside what it mixes: a figure.

    python examples/weight_maps.py

writes `weight_maps.png`: for each map the own record's weights beside the mixed picture.
"""

import argparse
import pathlib
from typing import Any

import numpy as np
import picture
import scenes
from matplotlib.figure import Figure
from PIL import ImageOps
from scipy import ndimage

import grain_mix as gm

# Made of λ and the key alone.
RECIPES: dict[str, Any] = {
    "FMix": gm.maps.FMix(),
    "GridMix": gm.maps.GridMix(),
    "SmoothMix": gm.maps.SmoothMix(),
    "patches": gm.maps.Patches(),
    "SpecMix": gm.maps.SpecMix(),
    "a stripe": gm.maps.Stripe(),
}
# Made of a field, too.
READERS: dict[str, Any] = {
    "ClassMix": gm.maps.ClassMix("map", ignore=0),  # the background stays
    "CopyPaste": gm.maps.CopyPaste("masks"),
    "SaliencyMix": gm.maps.SaliencyMix("saliency"),
}


def main() -> None:
    """Draws the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=pathlib.Path, default="weight_maps.png")
    args = parser.parse_args()
    picture.save(draw(photographs(), two_scenes()), args.output)
    print(f"wrote {args.output}")


def photographs(side: int = 176) -> dict[str, Any]:
    """Two photographs, which are each other's partners."""
    names = ("cat", "flower")
    pictures = [ImageOps.fit(scenes.photograph(name), (side, side)) for name in names]
    return {
        "image": np.stack([np.asarray(photograph) for photograph in pictures]),
        "mix_seed": np.array([6, 7], np.uint32),
    }


def two_scenes() -> dict[str, Any]:
    """Two scenes with a class for each pixel, a mask for each class, and how much pixels matter."""
    pair = [scenes.Scenes(40)[index] for index in (5, 3)]
    images, maps = (np.stack([scene[name] for scene in pair]) for name in ("image", "map"))
    grey = images.mean(axis=-1)
    contrast = np.abs(grey - grey.mean(axis=(1, 2), keepdims=True))
    return {
        "image": images,
        "map": maps,
        "masks": np.stack([maps == k + 1 for k in range(len(scenes.NAMES))], axis=1),
        "saliency": ndimage.gaussian_filter(contrast, (0, 6, 6)).astype(np.float32),
        "mix_seed": np.array([1, 7], np.uint32),
    }


def draw(plain: dict[str, Any], with_fields: dict[str, Any]) -> Figure:
    """Draws the own weights and the mixed picture for each map."""
    figure = Figure((13, 7), dpi=80, layout="constrained")
    maps = [(name, weight_map, plain) for name, weight_map in RECIPES.items()]
    maps += [(name, weight_map, with_fields) for name, weight_map in READERS.items()]
    pairs = figure.subplots(3, 6).reshape(-1, 2)
    for pair, (name, weight_map, batch) in zip(pairs, maps, strict=True):
        transform = gm.WeightMapMixBatch(
            weight_map, alpha=8.0 if weight_map.uses_lam else 1.0, label_key=None
        )
        fields = {field: batch[field] for field in getattr(weight_map, "reads", ())}
        drawn = transform.draw(batch["mix_seed"], batch["image"].shape, fields=fields)
        pair[0].imshow(np.asarray(drawn.weights)[0], cmap="gray", vmin=0, vmax=1)
        pair[0].set_title(f"{name}: white is own", fontsize=9)
        pair[1].imshow(transform.map(batch)["image"][0])
        pair[1].set_title(f"own weight in a label: {drawn.lam[0]:.3f}", fontsize=9)
    for axis in pairs.flat:
        axis.set(xticks=[], yticks=[])
    figure.suptitle("The maps of gm.maps; those of the last row read a field")
    return figure


if __name__ == "__main__":
    main()

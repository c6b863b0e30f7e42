"""Recipes for `gm.WeightMapMixBatch`: six ways to mix, each a function of ten lines, and a figure.

    python examples/weight_maps.py

writes `weight_maps.png`: for each recipe the own record's map beside the mixed photograph.

A recipe returns the own record's weights: `bool`, or floats from 0 to 1. The label follows by
itself. `lam` is the fraction that should be the record's own, as far as a method goes by it.
"""

import argparse
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import picture
import scenes
from matplotlib.figure import Figure
from PIL import ImageOps

import grain_mix as gm


def fmix(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...], decay: float = 3.0) -> jax.Array:
    """FMix: the brightest pixels of random noise in which low frequencies dominate.

    Harris et al., https://arxiv.org/abs/2002.12047
    """
    y, x = jnp.meshgrid(*frequencies(lengths), indexing="ij")
    frequency = jnp.maximum(jnp.hypot(y, x), 1 / max(lengths))
    real, imaginary = jax.random.normal(key, (2, *frequency.shape))
    noise = jax.lax.complex(real, imaginary) / frequency**decay
    grey = jnp.fft.irfft2(noise, lengths)
    brightest_first = jnp.append(jnp.sort(grey.ravel(), descending=True), -jnp.inf)
    kept = jnp.floor(lam * grey.size).astype(int)
    return grey > brightest_first[kept]


def frequencies(lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Those along both axes of a real image's Fourier transform."""
    return np.fft.fftfreq(lengths[0]).astype("f4"), np.fft.rfftfreq(lengths[1]).astype("f4")


def patches(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...], side: int = 16) -> jax.Array:
    """Random patches, such as the tokens of a ViT: each is wholly one record's.

    TokenMix mixes at this level: Liu et al., https://arxiv.org/abs/2207.08409
    """
    rows, columns = (-(-length // side) for length in lengths)
    rank = jax.random.permutation(key, rows * columns).reshape(rows, columns)
    own = rank < jnp.floor(lam * rows * columns)
    return own.repeat(side, axis=0).repeat(side, axis=1)[: lengths[0], : lengths[1]]


def gridmix(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...], cells: int = 5) -> jax.Array:
    """GridMix: in each cell of a grid, a rectangle of 1 - lam of the cell is the partner's.

    Baek et al., https://doi.org/10.1016/j.patcog.2020.107594, in the form of OpenMixup
    """
    shifts = jax.random.uniform(key, (2,))
    in_hole = []
    for length, shift in zip(lengths, shifts, strict=True):
        cell = -(-length // cells)
        position = (jnp.arange(length) + jnp.floor(shift * cell)) % cell
        in_hole.append(position < jnp.round(cell * jnp.sqrt(1 - lam)))
    return ~(in_hole[0][:, None] & in_hole[1])


def smoothmix(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    """SmoothMix: the partner fades out around a random centre. It has a spread and no `lam`.

    Lee et al., https://openaccess.thecvf.com/content_CVPRW_2020/html/w45/Lee_SmoothMix_A_Simple_Yet_Effective_Data_Augmentation_to_Train_Robust_CVPRW_2020_paper.html
    """
    height, width = lengths
    y, x, spread = jax.random.uniform(key, (3,))
    dy = jnp.arange(height)[:, None] / height - y
    dx = jnp.arange(width) / width - x
    sigma = 0.25 + spread / 4
    return 1 - jnp.exp(-(dy**2 + dx**2) / (2 * sigma**2))


def specmix(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    """SpecMix, for spectrograms: up to three bands along each axis are the partner's.

    Kim et al., https://arxiv.org/abs/2108.03020
    """
    in_band = []
    for length, axis_key in zip(lengths, jax.random.split(key), strict=True):
        count, *starts = jax.random.uniform(axis_key, (4,))
        width = length // 8
        first = jnp.floor(jnp.array(starts) * (length - width + 1))[:, None]
        is_drawn = jnp.arange(3)[:, None] < jnp.floor(count * 4)
        position = jnp.arange(length)
        in_band.append((is_drawn & (first <= position) & (position < first + width)).any(axis=0))
    return ~(in_band[0][:, None] | in_band[1])


def stripe(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    """A stripe: an interval of 1 - lam of the rows, or of the columns, is the partner's.

    Summers and Dinneen, https://arxiv.org/abs/1805.11272
    """
    start, direction = jax.random.uniform(key, (2,))
    inside = []
    for length in lengths:
        width = jnp.round((1 - lam) * length)
        first = jnp.floor(start * (length - width + 1))
        position = jnp.arange(length)
        inside.append((first <= position) & (position < first + width))
    return ~jnp.where(direction < 0.5, inside[0][:, None], inside[1])


RECIPES = {
    "FMix": fmix,
    "GridMix": gridmix,
    "SmoothMix": smoothmix,
    "patches": patches,
    "SpecMix": specmix,
    "a stripe": stripe,
}


def main() -> None:
    """Draws the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=pathlib.Path, default="weight_maps.png")
    args = parser.parse_args()
    picture.save(draw(photographs()), args.output)
    print(f"wrote {args.output}")


def photographs(side: int = 176) -> dict[str, Any]:
    """Two photographs, which are each other's partners."""
    names = ("cat", "flower")
    pictures = [ImageOps.fit(scenes.photograph(name), (side, side)) for name in names]
    return {
        "image": np.stack([np.asarray(photograph) for photograph in pictures]),
        "label": np.array([0, 1]),
        "mix_seed": np.array([6, 7], np.uint32),
    }


def draw(batch: dict[str, Any]) -> Figure:
    """Draws the own map and the mixed photograph for each recipe."""
    figure = Figure((12, 6.6), dpi=80, layout="constrained")
    axes = figure.subplots(3, 4)
    for pair, (name, recipe) in zip(axes.reshape(6, 2), RECIPES.items(), strict=True):
        transform = gm.WeightMapMixBatch(recipe, alpha=8.0, num_classes=2)
        weights = transform.draw(batch["mix_seed"], batch["image"].shape).weights
        assert weights is not None
        mixed = transform.map(batch)
        pair[0].imshow(np.asarray(weights[0]), cmap="gray", vmin=0, vmax=1)
        pair[0].set_title(f"{name}: white is the cat's", fontsize=9)
        pair[1].imshow(mixed["image"][0])
        cat, flower = mixed["label"][0]
        pair[1].set_title(f"label: {cat:.3f} cat, {flower:.3f} flower", fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.suptitle("Six maps of weights, each a function of ten lines")
    return figure


if __name__ == "__main__":
    main()

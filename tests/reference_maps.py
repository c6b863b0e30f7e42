"""The maps of `gm.maps` as a reference: plain NumPy, from what their docstrings say.

The random numbers of a key are JAX's own.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix import maps

Lengths = tuple[int, ...]


def map_of(
    weight_map: Any, key: jax.Array, lam: Any, lengths: Lengths, partner: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """The weights of a record's own pixels, and where they are sure.

    They are not where a number is so near to a whole one that float32 may round it otherwise.
    """
    sure = np.ones(lengths, bool)
    match weight_map:
        case maps.ClassMix():
            return classmix(key, partner[weight_map.name], weight_map.ignore), sure
        case maps.CopyPaste():
            return copy_paste(key, partner[weight_map.masks], weight_map.chance), sure
        case maps.SaliencyMix():
            return saliencymix(key, lam, partner[weight_map.name]), sure
        case maps.FMix():
            return fmix(weight_map, key, lam, lengths)
    u = np.asarray(DRAWN[type(weight_map)](weight_map, key, lengths), np.float64)
    own, nearest = recipe(weight_map, u, float(lam), lengths)
    return own, sure & (nearest > 1e-4)


# --- those that read nothing ----------------------------------------------------------------------


def patches(weight_map: maps.Patches, lengths: Lengths) -> Lengths:
    """How many there are along each axis."""
    return tuple(math.ceil(length / weight_map.side) for length in lengths)


DRAWN: dict[Any, Any] = {  # the random numbers of a recipe
    maps.GridMix: lambda it, key, lengths: jax.random.uniform(key, (2,)),
    maps.SmoothMix: lambda it, key, lengths: jax.random.uniform(key, (3,)),
    maps.Patches: lambda it, key, n: jax.random.permutation(key, math.prod(patches(it, n))),
    maps.SpecMix: lambda it, key, lengths: jnp.stack(
        [jax.random.uniform(each, (4,)) for each in jax.random.split(key)]
    ),
    maps.Stripe: lambda it, key, lengths: jax.random.uniform(key, (2,)),
}


def recipe(weight_map: Any, u: np.ndarray, lam: float, sides: Lengths) -> tuple[np.ndarray, float]:
    """In float64, and how near to a whole number it rounded one down."""
    y, x = np.mgrid[: sides[0], : sides[1]]
    axes, own, nearest = ((y, sides[0]), (x, sides[1])), np.ones(sides, bool), [1.0]

    def whole(number: float) -> int:
        nearest.append(abs(number - round(number)) or 1)  # whole numbers are exact
        return math.floor(number)

    match weight_map:
        case maps.GridMix():
            for (position, length), shift in zip(axes, u, strict=True):
                cell = math.ceil(length / weight_map.cells)
                side = whole(cell * (1 - lam) ** 0.5 + 0.5)
                own &= (position + whole(shift * cell)) % cell < side
            own = ~own
        case maps.SmoothMix():
            distance = (y / sides[0] - u[0]) ** 2 + (x / sides[1] - u[1]) ** 2
            own = 1 - np.exp(-distance / (2 * (0.25 + u[2] / 4) ** 2))
        case maps.Patches(side):
            patch = y // side * patches(weight_map, sides)[1] + x // side
            own = u[patch] < whole(lam * len(u))
        case maps.SpecMix():
            for (position, length), (count, *starts) in zip(axes, u, strict=True):
                band = length // 8
                for start in starts[: int(count * 4)]:
                    first = whole(start * (length - band + 1))
                    own &= (position < first) | (first + band <= position)
        case maps.Stripe():
            position, length = axes[0] if u[1] < 0.5 else axes[1]
            band = whole((1 - lam) * length + 0.5)
            first = whole(u[0] * (length - band + 1))
            own = (position < first) | (first + band <= position)
    return own, min(nearest)


def fmix(
    weight_map: maps.FMix, key: jax.Array, lam: Any, lengths: Lengths
) -> tuple[np.ndarray, np.ndarray]:
    """By the paper: a Fourier image of Gaussian noise, divided by a power of its frequency."""
    kept = math.floor(np.float32(lam) * np.float32(math.prod(lengths)))
    noise = np.asarray(jax.random.normal(key, (2, lengths[0], lengths[1] // 2 + 1)), np.float64)
    spectrum = np.zeros(noise.shape[1:], complex)
    for row, column in np.ndindex(*spectrum.shape):
        vertical = (row if row <= (lengths[0] - 1) // 2 else row - lengths[0]) / lengths[0]
        frequency = max(math.hypot(vertical, column / lengths[1]), 1 / max(lengths))
        spectrum[row, column] = complex(*noise[:, row, column]) / frequency**weight_map.decay
    grey = np.fft.irfft2(spectrum, lengths)
    bound = np.sort(np.append(grey.ravel(), -np.inf))[::-1][kept]
    return grey > bound, np.abs(grey - bound) > 1e-4 * grey.std()


# --- those that read fields -----------------------------------------------------------------------


def classmix(key: jax.Array, ids: np.ndarray, ignore: int | None) -> np.ndarray:
    """Ids that are equal modulo 256 share a coin; each of 256 has its own."""
    coins = np.asarray(jax.random.bits(key, (256,), "uint32")) >= 2**31
    own = np.ones(ids.shape, bool)
    for place in np.ndindex(*ids.shape):
        id_of = int(ids[place])
        own[place] = id_of == ignore or not coins[id_of % 256]
    return own


def copy_paste(key: jax.Array, masks: np.ndarray, chance: float) -> np.ndarray:
    own = np.ones(masks.shape[1:], bool)
    for k, mask in enumerate(masks):
        bits = int(jax.random.bits(jax.random.fold_in(key, k), (), "uint32"))
        if bits >> 8 < round(chance * 2**24):
            own[mask != 0] = False
    return own


def paper_side(length: int, lam: np.float32, n: int) -> int:
    """⌊L·(1-λ)^(1/n)⌋, in whole numbers."""
    weight = 2**24 - int(np.float64(lam) * 2**24)
    return max(side for side in range(length + 1) if side**n * 2**24 <= weight * length**n)


def saliencymix(key: jax.Array, lam: Any, field: np.ndarray) -> np.ndarray:
    lengths, values = field.shape, field.astype(np.float64)  # in which all others are exact
    centre = np.unravel_index(int(np.argmax(values)), lengths)
    if np.isnan(values).any() or values.min() == values.max():
        drawn = np.asarray(jax.random.bits(key, (len(lengths),), "uint32"))
        centre = tuple(int(x) % n for x, n in zip(drawn, lengths, strict=True))
    own, box = np.ones(lengths, bool), []
    for middle, length in zip(centre, lengths, strict=True):
        side = paper_side(length, lam, len(lengths))
        start = int(middle) - side // 2
        box.append(slice(max(start, 0), max(min(start + side, length), 0)))
    own[tuple(box)] = False
    return own

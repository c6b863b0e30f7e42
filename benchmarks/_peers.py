"""How each peer mixes: `SIDES` maps a name to a function that yields what it can do.

Each prepares the inputs once in the form it prefers (layout, array type). Timed is the call that
its users make for each batch. A peer that cannot be imported or refuses an input says why.
"""

import functools
import importlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np

import grain_mix as gm
from benchmarks import _maps

ALPHA = 1.0  # for both, so that a typical draw mixes a lot
SPLIT = (0.25, 0.75)  # where the four images of a mosaic meet, as fractions of its sides


class Inputs(NamedTuple):
    """A batch, stacked and as records."""

    images: np.ndarray  # [B, H, W, C]
    labels: np.ndarray  # [B]
    seeds: np.ndarray  # [B]
    classes: int
    torch_device: str = "cpu"

    @property
    def one_hot(self) -> np.ndarray:
        return np.eye(self.classes, dtype=np.float32)[self.labels]

    @property
    def records(self) -> list[dict[str, Any]]:
        fields = zip(self.images.copy(), self.labels, self.seeds, strict=True)
        return [dict(zip(("image", "label", "mix_seed"), f, strict=True)) for f in fields]


class Side(NamedTuple):
    """One way to mix."""

    task: str  # "stacked" or "records"
    kind: str  # "MixUp", "CutMix" or "Mosaic"
    draws: str  # who has its own draw: each "record", each "pair", the whole "batch"
    run: Callable[[], Any]  # returns images and soft labels, `None` where it has none
    labels: bool = True


KINDS = ("MixUp", "CutMix")  # of pairs
MOSAIC = "Mosaic"


def _ours(x: Inputs) -> dict[str, Any]:
    return {
        "MixUp": gm.MixUpBatch(alpha=ALPHA, num_classes=x.classes),
        "CutMix": gm.CutMixBatch(alpha=ALPHA, num_classes=x.classes),
        MOSAIC: gm.MosaicBatch(split=SPLIT, num_classes=x.classes),
    }


def _fields(x: Inputs) -> dict[str, np.ndarray]:
    return {"image": x.images, "label": x.labels, "mix_seed": x.seeds}


def ours_jitted(x: Inputs) -> Iterator[Side]:
    yield from _jitted(x, _ours(x))


def ours_by_maps(x: Inputs) -> Iterator[Side]:
    """Floats in the column of MixUp, `bool` in that of CutMix."""
    maps = zip(KINDS, (_maps.fade, _maps.band), strict=True)
    yield from _jitted(x, {k: gm.WeightMapMixBatch(m, num_classes=x.classes) for k, m in maps})


def _jitted(x: Inputs, transforms: dict[str, Any]) -> Iterator[Side]:
    placed = jax.device_put(_fields(x), jax.local_devices(backend="cpu")[0])
    for kind, transform in transforms.items():
        mix = jax.jit(transform.mix)

        def run(mix: Any = mix) -> Any:
            mixed = mix(placed)
            return mixed["image"], mixed["label"]

        yield Side("stacked", kind, "record", run)


def ours(x: Inputs) -> Iterator[Side]:
    records = grain.MapDataset.source(x.records)
    stacked_by_grain = records.batch(len(x.images), batch_fn=gm.aligned_stack)
    for kind, transform in _ours(x).items():

        def stacked(transform: Any = transform) -> Any:
            mixed = transform.map(_fields(x))
            return mixed["image"], mixed["label"]

        def from_records(transform: Any = transform) -> Any:
            mixed = transform.map(stacked_by_grain[0])
            return mixed["image"], mixed["label"]

        yield Side("stacked", kind, "record", stacked)
        yield Side("records", kind, "record", from_records)


def numpy(x: Inputs) -> Iterator[Side]:
    """Loops over records to cut, broadcasting for MixUp, as a careful user writes it."""
    rng = np.random.default_rng(0)
    size, height, width = x.images.shape[:3]

    def mixup(images: np.ndarray) -> Any:
        lam = rng.beta(ALPHA, ALPHA, size).astype(np.float32)
        weight = lam[:, None, None, None]
        mixed = weight * images + (1 - weight) * images[::-1]
        if images.dtype == np.uint8:
            mixed = np.rint(mixed, out=mixed).astype(np.uint8)
        labels = x.one_hot
        return mixed, lam[:, None] * labels + (1 - lam[:, None]) * labels[::-1]

    def cutmix(images: np.ndarray) -> Any:
        mixed = images.copy()
        weights = np.empty((size, 1), np.float32)
        for i, lam in enumerate(rng.beta(ALPHA, ALPHA, size)):
            sides = np.array([height, width]) * np.sqrt(1 - lam)
            centre = rng.integers(0, (height, width))
            top, left = np.maximum(centre - sides // 2, 0).astype(int)
            bottom, right = np.minimum(centre + sides // 2, (height, width)).astype(int)
            mixed[i, top:bottom, left:right] = images[-1 - i, top:bottom, left:right]
            weights[i] = 1 - (bottom - top) * (right - left) / (height * width)
        labels = x.one_hot
        return mixed, weights * labels + (1 - weights) * labels[::-1]

    def mosaic(images: np.ndarray) -> Any:
        mixed, hot = np.empty_like(images), x.one_hot
        labels = np.zeros_like(hot)
        sides = np.array([height, width])
        low, high = (np.array(bound * sides).astype(int) for bound in SPLIT)
        for i, (top, left) in enumerate(rng.integers(low, high, (size, 2), endpoint=True)):
            rows = [slice(top), slice(height - top, None)], [slice(top, None), slice(height - top)]
            columns = [slice(left), slice(width - left, None)]
            columns = columns, [slice(left, None), slice(width - left)]
            for r, ((y, from_y), (x_, from_x)) in enumerate(itertools.product(rows, columns)):
                source = i - i % 4 + (i + r) % 4
                mixed[i, y, x_] = images[source, from_y, from_x]
                area = len(range(height)[y]) * len(range(width)[x_])
                labels[i] += area / (height * width) * hot[source]
        return mixed, labels

    images = [record["image"] for record in x.records]
    for kind, mix in {**dict(zip(KINDS, (mixup, cutmix), strict=True)), MOSAIC: mosaic}.items():
        yield Side("stacked", kind, "record", lambda mix=mix: mix(x.images))
        yield Side("records", kind, "record", lambda mix=mix: mix(np.stack(images)))


def roll_mixup(key: jax.Array, images: jax.Array, labels: jax.Array, classes: int) -> Any:
    """As many JAX projects do it: one λ for the batch, and `roll`."""
    lam = jax.random.beta(key, ALPHA, ALPHA)
    mixed = lam * images + (1 - lam) * jnp.roll(images, 1, axis=0)
    if images.dtype == jnp.uint8:
        mixed = jnp.rint(mixed)
    soft = jax.nn.one_hot(labels, classes)
    return mixed.astype(images.dtype), lam * soft + (1 - lam) * jnp.roll(soft, 1, axis=0)


def jax_recipe(x: Inputs) -> Iterator[Side]:
    """One λ and one box for a batch, and `roll`."""
    _, height, width = x.images.shape[:3]
    images = jnp.asarray(x.images)
    labels = jnp.asarray(x.labels)
    keys = iter(jax.random.split(jax.random.key(0), 1000))
    mixup = jax.jit(lambda *args: roll_mixup(*args, x.classes))

    @jax.jit
    def cutmix(key: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        for_lam, for_y, for_x = jax.random.split(key, 3)
        root = jnp.sqrt(1 - jax.random.beta(for_lam, ALPHA, ALPHA))
        inside, area = True, 1.0
        for axis, (for_centre, length) in enumerate(((for_y, height), (for_x, width))):
            centre = jax.random.randint(for_centre, (), 0, length)
            half = (length * root).astype(int) // 2
            start, stop = jnp.clip(jnp.stack([centre - half, centre + half]), 0, length)
            line = jnp.arange(length).reshape((1, -1, 1, 1) if axis == 0 else (1, 1, -1, 1))
            inside = inside & (start <= line) & (line < stop)
            area = area * (stop - start) / length
        soft = jax.nn.one_hot(labels, x.classes)
        mixed = jnp.where(inside, jnp.roll(images, 1, axis=0), images)
        return mixed, (1 - area) * soft + area * jnp.roll(soft, 1, axis=0)

    for kind, mix in zip(KINDS, (mixup, cutmix), strict=True):
        yield Side("stacked", kind, "batch", lambda mix=mix: mix(next(keys), images, labels))


def torchvision(x: Inputs) -> Iterator[Side]:
    v2 = importlib.import_module("torchvision.transforms.v2")
    import torch

    images = torch.from_numpy(x.images.transpose(0, 3, 1, 2).copy()).to(x.torch_device)
    labels = torch.from_numpy(x.labels.astype(np.int64)).to(x.torch_device)
    pairs = list(zip(images.clone().unbind(), labels.unbind(), strict=True))
    mixes = [v2.MixUp(alpha=ALPHA, num_classes=x.classes)]
    mixes.append(v2.CutMix(alpha=ALPHA, num_classes=x.classes))
    collate = torch.utils.data.default_collate
    for kind, mix in zip(KINDS, mixes, strict=True):
        yield Side("stacked", kind, "batch", lambda mix=mix: mix(images, labels))
        yield Side("records", kind, "batch", lambda mix=mix: mix(*collate(pairs)))


def timm(x: Inputs) -> Iterator[Side]:
    """Works in place, so it needs no new memory. Each call mixes the result of the last one."""
    mixup = importlib.import_module("timm.data.mixup")
    import torch

    labels = torch.from_numpy(x.labels.astype(np.int64)).to(x.torch_device)
    pairs = list(zip(x.images.transpose(0, 3, 1, 2).copy(), x.labels.astype(int), strict=True))
    for mode, draws in (("elem", "record"), ("pair", "pair"), ("batch", "batch")):
        for kind in KINDS:
            alphas = {"mixup_alpha": ALPHA * (kind == "MixUp")}
            alphas["cutmix_alpha"] = ALPHA * (kind == "CutMix")
            options = {"mode": mode, "label_smoothing": 0.0, "num_classes": x.classes}
            images = torch.from_numpy(x.images.transpose(0, 3, 1, 2).copy()).to(x.torch_device)
            mix = mixup.Mixup(**alphas, **options)
            collate = mixup.FastCollateMixup(**alphas, **options)
            yield Side("stacked", kind, draws, lambda mix=mix, images=images: mix(images, labels))
            yield Side("records", kind, draws, lambda collate=collate: collate(pairs))


def keras(x: Inputs) -> Iterator[Side]:
    """Its layers return float32 for every dtype. Its newest version has a Mosaic, too."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = importlib.import_module("keras")
    if keras.backend.backend() != "jax":
        raise ImportError(f"its backend here is {keras.backend.backend()}")
    batch = {"images": jnp.asarray(x.images), "labels": jnp.asarray(x.one_hot)}
    layers: dict[str, Callable[[], Any]] = {
        "MixUp": lambda: keras.layers.MixUp(alpha=ALPHA),
        "CutMix": lambda: keras.layers.CutMix(factor=ALPHA),
        MOSAIC: lambda: keras.layers.Mosaic(offset=SPLIT),
    }
    for kind, make in layers.items():
        made = functools.cache(make)

        def run(layer: Any = made) -> Any:
            mixed = layer()(batch, training=True)
            return mixed["images"], mixed["labels"]

        yield Side("stacked", kind, "record", run)


def kornia(x: Inputs) -> Iterator[Side]:
    augmentation = importlib.import_module("kornia.augmentation")
    import torch

    images = torch.from_numpy(x.images.transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(x.labels.astype(np.int64))
    keys = ["input", "class"]
    mixes = [augmentation.RandomMixUpV2(p=1.0, data_keys=keys)]
    mixes.append(augmentation.RandomCutMixV2(p=1.0, data_keys=keys))
    for kind, mix in zip(KINDS, mixes, strict=True):
        yield Side("stacked", kind, "record", lambda mix=mix: mix(images, labels))
    mosaic = augmentation.RandomMosaic(start_ratio_range=SPLIT, p=1.0, data_keys=["input"])
    yield Side("stacked", MOSAIC, "record", lambda: (mosaic(images), None), labels=False)


def albumentations(x: Inputs) -> Iterator[Side]:
    """It takes one record after another, and with it the three others of its mosaic."""
    library = importlib.import_module("albumentations")
    sides = x.images.shape[1:3]
    mix = library.Mosaic(target_size=sides, cell_shape=sides, center_range=SPLIT, p=1.0)
    records = [{"image": image} for image in x.images.copy()]

    def run() -> Any:
        mixed = []
        for i, record in enumerate(records):
            start = i - i % 4
            others = records[start:i] + records[i + 1 : start + 4]
            mixed.append(mix(**record, mosaic_metadata=others)["image"])
        return np.stack(mixed), None

    for task in ("stacked", "records"):
        yield Side(task, MOSAIC, "record", run, labels=False)


def datarax(x: Inputs) -> Iterator[Side]:
    config = importlib.import_module("datarax.core.config")
    operators = importlib.import_module("datarax.operators.batch_mix_operator")
    from flax import nnx

    batch = {"image": jnp.asarray(x.images), "label": jnp.asarray(x.one_hot)}
    for kind in KINDS:
        options = config.BatchMixOperatorConfig(
            mode=kind.lower(), alpha=ALPHA, data_field="image", label_field="label"
        )
        operator = operators.BatchMixOperator(options, rngs=nnx.Rngs(0))
        mix = nnx.jit(lambda operator, batch: operator._apply_on_raw(batch, {})[0])

        def run(mix: Any = mix, operator: Any = operator) -> Any:
            mixed = mix(operator, batch)
            return mixed["image"], mixed["label"]

        yield Side("stacked", kind, "batch", run)


SIDES: dict[str, Callable[[Inputs], Iterator[Side]]] = {
    "grain_mix, inside jit": ours_jitted,
    "grain_mix by a weight map, inside jit": ours_by_maps,
    "grain_mix, map": ours,
    "NumPy": numpy,
    "JAX recipe, jitted": jax_recipe,
    "timm": timm,
    "torchvision": torchvision,
    "datarax": datarax,
    "Keras on JAX": keras,
    "kornia": kornia,
    "Albumentations": albumentations,
}

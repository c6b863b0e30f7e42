"""JAX's settings, which users switch on for their own code, change no result and raise nothing."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from common import make_batch
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import grain_mix as gm

SETTINGS: dict[str, tuple[str, Any]] = {
    "x64": ("enable_x64", True),
    "debug_nans": ("debug_nans", True),
    "debug_infs": ("debug_infs", True),
    "transfer_guard": ("transfer_guard", "disallow"),
    "rank_promotion": ("numpy_rank_promotion", "raise"),
    "dtype_promotion": ("numpy_dtype_promotion", "strict"),
    "threefry_partitionable": ("threefry_partitionable", True),
    "threefry_not_partitionable": ("threefry_partitionable", False),
    "default_prng_impl": ("default_prng_impl", "rbg"),
    "check_tracer_leaks": ("check_tracer_leaks", True),
}


def setting(name: str) -> contextlib.AbstractContextManager[Any]:
    option, value = SETTINGS[name]
    of_jax = getattr(jax, option, None)
    return jax_config(option, value) if of_jax is None else of_jax(value)


@contextlib.contextmanager
def jax_config(option: str, value: Any) -> Iterator[None]:
    """For settings that JAX has no context manager for."""
    before = getattr(jax.config, f"jax_{option}")
    jax.config.update(f"jax_{option}", value)
    try:
        yield
    finally:
        jax.config.update(f"jax_{option}", before)


def sharding(axis_type: AxisType) -> NamedSharding:
    mesh = jax.make_mesh((2,), ("data",), (axis_type,), devices=jax.devices()[:2])
    return NamedSharding(mesh, PartitionSpec("data"))


def everything(seed: int) -> dict[str, np.ndarray]:
    """The results of all entry points for one batch. Some of its draws are MixUp, some CutMix."""
    rng = np.random.default_rng(seed)
    batch = make_batch(rng, 8, (9, 6, 3))
    batch |= {"bytes": batch["image"], "image": rng.normal(size=(8, 9, 6, 3)).astype(np.float32)}
    batch |= {"depth": rng.integers(2**16, size=(8, 9, 6), dtype=np.uint16)}
    options: dict[str, Any] = {"num_classes": 10, "image_key": ("image", "depth", "bytes")}
    transform = gm.MixBatch(**options, label_smoothing=0.1)
    sharded = gm.MixBatch(**options, sharding=sharding(AxisType.Auto))
    placed = jax.device_put(batch, sharding(AxisType.Explicit))
    partner, lam = np.arange(8) ^ 1, np.array([0.25, 0.75, 1, 0] * 2)
    box = np.array([[[1, 3], [2, 5]]] * 8)
    out = {
        "map": transform.map(batch),
        "map, sharded": sharded.map(batch),
        "mix, explicit": jax.jit(transform.mix)(placed),
        "draw": transform.draw(batch["mix_seed"], (8, 9, 6, 3)),
        "mixup": gm.mixup(batch["image"], lam, partner),
        "cutmix": gm.cutmix(batch["depth"], box, partner),
    }
    leaves = jax.tree.leaves_with_path(out)
    return {jax.tree_util.keystr(path): jax.device_get(leaf) for path, leaf in leaves}


@pytest.mark.parametrize("name", SETTINGS)
def test_results_stay(name: str, rng: np.random.Generator) -> None:
    seed = int(rng.integers(2**32))
    expected = everything(seed)
    with setting(name):
        actual = everything(seed)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype, key
        np.testing.assert_array_equal(actual[key], value, key)


def test_without_jit(rng: np.random.Generator) -> None:
    """For debugging: draws and integers stay the same, floats may round once more."""
    batch = make_batch(rng, 4, (6, 5, 3), depth=rng.normal(size=(4, 6, 5)).astype(np.float32))
    transform = gm.MixBatch(num_classes=10, image_key=("image", "depth"))
    expected = transform.map(batch), transform.draw(batch["mix_seed"], (4, 6, 5, 3))
    with jax.disable_jit():
        actual = transform.map(batch), transform.draw(batch["mix_seed"], (4, 6, 5, 3))
    jax.tree.map(np.testing.assert_array_equal, actual[1], expected[1])
    assert actual[0].keys() == expected[0].keys()
    for key, value in expected[0].items():
        assert actual[0][key].dtype == value.dtype
        rounding = 0 if value.dtype == np.uint8 else 1e-6
        np.testing.assert_allclose(actual[0][key], value, rtol=0, atol=rounding, err_msg=key)

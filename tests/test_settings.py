"""JAX's settings, which users switch on for their own code, change no result and raise nothing."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import assert_same, make_batch, over
from jax.sharding import AxisType
from programs import batch_of, coins

import grain_mix as gm

SETTINGS: dict[str, tuple[str, Any]] = {
    "x64": ("enable_x64", True),
    "debug_nans": ("debug_nans", True),
    "debug_infs": ("debug_infs", True),
    "transfer_guard": ("transfer_guard", "disallow"),
    "between_devices": ("transfer_guard_device_to_device", "disallow"),
    "rank_promotion": ("numpy_rank_promotion", "raise"),
    "dtype_promotion": ("numpy_dtype_promotion", "strict"),
    "threefry_partitionable": ("threefry_partitionable", True),
    "threefry_not_partitionable": ("threefry_partitionable", False),
    "default_prng_impl": ("default_prng_impl", "rbg"),
    "random_seed_offset": ("random_seed_offset", 1),
    "matmul_precision": ("default_matmul_precision", "highest"),
    "check_tracer_leaks": ("check_tracer_leaks", True),
}


def fog(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    """As a user may write it: promotes dtypes and ranks, and draws as its settings say."""
    row = jax.random.uniform(key, lengths[1:]) + np.arange(lengths[1]) / 10
    return jnp.clip(row * lam + jax.random.normal(jax.random.split(key)[0], lengths), 0, 1)


@dataclasses.dataclass(frozen=True)
class Louder(gm.Target):
    """A kind of a user's own, which promotes as well."""

    def mix(self, sources: Any, draw: gm.Draw, space: gm.Space) -> Any:
        own, partner = sources
        return own * draw.lam + partner * (1 - draw.lam) + np.arange(3)


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


def everything(seed: int) -> dict[str, np.ndarray]:
    """The results of all entry points for one batch. Some of its draws are MixUp, some CutMix."""
    rng, images, sides = np.random.default_rng(seed), ("image", "heat", "depth"), (8, 16)
    fields = {
        "image": ("any", (*sides, 3), "uint8"),
        "heat": ("any", sides, "float32"),
        "depth": ("any", sides, "uint16"),
        "label": ("ids", (), "int64"),
        "lines": ("any", (3,), "int32"),
        "boxes": ("rel_xyxy", sides, "float32"),
        "mix_seed": ("any", (), "uint32"),
    }
    batch, other = batch_of(rng, 8, fields), batch_of(rng, 8, fields)
    targets: dict[str, gm.Target] = {"label": gm.OneHot(5, smoothing=0.1), "lines": Louder()}
    options: dict[str, Any] = {"targets": targets, "image_key": images}
    transform, sharded = gm.MixBatch(**options), gm.MixBatch(**options, sharding=over(2))
    boxes = gm.MixBatch(**options | {"targets": targets | {"boxes": gm.Boxes("rel_xyxy")}})
    brings = gm.MixUpBatch(gm.Beta(2, 8), partner_key="other", **options)
    mosaic = gm.MosaicBatch(label_key=None, targets={"boxes": gm.Boxes("rel_xyxy")})
    words = jax.device_put(np.array([1, 2], np.uint32))
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    seedless = {name: value for name, value in batch.items() if name != "mix_seed"}
    partner, lam = np.arange(8) ^ 1, np.array([0.25, 0.75, 1, 0] * 2)
    box = np.array([[[1, 3], [2, 5]]] * 8)
    out = {
        "float map": gm.WeightMapMixBatch(fog, **options).map(batch),
        "bool map": jax.jit(gm.WeightMapMixBatch(coins, **options).mix)(jax.device_put(batch)),
        "boxes": boxes.map(batch),
        "mosaic": mosaic.map(batch),
        "three": gm.MixUpBatch(sources=3, num_classes=5).map(batch),
        "key": transform.mix(seedless, key=key),
        "partner": brings.map(batch | {"other": other}),
        "map": transform.map(batch),
        "map, sharded": sharded.map(batch),
        "mix, explicit": jax.jit(transform.mix)(jax.device_put(batch, over(2, AxisType.Explicit))),
        "draw": transform.draw(batch["mix_seed"], batch["image"].shape),
        "mixup": gm.mixup(batch["heat"], lam, partner),
        "cutmix": gm.cutmix(batch["depth"], box, partner),
    }
    leaves = jax.tree.leaves_with_path(out)
    return {jax.tree_util.keystr(path): jax.device_get(leaf) for path, leaf in leaves}


DRAWS = {"threefry_not_partitionable", "default_prng_impl", "random_seed_offset"}


def test_results_stay(rng: np.random.Generator) -> None:
    """With 64 bits and not, with all that random numbers depend on and not, and with all else."""
    seed = int(rng.integers(2**32))
    expected = everything(seed)
    for excluded in (DRAWS, {"x64", "threefry_partitionable", "check_tracer_leaks"}):
        names = [name for name in SETTINGS if name not in excluded]
        print(names)
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(setting(name))
            assert_same([everything(seed)], [expected])


@pytest.mark.parametrize("name", ["default_prng_impl", "threefry_not_partitionable"])
def test_keys_that_a_map_makes_itself_stay(name: str, rng: np.random.Generator) -> None:
    batch = make_batch(rng, 4)

    def mixed() -> Any:
        def same(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
            return jax.random.uniform(jax.random.key(7), lengths) < lam

        return gm.WeightMapMixBatch(same, num_classes=10).map(batch)  # traced each time

    expected = mixed()
    with setting(name):
        assert_same([mixed()], [expected])


@pytest.mark.parametrize("transform", [gm.MixBatch(), gm.MosaicBatch()])
def test_weights_at_points(transform: Any, rng: np.random.Generator) -> None:
    draw = transform.draw(rng.integers(2**32, size=8, dtype=np.uint32), (8, 9, 7, 3))
    points = rng.integers(0, 7, (8, 4, 2))

    def found() -> Any:
        return draw.weights_at(points), draw.moved(points, 1), draw.outside_box()

    expected = found()
    strict = ["rank_promotion", "dtype_promotion", "transfer_guard"]
    for names in (strict, [*strict, "x64"]):
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(setting(name))
            actual = found()
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.slow
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


NOT_FINITE = pytest.mark.parametrize("name", ["debug_nans", "debug_infs"])


@NOT_FINITE
@pytest.mark.parametrize("first", [True, False], ids=["set before", "set after"])
def test_images_may_hold_nan(name: str, first: bool, rng: np.random.Generator) -> None:
    """Our call copies what it is given, in both orders of the setting and the first batch."""
    batch = {
        "image": np.full((4, 5, 3 + first, 1), np.nan, np.float32),
        "mix_seed": rng.integers(2**32, size=4, dtype=np.uint32),
    }
    batch["image"][:, 0] = np.inf
    transform = gm.MixUpBatch(0.3 + first, label_key=None, prob=0.5)
    if not first:
        transform.map(batch)
    with setting(name):
        assert np.isnan(transform.map(batch)["image"][:, 1:]).all()
        assert np.isnan(np.asarray(transform.mix(batch)["image"])[:, 1:]).all()


def test_weights_outside_are_our_error_under_debug_nans() -> None:
    def wild(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
        return jnp.full(lengths, 2.0)

    batch = {"image": np.zeros((4, 9, 8, 1), np.uint8), "mix_seed": np.arange(4, dtype=np.uint32)}
    with setting("debug_nans"), pytest.raises(ValueError, match=r"weights from 2\.0 to 2\.0"):
        gm.WeightMapMixBatch(wild, label_key=None).map(batch)

"""Each platform's own program gives the same bits. All of them run here, on the CPU."""

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import Rng
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from reference import mixup_one

import grain_mix as gm
from grain_mix import _blend, _sources

pytestmark = pytest.mark.usefixtures("optimised")

DTYPES = ["uint8", "uint16", "int16", "int8", "uint32", "int32", "float16", "bfloat16", "float32"]
NARROW = [name for name in DTYPES if not name.endswith("32")]
SHAPES = {  # of a batch, and the axes of its box
    "whole words": ((8, 6, 8, 3), (1, 2)),
    "odd rows": ((6, 5, 7, 3), (1, 2)),
    "one channel": ((4, 5, 9, 1), (2, 1)),
    "channels first": ((6, 3, 5, 4), (2, 3)),
    "an odd batch": ((5, 4, 4, 4), (1, 2)),
    "along rows": ((4, 12), (1,)),
    "rows that are not the last axis": ((4, 3, 5, 4), (1,)),
    "volumes": ((4, 3, 4, 5, 2), (1, 2, 3)),
}


def random_batch(rng: Rng, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """All bits are random, so that floats are NaN and infinite too.

    Only products below float32's smallest normal number are avoided: compilers that fuse a product
    into a sum keep them, others make them 0.
    """
    bits = rng.integers(0, 256, (*shape, jnp.dtype(dtype).itemsize), np.uint8)
    values = bits.view(jnp.dtype(dtype))[..., 0]
    if dtype in ("bfloat16", "float32"):
        with np.errstate(invalid="ignore"):
            values[np.abs(values.astype(np.float32)) < 2.0**-100] = 0
    return jnp.asarray(values)


def bits(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return array.view(f"uint{8 * array.dtype.itemsize}")


def on_one_device(function: Any) -> Any:
    """Runs inside `shard_map`, where a batch is known to lie on one device."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    everything = PartitionSpec("data")
    return jax.shard_map(function, mesh=mesh, in_specs=everything, out_specs=everything)


PATHS: dict[str, Any] = {
    "rows": _blend.Rows,
    "rows on CPUs": functools.partial(_blend.Rows, on_cpu=True),
    "words": _blend.Words,
    "pixels": _blend.Pixels,
    "pixels by product": _blend.Pixels,
}


def run(path: str, axes: tuple[int, ...], x: Any, lam: Any, box: Any, weights: Any) -> jax.Array:
    def mix(x: Any, lam: Any, box: Any, weights: Any) -> jax.Array:
        shares = None if lam is None else jnp.stack([lam, 1 - lam], axis=1)
        drawn = _blend.Weights(shares, box, weights)
        return _blend.mixed_in(PATHS[path](axes), (x,), (None, _sources.Neighbour(1, 2)), drawn)

    function = on_one_device(mix) if path == "pixels by product" else mix
    return jax.jit(function)(x, lam, box, weights)


# Each dtype and each shape once, narrow dtypes in whole words; all of them together are slow.
GRID = list(itertools.product(DTYPES, SHAPES))
ONCE = list(zip(DTYPES, itertools.cycle(SHAPES), strict=False))
CASES = [pytest.param(*case, marks=() if case in ONCE else pytest.mark.slow) for case in GRID]


@pytest.mark.parametrize(("dtype", "shape"), CASES)
def test_all_paths_give_the_same_bits(dtype: str, shape: str, rng: Rng) -> None:
    sizes, axes = SHAPES[shape]
    x = random_batch(rng, sizes, dtype)
    lam = rng.integers(0, 2**24 + 1, sizes[0]).astype(np.float32) / 2**24
    lam[:2] = 1, 0
    lengths = np.array([sizes[axis] for axis in axes])
    box = np.sort(rng.integers(0, lengths[:, None] + 1, (sizes[0], len(axes), 2)), axis=-1)
    box = box.astype(np.int32)
    weights = rng.integers(0, 2**24 + 1, (sizes[0], *lengths)).astype(np.float32) / 2**24
    weights[rng.random(weights.shape) < 0.2] = 1
    weights[rng.random(weights.shape) < 0.2] = 0
    draws: list[Any] = [(lam, None, None), (None, box, None), (lam, box, None)]
    if dtype in ("uint8", "bfloat16", "float32"):
        draws += [(None, None, weights), (None, None, weights < 0.5)]
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    for arguments in draws:
        by_floats = arguments[2] is weights
        expected = bits(run("rows", axes, x, *arguments))
        for path in PATHS:
            mixed = bits(run(path, axes, x, *arguments))
            same = mixed == expected
            averaged = by_floats or arguments[0] is not None
            if is_float and (averaged or path.startswith("pixels")):
                # A NaN that is computed may have any payload. And the paths for TPUs leave floats
                # of 16 bits as they are, which JAX 0.8 to 0.10 widen on CPUs, to move them.
                with np.errstate(invalid="ignore"):  # NumPy's, for NaNs that signal
                    same |= np.isnan(mixed.view(x.dtype)) & np.isnan(expected.view(x.dtype))
            if is_float and (by_floats or (averaged and path.startswith("pixels"))):
                # Compilers fuse a product into a sum in one program and not in another: here the
                # CPU's, in the programs that are for TPUs.
                same |= np.abs(mixed.astype(np.int64) - expected.astype(np.int64)) <= 1
            assert same.all(), (path, mixed[~same], expected[~same])


def blended_in(form: Any, orders: Any, arrays: Any, weights: Any) -> jax.Array:
    return _blend.mixed_in(form, arrays, orders, weights)


@pytest.mark.parametrize(
    ("dtype", "shape", "brings"),
    [
        ("uint8", "whole words", False),
        ("uint8", "channels first", True),
        ("int8", "an odd batch", False),
        ("bfloat16", "whole words", False),
        ("uint16", "channels first", False),
        ("float32", "one channel", False),
        ("bool", "odd rows", False),
    ],
)
def test_mosaics_on_all_paths(dtype: str, shape: str, brings: bool, rng: Rng) -> None:
    """Against a loop of NumPy's slices."""
    sizes, axes = SHAPES[shape]
    x = random_batch(rng, sizes, dtype) if dtype != "bool" else jnp.asarray(rng.random(sizes) < 0.5)
    transform = gm.MosaicBatch(split=(0, 1), prob=0.8, spatial_axes=axes, label_key=None)
    draw = transform.draw(rng.integers(2**32, size=sizes[0], dtype=np.uint32), sizes)
    arrays = [x, *(random_batch(rng, sizes, dtype) for _ in range(3))] if brings else [x]
    orders = [None] * 4 if brings else [None, *(_sources.Neighbour(r, 4) for r in (1, 2, 3))]

    expected = np.zeros(sizes, x.dtype)
    for i, r in itertools.product(range(sizes[0]), range(4)):
        shown, taken = [slice(None)] * (len(sizes) - 1), [slice(None)] * (len(sizes) - 1)
        for axis, (start, stop), moved in zip(
            axes, draw.tiles[i, r], draw.shift[i, r], strict=True
        ):
            shown[axis - 1], taken[axis - 1] = (
                slice(start, stop),
                slice(start - moved, stop - moved),
            )
        source = arrays[r][i] if brings else x[draw.sources[i, r]]
        expected[i, *shown] = np.asarray(source)[tuple(taken)]

    weights = _blend.Weights(tiles=draw.tiles, shift=draw.shift)
    for path, form in [*PATHS.items(), ("rows on one CPU", PATHS["rows on CPUs"])]:
        mix = functools.partial(blended_in, form(axes), orders)
        is_alone = path in ("pixels by product", "rows on one CPU")
        function = on_one_device(mix) if is_alone else mix
        mixed = jax.jit(function)(tuple(arrays), weights)
        same = np.asarray(mixed).view("uint8") == expected.view("uint8")
        if dtype == "bfloat16" and path.startswith("pixels"):  # as above
            with np.errstate(invalid="ignore"):
                same |= np.isnan(expected).repeat(2, axis=-1)
        assert same.all(), path


@pytest.mark.parametrize("path", ["rows", "words", "pixels"])
def test_no_path_looks_beyond_its_group(path: str) -> None:
    """Under a plain `jit` groups of four stay on their devices, on GPUs and TPUs too."""
    split = NamedSharding(jax.make_mesh((8,), ("data",), (AxisType.Auto,)), PartitionSpec("data"))
    struct = functools.partial(jax.ShapeDtypeStruct, sharding=split)
    x, shares = struct((64, 8, 8, 4), "uint8"), struct((64, 4), "float32")
    tiles, shift = struct((64, 4, 2, 2), "int32"), struct((64, 4, 2), "int32")
    orders = [None, *(_sources.Neighbour(r, 4) for r in (1, 2, 3))]
    for weights in (_blend.Weights(shares), _blend.Weights(tiles=tiles, shift=shift)):
        mix = functools.partial(blended_in, PATHS[path]((1, 2)), orders)
        program = jax.jit(mix, out_shardings=split).lower((x,), weights).compile().as_text()
        assert not re.findall("all-gather|all-reduce|all-to-all|collective-permute", program)


@pytest.mark.parametrize("path", PATHS)
def test_all_bytes_on_all_paths(path: str, rng: Rng) -> None:
    """Against a loop of 64-bit integers, for λ at the ends, at ties and anywhere."""
    x = np.stack(np.meshgrid(np.arange(256), np.arange(256))).reshape(2, -1).astype(np.uint8)
    for lam in (0, 1 / 2**24, 1 / 256, 0.5, 1 - 1 / 2**24, 1, *rng.random(3)):
        weights = np.rint(np.array([lam, lam]) * 2**24).astype(np.float32) / np.float32(2**24)
        mixed = run(path, (), jnp.asarray(x), weights, None, None)
        for own in (0, 1):
            expected = mixup_one(x[own], x[1 - own], weights[own])
            np.testing.assert_array_equal(mixed[own], expected)


@pytest.mark.parametrize(
    ("dtype", "size"), list(zip([*NARROW, "bool"], itertools.cycle([2, 3, 8, 128]), strict=False))
)
def test_swap_by_product_is_exact(dtype: str, size: int, rng: Rng) -> None:
    x = random_batch(rng, (size, 7, 3), "uint8" if dtype == "bool" else dtype)
    x = x < 128 if dtype == "bool" else x
    order = _sources.Neighbour(1, 2)
    swapped = _sources.rearranged_by_product(x, order)
    assert swapped.dtype == x.dtype
    np.testing.assert_array_equal(bits(swapped), bits(x)[_sources.positions(size, 2)[:, 1]])


@pytest.mark.parametrize(
    ("path", "dtype"), list(zip(PATHS, itertools.cycle(["bfloat16", "float32"]), strict=False))
)
def test_gradients_on_all_paths(path: str, dtype: str, rng: Rng) -> None:
    """With numbers of so few bits that nothing is rounded, in whatever order it is summed."""
    x = jnp.asarray(rng.integers(-4, 4, (4, 4, 4, 2), endpoint=True), dtype)
    lam = jnp.asarray([0.25, 0.5, 0.75, 0.5], jnp.float32)
    start = rng.integers(0, 3, (4, 2))
    box = jnp.asarray(np.stack([start, start + 2], axis=-1), jnp.int32)

    def loss(x: jax.Array, lam: jax.Array, path: str) -> jax.Array:
        return (run(path, (1, 2), x, lam, box, None).astype(jnp.float32) ** 2).sum()

    gradients, expected = (jax.grad(loss, (0, 1))(x, lam, name) for name in (path, "rows"))
    jax.tree.map(np.testing.assert_array_equal, gradients, expected)
    shown = np.abs(np.asarray(gradients[0], np.float32)) > 0
    assert shown.any()


def test_each_platform_gets_its_own_program() -> None:
    struct = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.uint8)
    lam = jax.ShapeDtypeStruct((8,), jnp.float32)
    programs = {}

    def mix(x: jax.Array, lam: jax.Array) -> jax.Array:
        weights = _blend.Weights(jnp.stack([lam, 1 - lam], axis=1))
        return _blend.blend(_sources.neighbours(x, 2), weights)

    for platform, where in itertools.product(("cpu", "cuda", "rocm", "tpu"), ("jit", "shard_map")):
        function = mix if where == "jit" else on_one_device(mix)
        lowered = jax.jit(function).trace(struct, lam).lower(lowering_platforms=(platform,))
        program, in_record = lowered.as_text(), {"x192xui32>": "words", "x768xi16>": "pairs"}
        entries = [name for text, name in in_record.items() if text in program]
        programs[platform, where] = "".join(entries) or "pixels", "dot_general" in program
    both = ("jit", "shard_map")
    expected = {("cpu", where): ("pairs", False) for where in both}
    expected |= {(gpu, where): ("words", False) for gpu in ("cuda", "rocm") for where in both}
    expected |= {("tpu", "jit"): ("pixels", False)}  # where records may lie on several devices
    assert programs == expected | {("tpu", "shard_map"): ("pixels", True)}

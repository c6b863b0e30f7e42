"""Mixing by a map of weights: `WeightMapMixBatch`, and the recipes of the examples."""

import dataclasses
import functools
import hashlib
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weight_maps
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from reference import mixup_one, partner_of

import grain_mix as gm

Lengths = tuple[int, ...]


def coins(key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
    """Each pixel by itself: own with the chance lam."""
    return jax.random.uniform(key, lengths) < lam


def fog(key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
    """Any weights, with many that are 0 and 1."""
    return jnp.clip(jax.random.uniform(key, lengths, minval=-0.5, maxval=1) + lam, 0, 1)


KINDS: dict[str, Callable[..., jax.Array]] = {"bool": coins, "float": fog}
each_kind = pytest.mark.parametrize("kind", KINDS)
SHAPES = {  # of a batch, and the axes of its map
    "images": ((5, 6, 7, 3), (1, 2)),
    "channels first": ((4, 3, 5, 8), (2, 3)),
    "axes turned": ((4, 6, 5, 4), (2, 1)),
    "axes from the end": ((4, 6, 5), (-1, -2)),
    "sound": ((6, 9), (1,)),
    "volumes": ((4, 3, 4, 5, 2), (1, 2, 3)),
}


def batch_of(
    rng: np.random.Generator, shape: tuple[int, ...] = (8, 9, 7, 3), dtype: Any = "uint8"
) -> dict[str, np.ndarray]:
    images = rng.integers(0, 256, shape, np.uint8)
    return {
        "image": images > 127 if dtype == "bool" else images.astype(jnp.dtype(dtype)),
        "label": rng.integers(0, 5, shape[0]),
        "mix_seed": rng.integers(2**32, size=shape[0], dtype=np.uint32),
    }


def by_hand(x: np.ndarray, weights: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Pixel by pixel."""
    axes = tuple(axis % x.ndim for axis in axes)
    out = x.copy()
    for i in range(len(x)):
        for position in itertools.product(*map(range, weights.shape[1:])):
            at: list[Any] = [slice(None)] * x.ndim
            for axis, p in zip(axes, position, strict=True):
                at[axis] = p
            own, other = x[(i, *at[1:])], x[(partner_of(i, len(x)), *at[1:])]
            w = weights[(i, *position)]
            out[(i, *at[1:])] = (
                (own if w else other)
                if weights.dtype == bool
                else mixup_one(np.asarray(own), np.asarray(other), float(w))
            )
    return out


# --- one formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shape", "dtype"),
    [
        *zip(itertools.cycle(KINDS), SHAPES, itertools.repeat("uint8"), strict=False),
        ("float", "images", "uint8"),
        ("float", "images", "float32"),
    ],
)
def test_pixels_and_labels(kind: str, shape: str, dtype: str, rng: np.random.Generator) -> None:
    sizes, axes = SHAPES[shape]
    batch = batch_of(rng, sizes, dtype)
    transform = gm.WeightMapMixBatch(KINDS[kind], spatial_axes=axes, num_classes=5)
    draw = transform.draw(batch["mix_seed"], sizes)
    weights = np.asarray(draw.weights)
    assert weights.shape == (sizes[0], *(sizes[axis] for axis in axes))
    assert weights.dtype == (bool if kind == "bool" else np.float32)
    mixed = transform.map(batch)
    expected = by_hand(batch["image"], weights, axes)
    if dtype == "uint8" or kind == "bool":
        np.testing.assert_array_equal(mixed["image"], expected)
    else:
        np.testing.assert_allclose(mixed["image"], expected, rtol=1e-6, atol=1e-4)
    own, other = np.eye(5)[batch["label"]], np.eye(5)[batch["label"]]
    other = other[[partner_of(i, sizes[0]) for i in range(sizes[0])]]
    mean = weights.reshape(sizes[0], -1).mean(axis=1, dtype=np.float64)
    lam = mean.astype(np.float32) if kind == "bool" else mean
    np.testing.assert_allclose(draw.lam, lam, rtol=0, atol=0 if kind == "bool" else 1e-6)
    expected = np.asarray(draw.lam)[:, None] * own + (1 - np.asarray(draw.lam)[:, None]) * other
    np.testing.assert_allclose(mixed["label"], expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("bool", "uint16"), ("float", "int8"), ("float", "bfloat16")]
)
def test_other_dtypes(kind: str, dtype: str, rng: np.random.Generator) -> None:
    batch = batch_of(rng, (4, 5, 4, 1), dtype)
    transform = gm.WeightMapMixBatch(KINDS[kind], label_key=None)
    weights = np.asarray(transform.draw(batch["mix_seed"], batch["image"].shape).weights)
    mixed = transform.map(batch)["image"]
    assert mixed.dtype == batch["image"].dtype
    expected = by_hand(batch["image"], weights, (1, 2))
    tolerance = 2**-7 if "float" in dtype and kind == "float" else 0
    np.testing.assert_allclose(
        mixed.astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=0
    )


@pytest.mark.parametrize("lengths", [(4096, 4095), (2**20 + 1,)])
def test_label_weights_of_large_maps(lengths: Lengths, rng: np.random.Generator) -> None:
    """Exact for bool, and to 10⁻⁶ for floats, where a sum of float32 would be off by 10⁻³."""
    seeds = rng.integers(2**32, size=2, dtype=np.uint32)
    axes = tuple(range(1, 1 + len(lengths)))

    def wedge(key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
        slope = jax.lax.broadcasted_iota(jnp.float32, lengths, len(lengths) - 1) / lengths[-1]
        return jnp.minimum(slope * lam + 1e-3, 1)

    def half(key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
        return jax.lax.broadcasted_iota(jnp.float32, lengths, len(lengths) - 1) < lam * lengths[-1]

    for function in (wedge, half):
        transform = gm.WeightMapMixBatch(function, spatial_axes=axes, label_key=None)
        draw = transform.draw(seeds, (2, *lengths))
        exact = np.asarray(draw.weights).reshape(2, -1).mean(axis=1, dtype=np.float64)
        if function is half:
            np.testing.assert_array_equal(draw.lam, exact.astype(np.float32))
        else:
            np.testing.assert_allclose(draw.lam, exact, rtol=0, atol=1e-6)


def test_weights_are_on_the_grid_and_the_ends_are_exact(rng: np.random.Generator) -> None:
    def tiny(key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
        return jnp.where(lam < 0.5, 0.0, 1.0) + jnp.zeros(lengths, jnp.bfloat16)

    batch = batch_of(rng, (64, 3, 3, 1), "float32")
    batch["image"][:32] = np.inf  # 0·inf would be NaN
    transform = gm.WeightMapMixBatch(tiny, num_classes=5)
    draw = transform.draw(batch["mix_seed"], batch["image"].shape)
    weights = np.asarray(draw.weights)
    assert set(weights.ravel()) == {0.0, 1.0}
    np.testing.assert_array_equal(draw.lam, weights[:, 0, 0])
    mixed = transform.map(batch)
    np.testing.assert_array_equal(mixed["image"], by_hand(batch["image"], weights == 1, (1, 2)))
    scattered = np.asarray(
        gm.WeightMapMixBatch(fog).draw(batch["mix_seed"], (64, 8, 8, 1)).weights, np.float64
    )
    np.testing.assert_array_equal(scattered * 2**24, np.rint(scattered * 2**24))


# --- what is mixed with it ------------------------------------------------------------------------


def test_all_targets(rng: np.random.Generator) -> None:
    batch = batch_of(rng, (6, 5, 4, 3))
    batch |= {
        "depth": rng.normal(size=(6, 5, 4)).astype(np.float32),
        "map": rng.integers(0, 9, (6, 5, 4, 1), np.uint8),
        "flags": rng.random((6, 5, 4)) < 0.5,
        "age": rng.normal(size=6).astype(np.float32),
        "caption": rng.integers(0, 99, (6, 7)),
    }
    transform = gm.WeightMapMixBatch(
        coins,
        image_key=("image", "depth"),
        targets={
            "label": gm.OneHot(5),
            "age": gm.Soft(),
            "map": gm.LabelMap(),
            "flags": gm.ValueMap(),
            "caption": gm.Pair(),
        },
    )
    draw = transform.draw(batch["mix_seed"], batch["image"].shape)
    weights, lam = np.asarray(draw.weights), np.asarray(draw.lam)
    mixed = transform.map(batch)
    for key in ("image", "depth", "map", "flags"):
        np.testing.assert_array_equal(mixed[key], by_hand(batch[key], weights, (1, 2)))
    swapped = batch["age"].reshape(3, 2)[:, ::-1].ravel()
    np.testing.assert_allclose(mixed["age"], lam * batch["age"] + (1 - lam) * swapped, atol=1e-6)
    assert mixed["caption"].shape == (6, 2, 7)
    np.testing.assert_array_equal(mixed["caption_weight"], np.stack([lam, 1 - lam], axis=1))


@pytest.mark.parametrize("kind", ["bool", pytest.param("float", marks=pytest.mark.slow)])
def test_prob_valid_and_modes(kind: str, rng: np.random.Generator) -> None:
    function = KINDS[kind]
    batch = batch_of(rng, (64, 4, 5, 3)) | {"real": np.arange(64) < 60}
    shape = batch["image"].shape

    def weights(**fields: Any) -> np.ndarray:
        draw = gm.WeightMapMixBatch(function, **fields).draw(batch["mix_seed"], shape)
        return np.asarray(draw.weights)

    always, often = weights(), weights(prob=0.7)
    kept = (often == 1).all(axis=(1, 2))
    assert 5 < kept.sum() < 40
    np.testing.assert_array_equal(often[~kept], always[~kept])  # prob moves no other decision
    assert (weights(prob=0) == 1).all()
    np.testing.assert_array_equal(weights(mode="pair"), always[::2].repeat(2, axis=0))
    np.testing.assert_array_equal(weights(mode="batch"), always[:1].repeat(64, axis=0))
    never = gm.WeightMapMixBatch(function, prob=0, num_classes=5).map(batch)
    np.testing.assert_array_equal(never["image"], batch["image"])
    np.testing.assert_array_equal(never["label"], np.eye(5)[batch["label"]])
    padded = gm.WeightMapMixBatch(function, valid_key="real", num_classes=5).map(batch)
    np.testing.assert_array_equal(padded["image"][60:], batch["image"][60:])
    assert (padded["image"][:60] != batch["image"][:60]).any()
    one = {key: value[:1] for key, value in batch.items()}
    alone = gm.WeightMapMixBatch(function, num_classes=5).map(one)
    np.testing.assert_array_equal(alone["image"], one["image"])
    np.testing.assert_array_equal(alone["label"], np.eye(5)[one["label"]])


# --- the same record, the same map ----------------------------------------------------------------


@pytest.mark.parametrize("recipe", [coins, weight_maps.fmix])
def test_any_batch_size(recipe: Any, rng: np.random.Generator) -> None:
    transform = gm.WeightMapMixBatch(recipe, label_key=None)
    seeds = rng.integers(2**32, size=32, dtype=np.uint32)

    def weights(seeds: np.ndarray) -> np.ndarray:
        return np.asarray(transform.draw(seeds, (len(seeds), 30, 33, 3)).weights)

    expected = weights(seeds)
    for size in (2, 7):
        for start in range(0, 21, 7):
            part = slice(start, start + size)
            np.testing.assert_array_equal(weights(seeds[part]), expected[part])


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("float", "elem"),
        *(pytest.param("bool", m, marks=pytest.mark.slow) for m in ("elem", "batch")),
    ],
)
def test_everywhere_the_same(kind: str, mode: str, rng: np.random.Generator) -> None:
    """Over devices, under jit, inside shard_map and set_mesh, and on Explicit axes."""
    batch = batch_of(rng)
    plain = gm.WeightMapMixBatch(KINDS[kind], num_classes=5, mode=mode)
    expected = plain.map(batch)
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    split = NamedSharding(mesh, PartitionSpec("data"))
    found = [jax.jit(plain.mix)(batch)]
    found += [dataclasses.replace(plain, sharding=split).map(batch)]
    found += [jax.jit(plain.mix)(jax.device_put(batch, split))]
    with jax.set_mesh(mesh):
        found.append(plain.map(batch))
    if mode == "elem":
        parts = PartitionSpec("data")
        mix = jax.shard_map(plain.mix, mesh=mesh, in_specs=(parts,), out_specs=parts)
        found.append(jax.jit(mix)(batch))
    explicit = jax.make_mesh((4,), ("data",), (AxisType.Explicit,), devices=jax.devices()[:4])
    found.append(plain.mix(jax.device_put(batch, NamedSharding(explicit, PartitionSpec("data")))))
    for mixed in found:
        for key in expected:
            np.testing.assert_array_equal(mixed[key], expected[key])


def test_a_map_is_computed_once(rng: np.random.Generator) -> None:
    """Or the compiler could round it in one way for the pixels and in another for the label."""

    def slope(key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
        y, x = jnp.arange(lengths[0])[:, None] / 9, jnp.arange(lengths[1]) / 7
        return y * lam * 3.1 + x * 0.77 + (x - y) * (x + y) < 0.9

    mix = gm.WeightMapMixBatch(slope, num_classes=5).mix
    program = jax.jit(mix).lower(batch_of(rng)).compile().as_text()
    assert program.count(" pred[8,9,7]{2,1,0} compare(") == 1


def test_known_maps() -> None:
    """The key and λ of a seed, for ever, on every platform and with every version."""
    seeds = np.arange(1000, dtype=np.uint32) * np.uint32(4294967)

    def bits(key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
        return (jax.random.bits(key, lengths, "uint32") >> 8) < (lam * 2**24).astype("uint32")

    draw = gm.WeightMapMixBatch(bits).draw(seeds, (1000, 5, 4, 3))
    packed = np.packbits(np.asarray(draw.weights)).tobytes()
    assert hashlib.sha256(packed).hexdigest()[:16] == "d6a5246a9f63047d"
    uniform = gm.MixUpBatch(alpha=1.0).draw(seeds, (1000, 5, 4, 3)).lam
    assert abs(float(np.corrcoef(draw.lam, uniform)[0, 1])) > 0.9  # the same λ


# --- values and errors ----------------------------------------------------------------------------


def scaled(key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
    return jnp.full(lengths, 2 * lam)


def test_weights_out_of_range(rng: np.random.Generator) -> None:
    """An error where values are known, else NaN in the labels of these records."""
    batch = batch_of(rng, (64, 4, 4, 3))
    transform = gm.WeightMapMixBatch(scaled, num_classes=5)
    message = r"weight_map gives weights from 1\.\d+ to 1\.\d+ for seed \d+; expected weights from"
    for call in (
        lambda: transform.map(batch),
        lambda: transform.mix(batch),
        lambda: transform.draw(batch["mix_seed"], (64, 4, 4, 3)),
    ):
        with pytest.raises(ValueError, match=rf"^WeightMapMixBatch: {message}"):
            call()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    lam = np.asarray(gm.MixUpBatch(1.0).draw(batch["mix_seed"], (64, 4, 4, 3)).lam)
    for mixed in (
        jax.jit(transform.mix)(batch),
        dataclasses.replace(transform, sharding=sharding).map(batch),
    ):
        is_nan = np.isnan(mixed["label"]).any(axis=1)
        np.testing.assert_array_equal(is_nan, 2 * lam > 1)
    for wrong in (np.nan, -0.25):

        def constant(key: Any, lam: Any, lengths: Lengths, wrong: float = wrong) -> Any:
            return jnp.full(lengths, wrong)

        with pytest.raises(ValueError, match="weight_map gives weights from"):
            gm.WeightMapMixBatch(constant).draw(batch["mix_seed"], (64, 4, 4, 3))
        # A record that stays unmixed needs no weights.
        never = gm.WeightMapMixBatch(constant, prob=0).draw(batch["mix_seed"], (64, 4, 4, 3))
        assert (np.asarray(never.weights) == 1).all()


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, key: Any, lam: Any, lengths: Any) -> Any:
        return coins(key, lam, lengths)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (0.5, r"weight_map=0\.5; expected a function; it takes \(key, lam, lengths\)"),
        (None, "weight_map=None; expected a function"),
        (gm.MixUpBatch, "weight_map=<class.*; expected a function"),
        (lambda key, lam: lam, r"weight_map\(key, lam\); expected a function of \(key, lam, len"),
        (Unhashable(), "no hash; expected a function; pass a function, functools.partial"),
    ],
)
def test_no_function(function: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^WeightMapMixBatch: .*{message}"):
        gm.WeightMapMixBatch(function)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda key, lam, lengths: lam,
            ValueError,
            r"float32 \[\]; expected bool or floats \[9, 7",
        ),
        (
            lambda key, lam, lengths: jnp.ones((*lengths, 3)),
            ValueError,
            r"returns float32 \[9, 7, 3\]; .*without axes for the batch and for channels",
        ),
        (lambda key, lam, lengths: jnp.ones(lengths, int), TypeError, r"int32 \[9, 7\].*mask == 1"),
        (lambda key, lam, lengths: None, TypeError, "returns a NoneType; expected bool or floats"),
        (lambda key, lam, lengths: (lam, lam), TypeError, "returns a tuple; expected bool or"),
    ],
)
def test_another_result(
    function: Any, error: type[Exception], message: str, rng: np.random.Generator
) -> None:
    batch = batch_of(rng)
    transform = gm.WeightMapMixBatch(function, num_classes=5)
    for call in (
        transform.map,
        transform.mix,
        jax.jit(transform.mix),
        lambda batch: transform.draw(batch["mix_seed"], batch["image"].shape),
    ):
        with pytest.raises(error, match=rf"^WeightMapMixBatch(\.draw)?: weight_map .*{message}"):
            call(batch)


COUNTER = itertools.count()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda key, lam, lengths: np.random.random(lengths) < 0.5, "random number"),
        (lambda key, lam, lengths: jnp.full(lengths, next(COUNTER) % 2 == 0), "a counter"),
        (
            lambda key, lam, lengths: jax.random.uniform(jax.random.key(next(COUNTER)), lengths),
            "a counter",
        ),
    ],
)
def test_maps_that_change(function: Any, message: str, rng: np.random.Generator) -> None:
    """Compiled once, such a map would be the same for all records, and another in each process."""
    batch = batch_of(rng)
    transform = gm.WeightMapMixBatch(function, num_classes=5)
    for call in (
        transform.map,
        jax.jit(transform.mix),
        lambda batch: transform.draw(batch["mix_seed"], batch["image"].shape),
    ):
        with pytest.raises(ValueError, match=rf"two programs.*{message}.*numbers from key"):
            call(batch)


@pytest.mark.parametrize(
    "function",
    [
        lambda key, lam, lengths: (
            jnp.ones(lengths, bool) if lam > 0.5 else jnp.zeros(lengths, bool)
        ),
        lambda key, lam, lengths: jnp.arange(lengths[0] * lengths[1]).reshape(lengths) < int(lam),
        lambda key, lam, lengths: np.full(lengths, np.asarray(lam)),
        lambda key, lam, lengths: jnp.ones(lengths)[: round(float(lam))],
    ],
)
def test_maps_that_cannot_be_compiled(function: Any, rng: np.random.Generator) -> None:
    transform = gm.WeightMapMixBatch(function, num_classes=5)
    for call in (transform.map, jax.jit(transform.mix)):
        message = r"^WeightMapMixBatch: weight_map looks at values.*when it is compiled.*jnp\.where"
        with pytest.raises(TypeError, match=message):
            call(batch_of(rng))


@dataclasses.dataclass(frozen=True)
class Stripes:
    """A map with a parameter."""

    width: Any

    def __call__(self, key: Any, lam: Any, lengths: Any) -> Any:
        return jnp.broadcast_to(jnp.arange(lengths[1]) % 4 < self.width, lengths)


def striped(width: int, key: Any, lam: Any, lengths: Any) -> Any:
    return Stripes(width)(key, lam, lengths)


def test_copies_of_partials_share_a_program(rng: np.random.Generator) -> None:
    """A worker process unpickles a copy for each batch that it gets."""
    from grain_mix import _mixing

    transform = gm.WeightMapMixBatch(functools.partial(striped, 3), num_classes=5, prob=0.9876)
    batch = batch_of(rng)
    expected = transform.map(batch)["image"]
    before = len(_mixing._programs)
    for _ in range(3):
        copy = pickle.loads(pickle.dumps(transform))
        np.testing.assert_array_equal(copy.map(batch)["image"], expected)
    assert len(_mixing._programs) == before
    other = gm.WeightMapMixBatch(functools.partial(striped, 2), num_classes=5, prob=0.9876)
    assert (other.map(batch)["image"] != expected).any()


def test_what_floats_cannot_mix(rng: np.random.Generator) -> None:
    batch = batch_of(rng, dtype="bool") | {"map": np.zeros((8, 9, 7), np.uint8)}
    with pytest.raises(TypeError, match="'image' is bool; expected one of uint8"):
        gm.WeightMapMixBatch(fog, num_classes=5).map(batch)
    mixed = gm.WeightMapMixBatch(coins, num_classes=5).map(batch)
    assert mixed["image"].dtype == bool
    batch = batch_of(rng) | {"map": np.zeros((8, 9, 7), np.uint8)}
    with pytest.raises(TypeError, match=r"'map' with a weight_map that returns float32.*no mean"):
        gm.WeightMapMixBatch(fog, label_key=None, targets={"map": gm.LabelMap()}).map(batch)
    long = {"image": np.zeros((2, 2**12, 2**12), np.uint8)}
    long |= {"mix_seed": np.zeros(2, np.uint32)}
    with pytest.raises(ValueError, match=r"expected at most 16777215 pixels.*or return bool"):
        gm.WeightMapMixBatch(fog, label_key=None, spatial_axes=(1, 2)).map(long)


def test_is_a_value() -> None:
    transform = gm.WeightMapMixBatch(coins, 0.5, num_classes=5)
    assert pickle.loads(pickle.dumps(transform)) == transform
    assert hash(transform) == hash(dataclasses.replace(transform))
    for field, other in {
        "weight_map": fog,
        "alpha": 1.0,
        "spatial_axes": (1,),
        "mode": "pair",
        "valid_key": "real",
        "prob": 0.5,
    }.items():
        assert dataclasses.replace(transform, **{field: other}) != transform


@pytest.mark.parametrize("shape", [(None, 8, 6, 3), (None, None, None, 3), (4, None, 6, 3)])
def test_specs(shape: tuple[Any, ...]) -> None:
    """Lengths that are unknown stay unknown."""
    make = grain.experimental.ShapeDtypeStruct
    spec = {
        "image": make(shape, np.dtype("uint8")),
        "label": make(shape[:1], np.dtype("int32")),
        "map": make(shape[:3], np.dtype("uint8")),
        "boxes": make((*shape[:1], None, 4), np.dtype("float32")),
        "mix_seed": make(shape[:1], np.dtype("uint32")),
    }
    targets = {"label": gm.OneHot(5), "map": gm.LabelMap(), "boxes": gm.Boxes("rel_xyxy")}
    out = gm.MixBatch(targets=targets).output_spec(spec)
    assert out["image"].shape == shape
    assert out["label"].shape == (*shape[:1], 5)
    assert out["map"].shape == (shape[0], 2, *shape[1:3])
    assert out["boxes"].shape == (shape[0], None, 4)
    assert out["boxes_weight"].shape == (shape[0], None)
    del spec["boxes"], spec["map"]
    out = gm.WeightMapMixBatch(fog, num_classes=5).output_spec(spec)
    assert out["image"].shape == shape


# --- the recipes, against NumPy -------------------------------------------------------------------


def by_numpy(name: str, key: jax.Array, lam: float, height: int, width: int) -> np.ndarray:
    """The recipe in loops over pixels, in float64, with the same random numbers."""
    drawn: Any = {
        "GridMix": lambda: jax.random.uniform(key, (2,)),
        "SmoothMix": lambda: jax.random.uniform(key, (3,)),
        "patches": lambda: jax.random.permutation(key, math.ceil(height / 16) * -(-width // 16)),
        "SpecMix": lambda: jnp.stack([jax.random.uniform(k, (4,)) for k in jax.random.split(key)]),
        "a stripe": lambda: jax.random.uniform(key, (2,)),
    }
    u = np.asarray(drawn[name](), np.float64)
    own = np.ones((height, width))
    for y, x in np.ndindex(height, width):
        if name == "GridMix":
            inside = True
            for position, length, shift in ((y, height, u[0]), (x, width, u[1])):
                cell = math.ceil(length / 5)
                inside &= (position + int(shift * cell)) % cell < round(cell * (1 - lam) ** 0.5)
            own[y, x] = not inside
        elif name == "SmoothMix":
            sigma = 0.25 + u[2] / 4
            distance = (y / height - u[0]) ** 2 + (x / width - u[1]) ** 2
            own[y, x] = 1 - math.exp(-distance / (2 * sigma**2))
        elif name == "patches":
            own[y, x] = u[(y // 16) * math.ceil(width / 16) + x // 16] < math.floor(lam * len(u))
        elif name == "SpecMix":
            for position, length, (count, *starts) in ((y, height, u[0]), (x, width, u[1])):
                band = length // 8
                for start in starts[: int(count * 4)]:
                    first = int(start * (length - band + 1))
                    if first <= position < first + band:
                        own[y, x] = 0
        else:
            position, length = (y, height) if u[1] < 0.5 else (x, width)
            band = round((1 - lam) * length)
            first = int(u[0] * (length - band + 1))
            own[y, x] = not first <= position < first + band
    return own


@pytest.mark.parametrize("name", [name for name in weight_maps.RECIPES if name != "FMix"])
def test_recipes(name: str, rng: np.random.Generator) -> None:
    height, width = 41, 64
    recipe = jax.jit(weight_maps.RECIPES[name], static_argnums=2)
    for lam in (0.0, 1.0, *rng.random(10)):
        lam = float(np.float32(lam))
        key = jax.random.key(int(rng.integers(2**31)))
        found = np.asarray(recipe(key, np.float32(lam), (height, width)))
        expected = by_numpy(name, key, lam, height, width)
        if found.dtype == bool:
            np.testing.assert_array_equal(found, expected == 1)
        else:
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        if name in ("patches", "GridMix", "a stripe"):
            assert abs(found.mean() - lam) < 0.2  # as far as cells and pixels allow
            assert lam not in (0, 1) or (found == lam).all()


@pytest.mark.parametrize("lengths", [(32, 32), (15, 40)])
def test_fmix(lengths: tuple[int, int], rng: np.random.Generator) -> None:
    """By the paper: a Fourier image of Gaussian noise, divided by a power of its frequency."""
    recipe = jax.jit(weight_maps.fmix, static_argnums=2)
    for lam in (0.0, 1.0, *rng.random(10)):
        key = jax.random.key(int(rng.integers(2**31)))
        found = np.asarray(recipe(key, np.float32(lam), lengths))
        kept = math.floor(np.float32(lam) * np.float32(found.size))
        assert found.sum() == kept
        noise = np.asarray(jax.random.normal(key, (2, lengths[0], lengths[1] // 2 + 1)), np.float64)
        spectrum = np.zeros(noise.shape[1:], complex)
        for row, column in np.ndindex(*spectrum.shape):
            vertical = (row if row <= (lengths[0] - 1) // 2 else row - lengths[0]) / lengths[0]
            frequency = max(math.hypot(vertical, column / lengths[1]), 1 / max(lengths))
            spectrum[row, column] = complex(*noise[:, row, column]) / frequency**3
        grey = np.fft.irfft2(spectrum, lengths)
        bound = np.sort(np.append(grey.ravel(), -np.inf))[::-1][kept]
        near = np.abs(grey - bound) < 1e-4 * grey.std()  # float32 may tell these apart otherwise
        assert near.mean() < 0.05
        np.testing.assert_array_equal(found[~near], (grey > bound)[~near])

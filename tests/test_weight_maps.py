"""Mixing by a map of weights: `WeightMapMixBatch`, maps that read fields, and `gm.maps`."""

import dataclasses
import functools
import hashlib
import itertools
import math
import pickle
import re
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from common import assert_same, data_loader, everywhere, make_batch, nightly, over, slow
from jax.sharding import AxisType, PartitionSpec
from programs import coins, fog, values
from reference_maps import map_of

import grain_mix as gm
from grain_mix import _run, maps

Lengths = tuple[int, ...]
KINDS = {"bool": coins, "float": fog}


def batch_of(
    rng: np.random.Generator, shape: tuple[int, ...] = (8, 9, 7, 3), dtype: str = "uint8"
) -> dict[str, Any]:
    return make_batch(rng, shape[0], image=values(rng, "any", shape, dtype))


def by_map(function: Any, **more: Any) -> gm.WeightMapMixBatch:
    return gm.WeightMapMixBatch(function, num_classes=10, **more)


# --- one formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dtype", "shape", "axes"),
    [
        ("bool", "uint8", (5, 6, 7, 3), (1, 2)),
        ("float", "uint8", (4, 3, 5, 8), (2, 3)),  # channels first
        ("bool", "uint16", (4, 6, 5, 4), (2, 1)),
        ("float", "bfloat16", (4, 6, 5), (-1, -2)),
        ("bool", "bool", (6, 9), (1,)),
        ("float", "float32", (4, 3, 4, 5, 2), (1, 2, 3)),
        ("float", "int8", (5, 6, 7, 3), (1, 2)),
    ],
)
def test_pixels_and_labels(
    kind: str, dtype: str, shape: tuple[int, ...], axes: Lengths, rng: np.random.Generator
) -> None:
    batch, transform = batch_of(rng, shape, dtype), by_map(KINDS[kind], spatial_axes=axes)
    draw = transform.draw(batch["mix_seed"], shape)
    assert draw.weights.shape == (shape[0], *(shape[axis] for axis in axes))
    assert draw.weights.dtype == (bool if kind == "bool" else np.float32)
    reference.check_mixed(transform, batch, transform.map(batch))


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
    def ends(key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
        return jnp.where(lam < 0.5, 0.0, 1.0) + jnp.zeros(lengths, jnp.bfloat16)

    batch = batch_of(rng, (64, 3, 3, 1), "float32")
    batch["image"][:32] = np.inf  # 0·inf would be NaN
    reference.check_mixed(by_map(ends), batch, by_map(ends).map(batch))
    assert set(np.unique(by_map(ends).draw(batch["mix_seed"], (64, 3, 3, 1)).weights)) == {0, 1}
    scattered = np.float64(by_map(fog).draw(batch["mix_seed"], (64, 8, 8, 1)).weights)
    np.testing.assert_array_equal(scattered * 2**24, np.rint(scattered * 2**24))


@pytest.mark.parametrize("kind", ["bool", nightly("float")])
def test_prob_valid_and_modes(kind: str, rng: np.random.Generator) -> None:
    """`prob` moves no other decision; what is unmixed has weights of 1."""
    batch = batch_of(rng, (64, 4, 5, 3)) | {"valid": np.arange(64) < 60}

    def weights(**fields: Any) -> np.ndarray:
        transform = by_map(KINDS[kind], **fields)
        valid = batch["valid"] if "valid_key" in fields else None
        reference.check_mixed(transform, batch, transform.map(batch))
        draw = transform.draw(batch["mix_seed"], batch["image"].shape, valid)
        return np.asarray(draw.weights)

    always, often = weights(), weights(prob=0.7)
    kept = (often == 1).all(axis=(1, 2))
    assert 2 < kept.sum() < 50
    np.testing.assert_array_equal(often[~kept], always[~kept])
    np.testing.assert_array_equal(weights(valid_key="valid")[:60], always[:60])
    np.testing.assert_array_equal(weights(mode="pair"), always[::2].repeat(2, axis=0))
    np.testing.assert_array_equal(weights(mode="batch"), always[:1].repeat(64, axis=0))


# --- the same record, the same map ----------------------------------------------------------------


@pytest.mark.parametrize("recipe", [coins, maps.FMix()])
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
        slow("bool", "batch"),
        nightly("bool", "elem"),
    ],
)
def test_everywhere_the_same(kind: str, mode: str, rng: np.random.Generator) -> None:
    """Also of a batch that is split already, inside shard_map and inside set_mesh."""
    batch, transform = batch_of(rng), by_map(KINDS[kind], mode=mode)
    expected, split, parts = everywhere(transform, batch), over(4), PartitionSpec("data")
    found = [jax.jit(transform.mix)(jax.device_put(batch, split))]
    found.append(transform.mix(jax.device_put(batch, over(4, AxisType.Explicit))))
    with jax.set_mesh(split.mesh):
        found.append(transform.map(batch))
    if mode == "elem":
        mix = jax.shard_map(transform.mix, mesh=split.mesh, in_specs=(parts,), out_specs=parts)
        found.append(jax.jit(mix)(batch))
    assert_same(jax.device_get(found), [expected] * len(found))


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


@pytest.mark.parametrize(
    ("weight_map", "known"),
    [
        (maps.Patches(3), "67c6310964514deb"),
        (maps.ClassMix("ids", ignore=3), "a352a6206767ba58"),
        (maps.CopyPaste("masks", chance=0.3), "84a160c5cdaaaa5b"),
        (maps.SaliencyMix("ids"), "8d6105feb61485d7"),
    ],
)
def test_known_maps_to_import(weight_map: Any, known: str) -> None:
    """Those that compute with whole numbers alone: the same on every platform, for ever."""
    seeds, count = np.arange(100, dtype=np.uint32) * np.uint32(42949672), np.arange(100 * 54)
    fields = {"ids": count.reshape(100, 9, 6) ** 2 % 257, "masks": count.reshape(100, 3, 9, 2) % 5}
    fields["masks"] = fields["masks"].repeat(3, axis=3) == 1
    read = {name: fields[name] for name in getattr(weight_map, "reads", ())}
    draw = gm.WeightMapMixBatch(weight_map).draw(seeds, (100, 9, 6, 3), fields=read)
    packed = np.packbits(np.asarray(draw.weights)).tobytes()
    assert hashlib.sha256(packed).hexdigest()[:16] == known


# --- values and errors ----------------------------------------------------------------------------


def scaled(key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
    return jnp.full(lengths, 0.5).at[0, 0].set(2 * lam)


def test_weights_out_of_range(rng: np.random.Generator) -> None:
    """An error where values are known, else NaN in the labels of these records."""
    batch, transform, shape = batch_of(rng, (64, 4, 4, 3)), by_map(scaled), (64, 4, 4, 3)
    message = r"weight_map gives weights from 0\.5 to 1\.\d+ for seed \d+; expected weights from"
    for call in (
        lambda: transform.map(batch),
        lambda: transform.mix(batch),
        lambda: transform.draw(batch["mix_seed"], shape),
    ):
        with pytest.raises(ValueError, match=rf"^WeightMapMixBatch: {message}"):
            call()
    lam = np.asarray(gm.MixUpBatch(1.0).draw(batch["mix_seed"], shape).lam)
    on_device = dataclasses.replace(transform, sharding=over(1))
    for mixed in (jax.jit(transform.mix)(batch), on_device.map(batch)):
        np.testing.assert_array_equal(np.isnan(mixed["label"]).any(axis=1), 2 * lam > 1)


@pytest.mark.parametrize("wrong", [np.nan, -0.25])
def test_a_record_that_stays_unmixed_needs_no_weights(wrong: float) -> None:
    def constant(key: Any, lam: Any, lengths: Lengths) -> Any:
        return jnp.full(lengths, wrong)

    seeds = np.arange(4, dtype=np.uint32)
    with pytest.raises(ValueError, match="weight_map gives weights from"):
        by_map(constant).draw(seeds, (4, 4, 4, 3))
    assert (np.asarray(by_map(constant, prob=0).draw(seeds, (4, 4, 4, 3)).weights) == 1).all()


class Unchecked:
    def __call__(self, key: Any, lam: Any, lengths: Any) -> Any:
        return coins(key, lam, lengths)


@dataclasses.dataclass(frozen=True)
class Stripes:
    width: int

    def __call__(self, key: Any, lam: Any, lengths: Any) -> Any:
        return striped(self.width, key, lam, lengths)


class Wider(Stripes):
    """Not decorated, so what it holds is no field."""

    def __init__(self, width: int, more: int) -> None:
        super().__init__(width)
        object.__setattr__(self, "more", more)


@dataclasses.dataclass(frozen=True)
class Hidden(Stripes):
    more: int = dataclasses.field(default=0, compare=False)


class AllEqual(Unchecked):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class Unhashable(Unchecked):
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (0.5, r"weight_map=0\.5; expected a function; it takes \(key, lam, lengths\)"),
        (None, "weight_map=None; expected a function"),
        (gm.maps.FMix, "weight_map=<class.*; expected a function; write FMix.*, with brackets"),
        (lambda key, lam: lam, r"weight_map\(key, lam\); expected a function of \(key, lam, len"),
        (Unhashable(), "no hash; expected one with a hash; pass a function, functools"),
        (AllEqual(), "a frozen dataclass, which cannot change; decorate class AllEqual"),
        (Wider(1, 2), "a frozen dataclass, which cannot change; decorate class Wider"),
        (functools.partial(Wider(1, 2)), "decorate class Wider"),
        (Hidden(1, 2), "whose hash does not see 'more'.*be fields, without compare=False"),
    ],
)
def test_no_function(function: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^WeightMapMixBatch: .*{message}"):
        gm.WeightMapMixBatch(function)


COUNTER = itertools.count()
FELL_ALIKE = itertools.cycle([True, True, True, False])
JITTED = jax.jit(lambda lam: lam < np.random.random())
CALLED = "TypeError: .*calls Python while it runs, by pure_callback.*numbers from key"


def called(key: Any, lam: Any, lengths: Any) -> Any:
    spec = jax.ShapeDtypeStruct(lengths, bool)
    return jax.pure_callback(lambda: np.random.random(lengths) < 0.5, spec)


NOT_COMPILED = "TypeError: .*looks at values.*when it is compiled.*jnp.where"
CHANGES = "ValueError: .*two programs.*random number.*a counter.*numbers from key"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        # Another result than weights for each pixel.
        (lambda k, lam, n: lam, r"ValueError: .*float32 \[\]; expected bool or floats \[9, 7"),
        (
            lambda k, lam, n: jnp.ones((*n, 3)),
            r"ValueError: .*\[9, 7, 3\]; .*without axes for the b",
        ),
        (lambda k, lam, n: jnp.ones(n, int), r"TypeError: .*returns int32 \[9, 7\].*mask == 1"),
        (lambda k, lam, n: None, "TypeError: .*returns a NoneType; expected bool or floats"),
        (lambda k, lam, n: (lam, lam), "TypeError: .*returns a tuple; expected bool or"),
        # Compiled once, it would be the same for all records, and another in each process.
        (lambda k, lam, n: np.random.random(n) < 0.5, CHANGES),
        (lambda k, lam, n: jnp.full(n, next(COUNTER) % 2 == 0), CHANGES),
        (lambda k, lam, n: jax.random.uniform(jax.random.key(next(COUNTER)), n), CHANGES),
        (lambda k, lam, n: jnp.full(n, next(FELL_ALIKE)), CHANGES),
        (lambda k, lam, n: jnp.broadcast_to(JITTED(lam), n), CHANGES),
        (called, CALLED),
        (jax.jit(called, static_argnums=2), CALLED),
        # What cannot be compiled.
        (lambda k, lam, n: jnp.ones(n) if lam > 0.5 else jnp.zeros(n), NOT_COMPILED),
        (lambda k, lam, n: jnp.arange(math.prod(n)).reshape(n) < int(lam), NOT_COMPILED),
        (lambda k, lam, n: np.full(n, np.asarray(lam)), NOT_COMPILED),
        (lambda k, lam, n: jnp.ones(n)[: round(float(lam))], NOT_COMPILED),
    ],
)
def test_wrong_maps(function: Any, message: str, rng: np.random.Generator) -> None:
    batch, transform = batch_of(rng), by_map(function)
    for call in (
        transform.map,
        transform.mix,
        jax.jit(transform.mix),
        lambda batch: transform.draw(batch["mix_seed"], (8, 9, 7, 3)),
    ):
        with pytest.raises((TypeError, ValueError), match="weight_map") as error:
            call(batch)
        assert re.match(message, f"{error.typename}: {error.value}")
        assert str(error.value).startswith("WeightMapMixBatch")


KEY, NAN = jax.random.key(0), jnp.array([np.nan, 1], jnp.bfloat16)


@pytest.mark.parametrize(
    "function",
    [lambda k, lam, n: jax.random.uniform(KEY, n) < lam, lambda k, lam, n: jnp.full(n, NAN[1])],
    ids=["a key", "NaN in bfloat16"],
)
def test_constants_of_a_map(function: Any) -> None:
    make = grain.experimental.ShapeDtypeStruct
    spec = {"image": make((2, 4, 4, 3), np.dtype("uint8"))}
    spec |= {"mix_seed": make((2,), np.dtype("uint32"))}
    transform = gm.WeightMapMixBatch(function, label_key=None)
    assert transform.output_spec(spec)["image"] == spec["image"]


def striped(width: int, key: Any, lam: Any, lengths: Any) -> Any:
    return jnp.broadcast_to(jnp.arange(lengths[1]) % 4 < width, lengths)


def test_a_parameter_that_is_not_known(rng: np.random.Generator) -> None:
    def step(batch: Any, width: Any) -> Any:
        return by_map(functools.partial(striped, width)).mix(batch)

    with pytest.raises(TypeError, match=r"^WeightMapMixBatch: .*not known; .*pass plain numbers"):
        jax.jit(step)(batch_of(rng), 3)


def test_copies_of_partials_share_a_program(rng: np.random.Generator) -> None:
    """A worker process unpickles a copy for each batch that it gets."""
    transform, batch = by_map(functools.partial(striped, 3), prob=0.9876), batch_of(rng)
    expected = transform.map(batch)["image"]
    before = _run._on_host()._cache_size()
    for _ in range(3):
        copy = pickle.loads(pickle.dumps(transform))
        np.testing.assert_array_equal(copy.map(batch)["image"], expected)
    assert _run._on_host()._cache_size() == before
    other = by_map(functools.partial(striped, 2), prob=0.9876)
    assert other != transform
    assert (other.map(batch)["image"] != expected).any()


def test_what_floats_cannot_mix(rng: np.random.Generator) -> None:
    with pytest.raises(TypeError, match="'image' is bool; expected one of uint8"):
        by_map(fog).map(batch_of(rng, dtype="bool"))
    batch = batch_of(rng) | {"map": np.zeros((8, 9, 7), np.uint8)}
    with pytest.raises(TypeError, match=r"'map' with a weight_map that returns float32.*no mean"):
        gm.WeightMapMixBatch(fog, label_key=None, targets={"map": gm.LabelMap()}).map(batch)
    with pytest.raises(ValueError, match=r"expected at most 16777215 pixels.*or return bool"):
        by_map(fog).draw(batch["mix_seed"], (8, 2**12, 2**12, 3))


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
    size, *sides = shape[:3]
    assert {name: x.shape for name, x in out.items()} == {
        "image": shape,
        "label": (size, 5),
        "map": (size, 2, *sides),
        "map_weight": (size, 2),
        "boxes": (size, None, 4),
        "boxes_weight": (size, None),
    }
    del spec["boxes"], spec["map"]
    assert gm.WeightMapMixBatch(fog, num_classes=5).output_spec(spec)["image"].shape == shape


# --- maps that read fields ------------------------------------------------------------------------


def by_seed(key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
    return (jax.random.bits(key, lengths, "uint32") >> 8) < (lam * 2**24).astype("uint32")


def by_fields(key: Any, lam: Any, lengths: Lengths, own: Any, partner: Any) -> jax.Array:
    """Of fields of two shapes and of the image; numbers are whole, so a loop gives the same."""
    gain = own["few"].sum() - partner["few"].sum()
    swapped = own["scores"] + gain < partner["scores"] - own["image"][..., 0]
    return by_seed(key, lam, lengths) ^ swapped


READS = ("scores", "few", "image")


def record_of(rng: np.random.Generator, size: int) -> dict[str, Any]:
    scores = rng.integers(-500, 500, (size, 9, 7), np.int32)
    few = rng.integers(-50, 50, (size, 2), np.int8)
    return make_batch(rng, size, (9, 7, 3), scores=scores, few=few)


@pytest.mark.parametrize(
    ("mode", "brings", "size"),
    [
        ("elem", True, 8),
        ("batch", False, 8),
        nightly("elem", False, 8),
        nightly("pair", False, 8),
        slow("batch", True, 8),
    ],
)
def test_maps_that_read(mode: str, brings: bool, size: int, rng: np.random.Generator) -> None:
    """λ and the key are of those who share a draw, and fields are each record's own."""
    transform = by_map(by_fields, reads=READS, mode=mode, partner_key="other" if brings else None)
    batch, others = record_of(rng, size), record_of(rng, size)
    if brings:
        batch["other"] = {name: x for name, x in others.items() if name != "mix_seed"}
    mixed = everywhere(transform, batch)
    seeds, shape = batch["mix_seed"], batch["image"].shape
    fields = {name: batch[name] for name in READS}
    fields |= {f"other/{name}": others[name] for name in READS if brings}
    weights = np.asarray(transform.draw(seeds, shape, fields=fields).weights)
    shared = np.asarray(by_map(by_seed, mode=mode).draw(seeds, shape).weights)
    for i in range(size):
        a = {name: x[i] for name, x in batch.items() if name != "other"}
        b = {name: others[name][i] if brings else batch[name][i ^ 1] for name in a}
        image, kept = a["image"].copy(), 0
        gain = int(a["few"].astype(int).sum()) - int(b["few"].astype(int).sum())
        for y, x in np.ndindex(9, 7):
            swapped = a["scores"][y, x] + gain < b["scores"][y, x] - int(a["image"][y, x, 0])
            own = bool(shared[i, y, x]) != bool(swapped)
            assert bool(weights[i, y, x]) == own
            kept += own
            if not own:
                image[y, x] = b["image"][y, x]
        np.testing.assert_array_equal(mixed["image"][i], image)
        label = np.zeros(10, np.float32)
        label[a["label"]] = np.float32(kept) / np.float32(63)
        label[b["label"]] += 1 - np.float32(kept) / np.float32(63)
        np.testing.assert_allclose(mixed["label"][i], label, rtol=0, atol=1e-7)
    assert mixed.keys() == {"image", "label", "scores", "few"}
    for name in ("scores", "few"):  # nothing mixes these
        assert mixed[name] is batch[name]


def masks_of(rng: np.random.Generator, shape: Lengths) -> np.ndarray:
    """`[*shape]`: rectangles, of which the last in a record are often padding."""
    masks = np.zeros(shape, np.uint8)
    for each in masks.reshape(-1, *shape[-2:]):
        (top, bottom), (left, right) = (np.sort(rng.integers(0, n + 1, 2)) for n in shape[-2:])
        each[top:bottom, left:right] = rng.integers(1, 256)
    masks[:, rng.integers(1, shape[1]) :] = 0
    return masks


PASTE = gm.WeightMapMixBatch(
    maps.CopyPaste("masks"), label_key=None, targets={"ids": gm.LabelMap()}
)


@pytest.mark.parametrize("workers", [0, slow(1)])
def test_loaders_and_a_restart(workers: int, rng: np.random.Generator) -> None:
    """A worker gives the same, and an iterator that starts in the middle goes on with the same."""
    masks, ids = masks_of(rng, (16, 3, 9, 7)), rng.integers(0, 9, (16, 9, 7), np.uint8)
    images = rng.integers(256, size=(16, 9, 7, 3), dtype=np.uint8)
    records = [{"image": images[i], "masks": masks[i], "ids": ids[i]} for i in range(16)]

    def load(*more: Any) -> Any:
        batch = grain.transforms.Batch(4)
        return data_loader(records, gm.RecordSeed(), batch, *more, worker_count=workers)

    loader = load(PASTE)
    iterator = iter(loader)
    first, state = next(iterator), iterator.get_state()
    rest = list(iterator)
    assert_same([first, *rest], map(PASTE.map, load()))
    again = iter(loader)
    again.set_state(state)
    assert_same(list(again), rest)


@pytest.mark.parametrize(
    "weight_map",
    [
        maps.CopyPaste("masks", chance=0.9),
        nightly(maps.SaliencyMix("ids")),
        slow(maps.ClassMix("ids", ignore=2)),
    ],
)
def test_everywhere_the_same_for_maps_that_read(weight_map: Any, rng: np.random.Generator) -> None:
    """With a label map, and an image of which the columns come first; any order of the axes."""
    ids, masks = rng.integers(0, 9, (8, 9, 9), np.uint8), masks_of(rng, (8, 3, 9, 9))
    masks[:, 0, 2:5, 3:7] = 1  # each record has an object
    batch = make_batch(rng, 8, (3, 9, 9), ids=ids, masks=masks)
    targets = {"ids": gm.LabelMap(), "label": gm.OneHot(10)}
    found = []
    for axes in ((2, 3), (3, 2), (-1, -2)):
        transform = gm.WeightMapMixBatch(weight_map, targets=targets, spatial_axes=axes)
        found.append(everywhere(transform, batch) if axes == (3, 2) else transform.map(batch))
        read = {name: batch[name] for name in weight_map.reads}
        weights = transform.draw(batch["mix_seed"], batch["image"].shape, fields=read).weights
        upright = np.asarray(weights).transpose(0, *np.argsort(np.argsort(axes)) + 1)
        others = np.arange(8) ^ 1
        mixed = np.where(upright, ids, ids[others])
        np.testing.assert_array_equal(found[-1]["ids"], mixed)
        mixed = np.where(upright[:, None], batch["image"], batch["image"][others])
        np.testing.assert_array_equal(found[-1]["image"], mixed)
    assert_same(found, [found[0]] * 3)
    changed = found[0]["image"] != batch["image"]
    assert changed.any()
    assert not changed.all()


def test_padding_with_masks_changes_no_draw(rng: np.random.Generator) -> None:
    masks, seeds = masks_of(rng, (8, 3, 9, 7)), rng.integers(2**32, size=8, dtype=np.uint32)
    padded = np.concatenate([masks, np.zeros((8, 4, 9, 7), np.uint8)], axis=1)
    two = [PASTE.draw(seeds, (8, 9, 7, 3), fields={"masks": x}).weights for x in (masks, padded)]
    np.testing.assert_array_equal(*two)
    nothing = PASTE.draw(seeds, (8, 9, 7, 3), fields={"masks": np.zeros_like(masks)})
    assert (np.asarray(nothing.lam) == 1).all()


def three(key: Any, lam: Any, lengths: Any) -> Any:
    return jnp.ones(lengths, bool)


def five(key: Any, lam: Any, lengths: Any, own: Any, partner: Any) -> Any:
    return jnp.ones(lengths, bool)


class ReadsIds:
    reads = ("ids",)

    def __call__(self, key: Any, lam: Any, lengths: Any, own: Any, partner: Any) -> Any:
        return five(key, lam, lengths, own, partner)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            lambda: by_map(three, reads=("ids",)),
            r"TypeError: .*reads=\('ids',\); .*own and partner are d",
        ),
        (lambda: by_map(five), r"TypeError: .*function of \(key, lam, le.*which fields it reads"),
        (lambda: by_map(five, reads="ids"), r"TypeError: .*reads='ids'.*a tuple like \('ids',\)"),
        (lambda: by_map(ReadsIds(), reads=("ids",)), "ValueError: .*one of them; leave the option"),
        (lambda: by_map(maps.SmoothMix(), alpha=0.3), "ValueError: .*0.3 with SmoothMix.*no alpha"),
        (lambda: by_map(maps.SpecMix(), alpha=0.3), "ValueError: .*0.3 with SpecMix.*no alpha"),
        (
            lambda: by_map(maps.ClassMix("a"), alpha=0.3),
            "ValueError: .*0.3 with ClassMix.*no alpha",
        ),
        (lambda: by_map(maps.CopyPaste("a"), alpha=0.3), "ValueError: .*with CopyPaste.*no alpha"),
        (
            lambda: by_map(maps.ClassMix("a"), spatial_axes=(1, -2)),
            r"ValueError: .*\(1, -2\) with ClassMix.*counted from one end; count all",
        ),
        (lambda: maps.FMix(0), "ValueError: FMix: decay=0; expected a finite number above 0"),
        (lambda: maps.GridMix(0), "ValueError: GridMix: cells=0; expected an int above 0"),
        (lambda: maps.Patches(1.5), "TypeError: Patches: side=1.5; expected an int above 0"),  # type: ignore[arg-type]
        (lambda: maps.ClassMix("a", ignore=2.0), "TypeError: ClassMix: ignore=2.0; .*a class id"),  # type: ignore[arg-type]
        (lambda: maps.CopyPaste("a", chance=2), "ValueError: CopyPaste: chance=2; .* from 0 to 1"),
        (lambda: maps.SaliencyMix(""), "TypeError: SaliencyMix: name=''; expected a field's name"),
        (lambda: maps.CopyPaste("a", prob=1), "TypeError: CopyPaste: .*'prob'.*masks, chance"),  # type: ignore[call-arg]
    ],
)
def test_parameters_of_maps(parameters: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        parameters()
    assert re.match(message, f"{error.typename}: {error.value}")


def test_an_alpha_that_changes_nothing_is_accepted() -> None:
    """That of the default, also where it is written as a law."""
    for alpha in (1.0, 1, gm.Beta(1, 1)):
        by_map(maps.ClassMix("ids"), alpha=alpha)


@pytest.mark.parametrize(
    ("transform", "changes", "message"),
    [
        (by_map(maps.ClassMix("idz")), {}, "KeyError: .*no field 'idz'.*mean 'ids'.*map reads it"),
        (
            by_map(maps.ClassMix("ids"), partner_key="other"),
            {"other": {"image": np.zeros((4, 9, 7, 3), np.uint8), "label": np.arange(4)}},
            "KeyError: .*no field 'other/ids' among .*the partner of 'ids'",
        ),
        (by_map(five, reads=("mix_seed",)), {}, "ValueError: .*'mix_seed' read by a weight map"),
        (by_map(five, reads=("text",)), {"text": np.array([*"abcd"])}, "TypeError: .*'text' is <U"),
        (
            by_map(maps.ClassMix("ids")),
            {"ids": np.zeros((4, 7, 9), "i4")},
            r"ValueError: .*'ids' is int32 \[4, 7, 9\], which .*image .*\[9, 7\] .*\[B, 9, 7\]",
        ),
        (
            by_map(maps.CopyPaste("masks")),
            {"masks": np.zeros((4, 2, 9, 8), "i4")},
            r"ValueError: .*'masks' is int32 \[4, 2, 9, 8\].*image.*\[9, 7\].*\[B, N, 9, 7\].*crop",
        ),
        (by_map(maps.CopyPaste("ids")), {}, r"ValueError: .*'ids'.*is for gm\.maps\.ClassMix"),
        (by_map(maps.ClassMix("masks")), {}, r"ValueError: .*are for gm\.maps\.CopyPaste"),
        (by_map(maps.SaliencyMix("image")), {}, r"ValueError: .*'image'.*take the mean"),
        (
            by_map(maps.SaliencyMix("grey")),
            {"grey": np.zeros((4, 9, 7, 1), np.float32)},
            "ValueError: .*'grey'.*drop the axis of length 1",
        ),
        (
            by_map(maps.ClassMix("ids")),
            {"ids": np.zeros((4, 9, 7), np.float32)},
            "TypeError: .*'ids' is float32, which ClassMix reads; expected class ids",
        ),
        (
            by_map(maps.ClassMix("ids", ignore=-1)),
            {"ids": np.zeros((4, 9, 7), np.uint8)},
            r"ValueError: .*'ids' is uint8, with ClassMix.*-1.*from 0 to 255",
        ),
        (by_map(maps.SaliencyMix("z")), {"z": np.zeros((4, 9, 7), "c8")}, "TypeError: .*complex64"),
        (by_map(maps.Patches()), {}, "ValueError: .*side=16.*expected more than one patch"),
        (by_map(maps.GridMix(7)), {}, "ValueError: .*cells=7.*at least two pixels in a cell"),
        (by_map(maps.SpecMix()), {}, "ValueError: .*expected at least 8 pixels along each"),
        (
            by_map(maps.FMix(), spatial_axes=(1,)),
            {},
            r"ValueError: .*FMix.*\[9\] long.*expected two axes",
        ),
    ],
)
def test_what_maps_cannot_read(
    transform: Any, changes: Any, message: str, rng: np.random.Generator
) -> None:
    fields: dict[str, Any] = {
        "ids": np.zeros((4, 9, 7), "i4"),
        "masks": np.zeros((4, 2, 9, 7), "i4"),
    }
    batch = make_batch(rng, 4, (9, 7, 3), **fields | changes)
    for call in (transform.map, jax.jit(transform.mix)):
        if "text" in changes and call != transform.map:
            continue  # no array of JAX's
        with pytest.raises((KeyError, TypeError, ValueError)) as error:
            call(batch)
        assert re.match(message, f"{error.typename}: {error.value.args[0]}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (None, r"KeyError: .*fields=\[\]; expected 'ids', which the map reads; pass fields={'ids'"),
        ({"ids": 0}, r"KeyError: .*fields=\['ids'\]; expected 'other/ids', which the map reads"),
        ({"ids": 0, "other/ids": 0, "more": 0}, r"ValueError: .*fields=\['more'\], which nothing"),
        ({"ids": 2}, r"ValueError: .*fields\['ids'\] is int64 \[2, 9, 7\]; expected an array \[4,"),
        ({"ids": 7, "other/ids": 7}, r"ValueError: .*'ids' is int64 \[4, 7, 9\].*image.*\[9, 7\]"),
        ({"ids": 0, "other/ids": 7}, r"ValueError: .*'ids'.*but 'other/ids' is int64 \[4, 7, 9\]"),
    ],
)
def test_what_draw_cannot_read(fields: Any, message: str) -> None:
    """The numbers stand for arrays: 0 fits, 2 is of two records, 7 is turned."""
    arrays = {0: np.zeros((4, 9, 7), int), 2: np.zeros((2, 9, 7), int), 7: np.zeros((4, 7, 9), int)}
    transform = by_map(maps.ClassMix("ids"), partner_key="other")
    given = fields and {name: arrays[kind] for name, kind in fields.items()}
    with pytest.raises((KeyError, ValueError)) as error:
        transform.draw(np.arange(4, dtype=np.uint32), (4, 9, 7, 3), fields=given)
    assert error.value.args[0].startswith("WeightMapMixBatch.draw: ")
    assert re.match(message, f"{error.typename}: {error.value.args[0]}")


def test_specs_of_maps_that_read() -> None:
    """A field whose lengths are unknown has those of the image."""
    make = grain.experimental.ShapeDtypeStruct
    spec = {
        "image": make((None, 48, 40, 3), np.dtype("uint8")),
        "masks": make((None, None, None, None), np.dtype("bool")),
        "mix_seed": make((None,), np.dtype("uint32")),
    }
    for axes in ((1, 2), (2, 1)):
        transform = dataclasses.replace(PASTE, spatial_axes=axes, targets={})
        assert transform.output_spec(spec)["image"].shape == (None, 48, 40, 3)
    unknown = spec | {"image": make((None, None, None, 3), np.dtype("uint8"))}
    for weight_map in (maps.CopyPaste("masks"), maps.Patches(), maps.GridMix(), maps.SpecMix()):
        transform = gm.WeightMapMixBatch(weight_map, label_key=None)
        assert transform.output_spec(unknown)["image"].shape == (None, None, None, 3)


# --- the maps to import, against NumPy ------------------------------------------------------------


@pytest.mark.parametrize(
    "weight_map",
    [
        maps.GridMix(),
        maps.GridMix(3),
        maps.SmoothMix(),
        maps.Patches(),
        maps.Patches(5),
        maps.SpecMix(),
        maps.Stripe(),
    ],
    ids=repr,
)
def test_recipes(weight_map: Any, rng: np.random.Generator) -> None:
    sides = (41, 64)
    recipe = jax.jit(weight_map, static_argnums=2)
    for lam in np.float32([0, 1, *rng.random(10)]):
        key = jax.random.key(int(rng.integers(2**31)))
        found = np.asarray(recipe(key, lam, sides))
        expected, sure = map_of(weight_map, key, lam, sides, {})
        off = 0 if found.dtype == bool else 1e-6
        np.testing.assert_allclose(found[sure], expected[sure], rtol=0, atol=off)
        if isinstance(weight_map, maps.Patches | maps.GridMix | maps.Stripe) and sure.all():
            assert abs(found.mean() - lam) < 0.2  # as far as cells and pixels allow
            assert lam not in (0, 1) or (found == lam).all()


@pytest.mark.parametrize("decay", [3.0, 1.5])
@pytest.mark.parametrize("lengths", [(32, 32), (15, 40)])
def test_fmix(lengths: tuple[int, int], decay: float, rng: np.random.Generator) -> None:
    recipe = jax.jit(maps.FMix(decay), static_argnums=2)
    for lam in np.float32([0, 1, *rng.random(10)]):
        key = jax.random.key(int(rng.integers(2**31)))
        found = np.asarray(recipe(key, lam, lengths))
        assert found.sum() == math.floor(lam * np.float32(found.size))
        expected, sure = map_of(maps.FMix(decay), key, lam, lengths, {})
        assert sure.mean() > 0.95
        np.testing.assert_array_equal(found[sure], expected[sure])


def key_and_lam(rng: np.random.Generator) -> tuple[jax.Array, Any]:
    """A key, and a λ on the grid of 2⁻²⁴, now and then at its ends."""
    lam = np.float32(rng.choice([0, 2**24, rng.integers(2**24), rng.integers(2**24)]) / 2**24)
    return jax.random.key(int(rng.integers(2**31))), lam


def check_reading(weight_map: Any, field: np.ndarray, rng: np.random.Generator) -> None:
    """A map that reads this field of the partner, with a key and a λ."""
    [name], objects = weight_map.reads, isinstance(weight_map, maps.CopyPaste)
    key, lam = key_and_lam(rng)
    given = key, lam, field.shape[objects:]
    found = jitted(weight_map)(*given, {}, {name: field})
    np.testing.assert_array_equal(found, map_of(weight_map, *given, {name: field})[0])


@functools.cache
def jitted(weight_map: Any) -> Any:
    return jax.jit(weight_map, static_argnums=2)


@pytest.mark.parametrize(
    ("dtype", "ignore"),
    [("uint8", 255), ("int8", -3), ("uint32", 2**32 - 2), ("int32", None), ("bool", True * 1)],
)
def test_classmix(dtype: str, ignore: int | None, rng: np.random.Generator) -> None:
    lengths, low, high = (33, 8), 0, 2
    if dtype != "bool":
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max) + 1
    for _ in range(8):
        ids = rng.integers(low, high, lengths).astype(dtype)
        ids.flat[:8] = 0 if ignore is None else ignore
        check_reading(maps.ClassMix("ids", ignore=ignore), ids, rng)


def test_coins_of_classes_are_fair_and_their_own(rng: np.random.Generator) -> None:
    """Of 256 classes; twelve standard deviations of a fair coin are allowed."""
    size, ids = 600, np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    seeds = rng.integers(2**32, size=size, dtype=np.uint32)
    fields = {"ids": ids.repeat(size, axis=0)}
    transform = gm.WeightMapMixBatch(maps.ClassMix("ids"))
    coins = np.asarray(transform.draw(seeds, (size, 16, 16, 3), fields=fields).weights)
    coins = coins.reshape(size, 256).astype(float)
    bound = 6 / size**0.5
    assert abs(coins.mean(axis=0) - 0.5).max() < bound
    related = np.corrcoef(coins.T)[np.triu_indices(256, 1)]
    assert abs(related).max() < 2 * bound


@pytest.mark.parametrize(("dtype", "chance"), [("uint8", 0.5), ("float32", 0.2), ("bool", 1.0)])
def test_copy_paste(dtype: str, chance: float, rng: np.random.Generator) -> None:
    for _ in range(8):
        masks = masks_of(rng, (1, 5, 9, 7))[0].astype(dtype)
        if dtype == "float32":
            masks *= -0.25  # any value but 0
        check_reading(maps.CopyPaste("masks", chance=chance), masks, rng)


@pytest.mark.parametrize("lengths", [(9, 7), (23,), (4, 6, 5)])
@pytest.mark.parametrize("kind", ["ties", "constant", "NaN", "infinite", "bytes"])
def test_saliencymix(kind: str, lengths: Lengths, rng: np.random.Generator) -> None:
    for _ in range(6):
        field = rng.integers(0, 4, lengths).astype(np.float32)
        field.flat[:2] = 0, 3
        if kind == "constant":
            field[...] = rng.integers(-2, 3)
        elif kind in ("NaN", "infinite"):
            field.flat[rng.integers(field.size)] = np.nan if kind == "NaN" else np.inf
        elif kind == "bytes":
            field = (field + 252).astype(np.uint8)
        check_reading(maps.SaliencyMix("field"), field, rng)

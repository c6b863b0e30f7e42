"""What a field says about the image: every kind, its errors, and the names of fields."""

import ast
import collections
import dataclasses
import functools
import pickle
import re
import warnings
import zlib
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from common import KINDS, assert_same, everywhere, nightly, over
from programs import Points, all_kinds, batch_of, coins, fog

import grain_mix as gm
from grain_mix import _errors, _fields

SIZE, HEIGHT, WIDTH = 8, 12, 10
MIXUP, CUT = gm.MixUpBatch, gm.CutMixBatch


def make_batch(rng: np.random.Generator, **fields: Any) -> dict[str, Any]:
    return {
        "image": rng.integers(256, size=(SIZE, HEIGHT, WIDTH, 3), dtype=np.uint8),
        "mix_seed": rng.integers(2**32, size=SIZE, dtype=np.uint32),
        **fields,
    }


def of(transform: Any, targets: Any, **options: Any) -> Any:
    return dataclasses.replace(transform, targets=targets, label_key=None, **options)


# --- kinds --------------------------------------------------------------------------------------


EVERY = {  # with the number of a choice of kinds, and the shape of an image
    "mixup": (MIXUP(0.8, prob=0.8), 1, (8, 16, 3)),
    "mixup by 0 or 1": (MIXUP(0.01), 7, (8, 16, 3)),
    "cutmix": (CUT(), 13, (8, 16, 3)),
    "cutmix, channels first": (CUT(spatial_axes=(2, 3)), 58, (3, 8, 16)),
    "cutmix of sound": (CUT(spatial_axes=(1,)), 6, (20,)),
    "both": (gm.MixBatch(prob=0.8), 9, (8, 16, 3)),
    "both, axes turned": (gm.MixBatch(spatial_axes=(2, 1)), 69, (8, 16, 3)),
    "a map of bool": (gm.WeightMapMixBatch(coins), 9, (8, 16, 3)),
    "a map of floats": (gm.WeightMapMixBatch(fog), 10, (8, 16, 3)),
}


ALIKE = {"mixup by 0 or 1", "cutmix, channels first"}


@pytest.mark.parametrize("name", [nightly(name) if name in ALIKE else name for name in EVERY])
def test_every_kind(name: str, rng: np.random.Generator) -> None:
    """As the reference says; the same under `jit`, on devices, and by a copy."""
    transform, fields = all_kinds(*EVERY[name])
    batch = batch_of(rng, SIZE, fields)
    reference.check_mixed(transform, batch, everywhere(transform, batch))


@pytest.mark.parametrize("kind", ["mixup", "both"])
def test_weighted_label_maps_are_what_the_image_shows(kind: str, rng: np.random.Generator) -> None:
    """The image is the one-hot map, so that the weighted maps must give it back."""
    size = 501
    maps = rng.integers(0, 7, (size, 6, 5)).astype(np.int32)
    batch = {
        "image": np.eye(7, dtype=np.float32)[maps],
        "mask": maps,
        "more": {"mask": maps[..., None].astype(np.uint8)},
        "mix_seed": rng.integers(2**32, size=size, dtype=np.uint32),
    }
    targets = {"mask": gm.LabelMap(), "more/mask": gm.LabelMap()}
    mixed = KINDS[kind](targets=targets, prob=0.8, spatial_axes=(1, 2)).map(batch)
    weights, masks = mixed["mask_weight"], mixed["mask"]
    shown = (np.eye(7)[masks] * weights[:, :, None, None, None]).sum(axis=1)
    np.testing.assert_allclose(mixed["image"], shown, atol=1e-6)
    assert ((weights > 0) & (weights < 1)).any()
    assert mixed["more"]["mask"].dtype == np.uint8
    np.testing.assert_array_equal(mixed["more"]["mask"][..., 0], masks)
    np.testing.assert_array_equal(mixed["more"]["mask_weight"], weights, strict=True)


def test_labels_for_each_frame_are_cut_with_time(rng: np.random.Generator) -> None:
    batch = {
        "image": rng.normal(size=(SIZE, 20)).astype(np.float32),
        "frames": np.arange(SIZE, dtype=np.float32).repeat(60).reshape(SIZE, 20, 3),
        "mix_seed": rng.integers(2**32, size=SIZE, dtype=np.uint32),
    }
    transform = of(CUT(), {"frames": gm.ValueMap()}, spatial_axes=(1,))
    own = transform.map(batch)["frames"] == np.arange(SIZE)[:, None, None]
    draw = transform.draw(batch["mix_seed"], (SIZE, 20))
    np.testing.assert_allclose(own.mean((1, 2)), draw.lam, atol=1e-6)


def test_a_further_image_may_have_no_channels(rng: np.random.Generator) -> None:
    batch = make_batch(rng, image=rng.integers(256, size=(SIZE, 3, HEIGHT, WIDTH), dtype=np.uint8))
    batch["depth"] = batch["image"][:, 0].copy()
    mixed = of(CUT(image_key=("image", "depth")), {}, spatial_axes=(2, 3)).map(batch)
    np.testing.assert_array_equal(mixed["depth"], mixed["image"][:, 0])


# --- a user's own kind --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixup", "cutmix", "both", "a map of floats"])
def test_weights_at_points_are_the_pixels_weights(name: str, rng: np.random.Generator) -> None:
    """Images of 1 with partners of 0 show each pixel's own weight."""
    transform, *_ = EVERY[name]
    batch = make_batch(rng, image=np.ones((SIZE, HEIGHT, WIDTH, 1), np.float32))
    batch["image"][1::2] = 0
    points = np.stack(np.mgrid[:HEIGHT, :WIDTH], -1) + np.zeros((SIZE, 1, 1, 1))
    shown = dataclasses.replace(transform, label_key=None).map(batch)["image"][..., 0]
    weights = transform.draw(batch["mix_seed"], batch["image"].shape).weights_at(
        points + rng.random() * 0.999  # which float32 does not round up to the next pixel
    )
    np.testing.assert_allclose(shown[::2], weights[::2, ..., 0], atol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Own(gm.Target):
    """What a function makes of a record's own value and its draw."""

    function: Any = lambda own, draw: own

    def mix(self, sources: Any, draw: Any, space: Any) -> Any:
        return self.function(sources[0], draw)


class Undecorated(Own):
    """Its sibling's program would be its own."""


@dataclasses.dataclass(frozen=True)
class Hides(Own):
    by: dataclasses.InitVar[int] = 0

    def __post_init__(self, by: int) -> None:
        object.__setattr__(self, "factor", by)


@dataclasses.dataclass(frozen=True)
class Computes(Own):
    n: int = 3

    @functools.cached_property
    def twice(self) -> int:
        return 2 * self.n


class Clipped(gm.Soft):
    def mix(self, own: Any, partner: Any, draw: Any, space: Any) -> Any:
        return own


class Checked(gm.Boxes):
    def check(self, name: str, array: Any, space: Any) -> None:
        raise ValueError(name)


MINE = [dataclasses.dataclass(frozen=True)(each) for each in (Clipped, Checked)]
IDLE: Any = dataclasses.make_dataclass("Idle", [], bases=(gm.Target,), frozen=True)


def own(function: Any = Own.function) -> Any:
    return of(MIXUP(), {"age": Own(function)})


def test_a_users_own_kind_sees_32_bits(rng: np.random.Generator) -> None:
    halves = own(lambda own, draw: own * draw.lam)
    batch = make_batch(rng, age=rng.random((SIZE, 2)))
    expected = halves.map(batch)["age"]
    with jax.enable_x64(True):
        np.testing.assert_array_equal(halves.map(batch)["age"], expected, strict=True)


@dataclasses.dataclass(frozen=True)
class OfPairs(gm.Target):
    """A kind that takes two sources."""

    def mix(self, sources: Any, draw: Any, space: Any) -> Any:
        own, partner = sources
        return jnp.maximum(own, partner)


@pytest.mark.parametrize("transform", [gm.MosaicBatch(), gm.MixUpBatch(sources=3)])
def test_a_kind_of_pairs_under_more_sources(transform: Any, rng: np.random.Generator) -> None:
    with pytest.raises(TypeError, match=r"OfPairs.mix mixes pairs.*for [34] sources.*sources"):
        of(transform, {"age": OfPairs()}).map(make_batch(rng, age=rng.random(SIZE)))


def test_a_draw_has_no_box_under_some_transforms(rng: np.random.Generator) -> None:
    with pytest.raises(TypeError) as error:
        own(lambda own, draw: own * draw.box[0, 0]).map(make_batch(rng, age=rng.random(SIZE)))
    assert "draw.weights_at(points) works under all" in "".join(error.value.__notes__)


@pytest.mark.parametrize("sharding", [None, over(2)], ids=["a pair", "passed to devices"])
def test_values_that_32_bits_do_not_tell_apart(sharding: Any, rng: np.random.Generator) -> None:
    """Seconds since 1970 differ by 128 in float32. Floats in general may be rounded."""
    targets = {} if sharding else {"a": gm.Stacked()}
    mix = of(gm.MixUpBatch(), targets, sharding=sharding)
    moments = np.append([1700000000.5, 1700000040.25], np.zeros(SIZE - 2))
    for values in (
        1.7e9 + np.arange(SIZE),
        1.7e9 + rng.random(SIZE),
        1.7e9 + 3600 * rng.random((SIZE, 300, 100)),
        moments,
        np.full(SIZE, 2**40),
        np.append(np.zeros(SIZE - 1), 1e300),
    ):
        with pytest.raises(ValueError, match=r"'a' is .*32 tells apart.*jax_enable_x64"):
            mix.map(make_batch(rng, a=values))
    noise = np.array([0.1 + 0.2, 0.3]).repeat(SIZE // 2)  # of float64's own rounding
    for values in (rng.normal(size=(SIZE, 1000)), 1 + rng.random((SIZE, 100, 100)), noise):
        assert mix.map(make_batch(rng, a=values))["a"].dtype == np.float32
    with jax.enable_x64(True):
        assert mix.map(make_batch(rng, a=1.7e9 + np.arange(SIZE)))["a"].dtype == np.float64


def weights_at(shape: tuple[int, ...]) -> Any:
    draw = CUT().draw(np.arange(SIZE, dtype=np.uint32), (SIZE, HEIGHT, WIDTH, 3))
    return draw.weights_at(np.zeros(shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weights_at((SIZE, 5, 3)), r"Draw.weights_at: points is .*expected \[\.\.\., 2\]"),
        (lambda: weights_at((5, 2)), "Draw.weights_at: .*draw of 8 records.*jax.vmap"),
        (lambda: gm.OneHot(10, 0.1), "OneHot: 2 parameters without a name.*smoothing"),
        (lambda: gm.OneHot(10, label_smoothing=0.1), "'label_smoothing'.*did you mean 'smoothing'"),
        # One suggestion, or none.
        (lambda: gm.MixBatch(p=0.5), r"'p'; expected one of [^?]*(did you mean '\w+'\? )?see the"),
    ],
)
def test_wrong_calls(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# --- nothing is guessed -------------------------------------------------------------------------

MASK = np.zeros((SIZE, HEIGHT, WIDTH), np.uint8)
AGE = {"age": np.ones((SIZE, 3), np.float32)}
NOT_A_NUMBER = np.full((SIZE, 3, 2), np.nan, np.float32)


class Tensor:
    """Of another library: its dtype is not NumPy's."""

    shape, dtype = (SIZE, HEIGHT, WIDTH, 3), "torch.uint8"


def kind(of_label: gm.Target) -> dict[str, Any]:
    return {"targets": {"label": of_label}}


def points() -> Any:
    return of(MIXUP(), {"age": Points("seen")})


@pytest.mark.parametrize(
    ("transform", "fields", "message"),
    [
        # A target for each position, given as a label.
        (CUT(), {"label": MASK.astype(np.float32)}, "gm.ValueMap.*gm.LabelMap"),
        (CUT(num_classes=9), {"label": MASK}, "gm.ValueMap.*gm.LabelMap"),
        (MIXUP(), {"label": MASK}, "gm.ValueMap.*gm.LabelMap"),
        (MIXUP(num_classes=9), {"label": MASK}, "gm.LabelMap"),
        # Several ids, in a list or as a matrix.
        (MIXUP(num_classes=100), {"label": np.ones((SIZE, 5), int)}, "several class ids.*MultiHot"),
        (MIXUP(num_classes=9), {"label": np.ones((SIZE, 2), int)}, r"heads.*label\[:, 0\]"),
        (MIXUP(), {"label": np.full((SIZE, 5), 7)}, "num_classes; lists of ids.*several heads"),
        (MIXUP(), {"label": np.full((SIZE, 5), -1)}, "integers from -1 to -1.*missing"),
        (MIXUP(), {"label": np.ones((SIZE, 1), int)}, "num_classes=K, else.*MultiHot"),
        (MIXUP(**kind(gm.MultiHot())), {"label": np.full((SIZE, 5), -1)}, "from -1 to"),
        (MIXUP(**kind(gm.MultiHot())), {"label": np.full((SIZE, 5), 2.0)}, "from 2.0"),
        (MIXUP(**kind(gm.MultiHot())), {"label": np.arange(SIZE)}, "OneHot"),
        (CUT(**kind(gm.MultiHot())), {"label": np.ones((SIZE, 3, 4))}, "ValueMap"),
        (MIXUP(**kind(gm.Soft())), {"label": np.arange(SIZE)}, "OneHot or Sparse"),
        (MIXUP(**kind(gm.Soft())), {"label": np.ones((SIZE, 5), "c8")}, "real and imaginary"),
        (MIXUP(**kind(gm.Soft(smoothing=0.1))), {"label": np.ones(SIZE)}, "smoothing=0"),
        # Soft labels, where class ids were said.
        (MIXUP(num_classes=5), {"label": np.ones((SIZE, 5))}, "leave num_classes out"),
        (MIXUP(num_classes=5), {"label": np.ones(SIZE)}, "cast class ids to integers"),
        (MIXUP(), {"label": np.ones(SIZE)}, "gm.Soft()"),
        (MIXUP(), {"label": np.arange(SIZE)}, "pass num_classes=K"),
        (MIXUP(label_smoothing=0.1), {"label": np.ones((SIZE, 5))}, "MultiHot.smoothing=0.1"),
        # A label that maps would leave behind.
        (MIXUP(targets={"map": gm.LabelMap()}), {"map": MASK, "label": MASK}, "label_key=None"),
        # Maps of other sizes.
        (CUT(targets={"map": gm.LabelMap()}), {"map": MASK[:, :-1]}, "lengths there, .12, 10."),
        (CUT(targets={"map": gm.ValueMap((2, 1))}), {"map": MASK}, "lengths there"),
        (CUT(targets={"map": gm.ValueMap((1,))}), {"map": MASK}, "2 axes"),
        # A user's own kind.
        (own(lambda own, draw: {"": own, "_more": own}), AGE, "KeyError.*_more.*adds ="),
        (own(lambda own, draw: {}), AGE, "KeyError.*'' among them"),
        (own(lambda own, draw: own if draw.lam > 0.5 else -own), AGE, "TypeError.*mix looks.*jnp"),
        (own(lambda own, draw: own * np.random.rand()), AGE, "ValueError.*Own.mix gave two"),
        (own(), {"age": np.arange(SIZE) + 2**40}, ": Own: .*int32 tells apart"),
        (own(), {"age": np.arange(SIZE) + 1.7e9}, ": Own: .*float32 tells apart"),
        (own(), {"age": np.array(["x"] * SIZE)}, ": Own: 'age' is <U1.*numbers"),
        (points(), AGE | {"seen": np.ones(SIZE)}, "Points: 'age'; expected points"),
        (points(), {"age": NOT_A_NUMBER, "seen": np.ones(SIZE)}, "Points: 'age'; expected"),
        # What is no field, or is of another batch.
        (MIXUP(), {"image": Tensor()}, r"a Tensor of .*np.asarray\(value\)"),
        (of(MIXUP(), {}), {"mix_seed": np.zeros((SIZE, 2), np.uint32)}, "two Batch.*Batch once"),
        (MIXUP(), {"image": {"left": MASK, "right": MASK}}, "'image/left' or 'image/right'"),
        (MIXUP(num_classes=9), {"label": np.arange(3)}, "8 seeds in 'mix_seed'"),
    ],
)
def test_wrong_batches(
    transform: Any, fields: dict[str, Any], message: str, rng: np.random.Generator
) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)) as error:
        transform.map(make_batch(rng, **fields))
    assert re.search(message, f"{error.typename}: {error.value.args[0]}")


@pytest.mark.parametrize(
    ("label", "warns"),
    [
        ([0.0, 1, -1], True),
        ([-1.0, 1, 1], True),
        ([0.0, 1, 0.5], False),
        ([-0.3, 2, 1.5], False),  # what a teacher gives
        ([-2.0, 1, 0], False),
    ],
)
def test_minus_one_in_soft_labels(label: Any, warns: bool, rng: np.random.Generator) -> None:
    batch = make_batch(rng, label=np.float32([label] * SIZE))
    _errors.WARNED.discard("-1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gm.MixUpBatch(targets={"label": gm.Soft()}).map(batch)  # as said
        assert not caught
        for _ in range(2):  # once is enough
            gm.MixUpBatch().map(batch)
    assert [bool(re.search("-1.*missing.*MultiHot", str(w.message))) for w in caught] == [
        True
    ] * warns


def test_integers_under_jit_are_said(rng: np.random.Generator) -> None:
    """Where values are not known, zeros and ones cannot be told from class ids."""
    batch = make_batch(rng, label=rng.integers(2, size=(SIZE, 4)))
    assert gm.MixUpBatch().map(batch)["label"].shape == (SIZE, 4)
    with pytest.raises(TypeError, match=r"values are not known.*MultiHot.*Soft"):
        jax.jit(gm.MixUpBatch().mix)(batch)
    jax.jit(gm.MixUpBatch(targets={"label": gm.MultiHot()}).mix)(batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.1, "label_key": None}, "label_smoothing=0.1 with label_key=None"),
        ({"num_classes": 3, "label_key": None}, "num_classes=3 with label_key=None"),
        ({"num_classes": 3, "targets": {"map": gm.Stacked()}}, "num_classes=3 with targets"),
        ({"label_smoothing": 0.1, "targets": {}}, "with targets.*gm.OneHot"),
        (
            {"targets": {"map": gm.LabelMap(), "map_weight": gm.Stacked()}},
            "'map_weight' named twice",
        ),
        ({"targets": {"image": gm.ValueMap()}}, "'image' named twice, by image_key and targets"),
        (
            {"targets": {"b": gm.Boxes("xyxy", masks="label"), "label": gm.Stacked()}},
            "'label' named",
        ),
        ({"image_key": ("a", "a")}, "'a' named twice, in image_key"),
        ({"label_key": ("a", "b")}, "targets="),
        ({"num_classes": (3, None)}, "targets="),
        ({"targets": {1: gm.Stacked(), "1": gm.Stacked()}}, "named twice"),
        ({"mode": "pair", "partner_key": "other"}, "mode='pair' with partner_key"),
        ({"targets": {"a": gm.Target()}}, "frozen dataclass, which cannot change; decorate class"),
        ({"targets": {"a": Own([])}}, "no hash.*no lists"),
        ({"targets": {"a": gm.OneHot}}, "a class.*OneHot.*, with brackets"),
        ({"targets": {"a": "onehot"}}, "a kind of target.*gm.OneHot"),
        ({"targets": {"a": IDLE()}}, "has no mix"),
        ({"targets": {"a": Undecorated()}}, "cannot change; decorate class Undecorated"),
        ({"targets": {"a": Hides(by=7)}}, "whose hash does not see 'factor'.*be fields"),
        ({"targets": {"a": MINE[0]()}}, "from Soft and has its own mix.*Clipped from gm.Target"),
        ({"targets": {"a": MINE[1]("xyxy")}}, "derives from Boxes and has its own check"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        gm.MixUpBatch(**options)


def test_what_a_kind_has_computed_is_not_hidden() -> None:
    kind = Computes()
    assert kind.twice == 6
    assert gm.MixUpBatch(targets={"a": kind}) == gm.MixUpBatch(targets={"a": Computes()})


def test_targets_are_an_immutable_mapping() -> None:
    kinds = {"label": gm.OneHot(10), "map": gm.LabelMap()}
    transform = gm.MixUpBatch(targets=kinds)
    assert repr(transform.targets) == repr(kinds)
    assert transform == gm.MixUpBatch(targets=kinds)
    assert hash(transform.targets) == hash(gm.MixUpBatch(targets=dict(kinds)).targets)
    turned = gm.MixUpBatch(targets=dict(reversed(kinds.items())))
    assert transform != turned
    assert transform.targets != turned.targets
    assert dataclasses.replace(transform, alpha=0.3).targets == transform.targets
    assert pickle.loads(pickle.dumps(transform)) == transform
    kinds["more"] = gm.Stacked()
    assert list(transform.targets) == ["label", "map"]
    with pytest.raises(TypeError):
        transform.targets["label"] = gm.Soft()


def times(factor: Any, own: Any, draw: gm.Draw) -> Any:
    return factor * own


def test_parameters_that_are_equal_and_differ(rng: np.random.Generator) -> None:
    """1, 1.0 and True are equal; programs that are made for them are not shared."""
    batch = make_batch(rng, age=rng.integers(9, size=SIZE, dtype=np.int32))
    for factor, dtype in ((1, np.int32), (1.0, np.float32), (True, np.int32)):
        assert own(functools.partial(times, factor)).map(batch)["age"].dtype == dtype


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((4, 3, 20, 30), "(2, 3)"),  # channels first
        ((4, 10, 20, 30), "(2, 3)"),  # many bands first, or a volume
        ((4, 16, 16, 16), "(1, 2, 3)"),  # a volume
        ((4, 12, 500), "(2,)"),  # leads first
        ((4, 20, 30), "(1, 2)"),
        ((4, 20, 30, 7), "(1, 2)"),  # many bands
        ((4, 8, 3, 20, 30), "(3, 4)"),  # clips
        ((4, 8, 20, 30, 3), "(2, 3)"),
        ((4, 500), "(1,)"),
    ],
)
def test_shapes_that_must_name_their_axes(shape: tuple[int, ...], axes: str) -> None:
    batch = {"image": np.zeros(shape, np.uint8), "mix_seed": np.arange(4, dtype=np.uint32)}
    with pytest.raises(ValueError, match="spatial_axes=None") as error:
        gm.CutMixBatch(label_key=None).map(batch)
    assert axes in str(error.value)
    named = tuple(map(int, axes.strip("(),").split(",")))
    gm.CutMixBatch(label_key=None, spatial_axes=named).map(batch)
    gm.MixUpBatch(label_key=None).map(batch)  # needs none


# --- names --------------------------------------------------------------------------------------


IMAGE, LABEL = np.arange(SIZE * 90, dtype=np.uint8).reshape(SIZE, 6, 5, 3), np.arange(SIZE) % 3
SEEDS = {"mix_seed": np.arange(SIZE, dtype=np.uint32)}


@pytest.mark.parametrize(
    ("batch", "image", "label"),
    [
        ({"views": (IMAGE, IMAGE), "a/b": {"c/d": LABEL}, **SEEDS}, "views/0", "a/b/c/d"),
        ({"a": {"b": LABEL}, "a/b": IMAGE, "l": LABEL, **SEEDS}, "a/b", "l"),
        (({"image": IMAGE}, {"image": IMAGE, "label": LABEL}, SEEDS), "0/image", "1/label"),
        ((IMAGE, LABEL, SEEDS), 0, 1),
        ((IMAGE, LABEL, SEEDS), "0", "1"),
        ((IMAGE, LABEL, SEEDS), -3, "-2"),
        ({"0": IMAGE, 0: LABEL, 1: LABEL, **SEEDS}, "0", 1),  # the name before the position
    ],
)
def test_names_lead_through_dicts_and_tuples(batch: Any, image: Any, label: Any) -> None:
    expected = CUT(num_classes=3).map({"image": IMAGE, "label": LABEL, **SEEDS})
    mixed = CUT(image_key=image, label_key=label, num_classes=3).map(batch)
    for name, value in ((image, expected["image"]), (label, expected["label"])):
        found = _fields.get(mixed, _fields.locate(batch, str(name)))
        np.testing.assert_array_equal(found, value)
    with pytest.raises(KeyError) as error:
        MIXUP(image_key="nothing", label_key=None).map(batch)
    listed = ast.literal_eval("[" + str(error.value).split("[")[1].split("]")[0] + "]")
    assert listed
    assert all(_fields.locate(batch, name) for name in listed)


@pytest.mark.parametrize("sharding", [None, over(2)], ids=["host", "devices"])
def test_nested_records(sharding: Any) -> None:
    Point = collections.namedtuple("Point", "x y")
    point = Point(np.arange(SIZE), np.arange(SIZE, dtype=np.float32))
    more = (np.arange(SIZE), {"z": np.ones((SIZE, 2))})
    nested = {"inputs": {"image": IMAGE, "more": more}, "targets/label": LABEL, "point": point}
    names: dict[str, Any] = {"image_key": "inputs/image", "label_key": "targets/label"}
    mixed = gm.MixBatch(**names, num_classes=3, sharding=sharding).map(nested | SEEDS)
    assert nested["inputs"].keys() == {"image", "more"}  # what came in is not changed
    assert list(mixed) == ["inputs", "targets/label", "point"]
    assert type(mixed["point"]) is Point
    np.testing.assert_array_equal(mixed["inputs"]["more"][1]["z"], more[1]["z"])
    expected = gm.MixBatch(num_classes=3).map({"image": IMAGE, "label": LABEL, **SEEDS})
    np.testing.assert_array_equal(mixed["inputs"]["image"], expected["image"])
    np.testing.assert_array_equal(mixed["targets/label"], expected["label"])
    assert not sharding or all(x.sharding == sharding for x in jax.tree.leaves(mixed))
    with pytest.raises(KeyError, match=r"no field 'inputs/imgae'.*mean 'inputs/image'"):
        gm.MixBatch(image_key="inputs/imgae").map(nested)


class AsTuple(grain.transforms.Map):
    """What torchvision gives: `(image, label)`; at module level, for worker processes."""

    def map(self, element: dict[str, Any]) -> tuple[Any, ...]:
        return element["image"], element["label"]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_tuples_in_grains_loader(workers: int, rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (12, 4, 4, 3), np.uint8)
    records = [{"image": image, "label": i % 3} for i, image in enumerate(images)]

    def load(*operations: Any) -> list[Any]:
        sampler = grain.samplers.IndexSampler(12, shuffle=True, seed=0, num_epochs=1)
        loader = grain.DataLoader(
            data_source=records, sampler=sampler, operations=operations, worker_count=workers
        )
        return list(loader)

    stack = grain.transforms.Batch(4)
    expected = load(gm.RecordSeed(), stack, gm.MixBatch(num_classes=3))
    mix = gm.MixBatch(num_classes=3, image_key=0, label_key=1)
    mixed = load(AsTuple(), gm.RecordSeed(), stack, mix)
    assert_same(mixed, [(batch["image"], batch["label"]) for batch in expected])


def test_ids_in_tuples_and_nested_records() -> None:
    flat = gm.RecordSeed(id_key="id").random_map({"id": 7})["mix_seed"]
    assert gm.RecordSeed(id_key="a/id").random_map({"a": {"id": 7}})["mix_seed"] == flat
    assert gm.RecordSeed(id_key=1).random_map(("image", 7))[2]["mix_seed"] == flat
    with pytest.raises(KeyError, match="no field '3' among"):
        gm.RecordSeed(id_key=3).random_map(("image", 7))


def test_what_is_added_to_a_tuple() -> None:
    record = gm.RecordSeed().random_map((IMAGE[0], 3), np.random.default_rng(0))
    assert record[2].keys() == {"mix_seed"}
    mix, batch = MIXUP(image_key=0, label_key=1, num_classes=4), (IMAGE, LABEL, SEEDS)
    assert len(mix.map(batch)) == 2
    sparse = MIXUP(image_key=0, targets={1: gm.Sparse()}).map(batch)
    assert [type(x) for x in sparse] == [np.ndarray, np.ndarray, dict]
    assert sparse[2].keys() == {"1_weight"}
    with pytest.raises(KeyError, match=r"mix_seed.*RecordSeed"):
        mix.map((IMAGE, LABEL, SEEDS["mix_seed"]))
    # A partner at the end goes, and what is added must not go with it.
    brings = MIXUP(image_key=0, targets={1: gm.Sparse()}, seed_key=2, partner_key=3)
    mixed = brings.map((IMAGE, LABEL, SEEDS["mix_seed"], {0: IMAGE, 1: LABEL}))
    assert [type(x) for x in mixed] == [np.ndarray, np.ndarray, dict]
    assert mixed[2].keys() == {"1_weight"}


# --- known answers --------------------------------------------------------------------------------


def test_known_answers() -> None:
    """These numbers must never change, on any platform or in any version: users' runs need them."""
    images = (np.arange(4 * 6 * 8 * 3).reshape(4, 6, 8, 3) % 251).astype(np.uint8)
    batch = {
        "image": images,
        "label": np.array([0, 1, 2, 3]),
        "age": np.array([1.0, 2.0, 4.0, 8.0], np.float32),
        "map": images[..., 0] % 5,
        "caption": np.arange(8).reshape(4, 2),
        "boxes": np.array([[[0, 0, 4, 4], [2, 1, 8, 6]]] * 4, np.int32),
        "mix_seed": np.array([3, 14, 15, 92], np.uint32),
    }
    targets = {
        "label": gm.OneHot(4),
        "age": gm.Soft(),
        "map": gm.LabelMap(),
        "caption": gm.Stacked(),
        "boxes": gm.Boxes("xyxy"),
    }
    mix = gm.MixBatch(1.0, targets=targets)
    mixed = mix.map(batch)
    sums = {key: zlib.crc32(np.ascontiguousarray(x).tobytes()) for key, x in mixed.items()}
    assert sums == {
        "image": 2202666638,
        "label": 270955362,
        "age": 3232090967,
        "map": 3242931493,
        "caption": 491131560,
        "boxes": 2416524797,
        "boxes_weight": 3453306386,
        "caption_weight": 2952938173,
        "map_weight": 3872425115,
    }

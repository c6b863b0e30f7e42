"""Targets of all kinds: several labels, any floats, pairs, label maps, tuples and nested dicts."""

import collections
import zlib
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import KINDS, make_batch

import grain_mix as gm

K = 7


def partners(size: int) -> np.ndarray:
    index = np.arange(size)
    return np.where((index ^ 1) < size, index ^ 1, index - 1)


def weighted(lam: Any, x: np.ndarray, own_first: bool = True) -> np.ndarray:
    lam = np.asarray(lam, np.float64).reshape(-1, *[1] * (x.ndim - 1))
    return lam * x + (1 - lam) * x[partners(len(x))]


# --- labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixup", "both"])
def test_several_labels(kind: str, rng: np.random.Generator) -> None:
    batch = make_batch(rng, 9) | {
        "kind": rng.integers(0, 3, 9),
        "age": rng.normal(size=9),
        "logits": rng.normal(size=(9, 4)).astype(jnp.bfloat16),
        "heatmap": rng.normal(size=(9, 5, 6, 2)).astype(np.float32),
    }
    keys = ("label", "kind", "age", "logits", "heatmap")
    transform = KINDS[kind](
        num_classes=(10, 3, None, None, None), label_key=keys, label_smoothing=0.1
    )
    mixed = transform.map(batch)
    lam = transform.draw(batch["mix_seed"], batch["image"].shape).lam
    for key, classes in (("label", 10), ("kind", 3)):
        smooth = np.eye(classes)[batch[key]] * 0.9 + 0.1 / classes
        np.testing.assert_allclose(mixed[key], weighted(lam, smooth), atol=1e-6)
    for key in keys[2:]:
        expected = weighted(lam, np.asarray(batch[key], np.float64))
        assert mixed[key].dtype == np.float32
        np.testing.assert_allclose(mixed[key], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["cutmix", "both"])
def test_pairs(kind: str, rng: np.random.Generator) -> None:
    batch = make_batch(rng, 9) | {
        "caption": rng.integers(0, 50_000, (9, 12)),
        "weight": rng.random(9),
        "flag": rng.random(9) < 0.5,
        "half": rng.normal(size=(9, 3)).astype(np.float16),
    }
    keys = ("caption", "weight", "flag", "half")
    transform = KINDS[kind](num_classes=10, pair_keys=keys)
    mixed = transform.map(batch)
    for key, dtype in zip(keys, ("int32", "float32", "bool", "float16"), strict=True):
        expected = np.stack([batch[key], batch[key][partners(9)]], axis=1).astype(dtype)
        assert mixed[key].dtype == dtype
        np.testing.assert_array_equal(mixed[key], expected)
    lam = np.asarray(transform.draw(batch["mix_seed"], batch["image"].shape).lam)
    np.testing.assert_array_equal(mixed["label_weight"], np.stack([lam, 1 - lam], axis=1))
    # Sparse labels are a pair of class ids with the same weights.
    sparse = KINDS[kind](sparse_labels=True).map(batch)
    np.testing.assert_array_equal(sparse["label_weight"], mixed["label_weight"])
    with_both = KINDS[kind](sparse_labels=True, pair_keys=("caption",)).map(batch)
    np.testing.assert_array_equal(with_both["label"], sparse["label"])
    np.testing.assert_array_equal(with_both["caption"], mixed["caption"])


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        ({"pair_keys": ("name",)}, {"name": np.array(["a"] * 4)}, "'name' is <U1.*token ids"),
        ({"pair_keys": ("id",)}, {"id": np.full(4, 2**40)}, "'id' from .* int32 holds"),
        ({"pair_keys": ("id",)}, {"id": np.full(4, 1e300)}, "'id' from .* float32 holds"),
        ({"num_classes": 10, "label_key": ("label", "x")}, {"x": np.ones(4)}, "num_classes=None"),
        (
            {"label_key": "x", "label_smoothing": 0.1},
            {"x": np.ones((4, 2, 3), np.float32)},
            "label_smoothing=0",
        ),
        ({"label_key": "x"}, {"x": np.ones((4, 2, 3), int)}, "cast targets to float32"),
    ],
)
def test_wrong_labels(
    fields: Any, changes: dict[str, Any], message: str, rng: np.random.Generator
) -> None:
    batch = make_batch(rng, 4) | changes
    fields = {"label_key": None} | fields
    with pytest.raises((TypeError, ValueError), match=f"^MixBatch: .*{message}"):
        gm.MixBatch(**fields).map(batch)


def test_wrong_options() -> None:
    for fields, message in [
        ({"num_classes": (1, 2)}, "num_classes=.*one entry for each label"),
        ({"label_key": ()}, "label_key=.*at least one name"),
        ({"pair_keys": "caption"}, r"tuple like \('caption',\)"),
        ({"pair_keys": ("label",)}, "'label' named twice"),
        ({"pair_keys": ("label_weight",)}, "'label_weight' named twice"),
    ]:
        with pytest.raises((TypeError, ValueError), match=f"^MixBatch: .*{message}"):
            gm.MixBatch(**fields)  # type: ignore[arg-type]


# --- label maps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixup", "both"])
def test_weighted_label_maps_are_what_the_image_shows(kind: str, rng: np.random.Generator) -> None:
    """The image is the one-hot map, so that the weighted maps must give it back."""
    size = 2501
    maps = rng.integers(0, K, (size, 6, 5)).astype(np.int32)
    image = np.eye(K, dtype=np.float32)[maps]
    batch = {
        "image": image,
        "mask": maps,
        "more": {"mask": maps[..., None].astype(np.uint8)},
        "mix_seed": rng.integers(2**32, size=size, dtype=np.uint32),
    }
    transform = KINDS[kind](label_key=None, mask_key=("mask", "more/mask"), prob=0.8)
    mixed = transform.map(batch)
    weights, masks = mixed["mask_weight"], mixed["mask"]
    assert masks.shape == (size, 2, 6, 5)
    assert weights.dtype == np.float32
    shown = (np.eye(K)[masks] * weights[:, :, None, None, None]).sum(axis=1)
    np.testing.assert_allclose(mixed["image"], shown, atol=1e-6)
    assert mixed["more"]["mask"].dtype == np.uint8
    np.testing.assert_array_equal(mixed["more"]["mask"][..., 0], masks)
    np.testing.assert_array_equal(mixed["more"]["mask_weight"], weights)
    assert ((weights > 0) & (weights < 1)).any()


def test_label_maps_of_cutmix_stay_as_they_are(rng: np.random.Generator) -> None:
    batch = make_batch(rng, 8)
    shape = batch["image"].shape[:3]
    batch |= {"a": rng.integers(0, 9, shape, np.uint8), "b": rng.normal(size=shape).astype("f4")}
    mixed = gm.CutMixBatch(num_classes=10, mask_key=("a", "b")).map(batch)
    for key in ("a", "b"):
        single = gm.CutMixBatch(num_classes=10, mask_key=key).map(batch)
        assert mixed[key].shape == shape
        np.testing.assert_array_equal(mixed[key], single[key])


# --- shapes of records ---------------------------------------------------------------------------


def as_tuple(batch: dict[str, Any]) -> tuple[Any, ...]:
    return (batch["image"], batch["label"], batch["mix_seed"])


@pytest.mark.parametrize(("kind", "sparse"), [("both", False), ("cutmix", True)])
def test_tuples(kind: str, sparse: bool, rng: np.random.Generator) -> None:
    batch = make_batch(rng, 8)
    fields: dict[str, Any] = {"sparse_labels": sparse} if sparse else {"num_classes": 10}
    expected = KINDS[kind](**fields).map(batch)
    transform = KINDS[kind](**fields, image_key=0, label_key=1)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = KINDS[kind](**fields, image_key=0, label_key=1, sharding=sharding)
    for mix in (transform.map, transform.mix, jax.jit(transform.mix), sharded.map):
        mixed = mix(as_tuple(batch))
        assert type(mixed) is tuple
        names = ["image", "label", *["label_weight"] * sparse]
        for x, name in zip(mixed, names, strict=True):
            np.testing.assert_array_equal(x, expected[name])
    last = KINDS[kind](**fields, image_key=0, label_key=-2)
    np.testing.assert_array_equal(last.map(as_tuple(batch))[1], expected["label"])


@pytest.mark.parametrize("kind", ["both"])
def test_paths(kind: str, rng: np.random.Generator) -> None:
    batch = make_batch(rng, 8)
    expected = KINDS[kind](num_classes=10).map(batch)
    Point = collections.namedtuple("Point", "x y")
    nested = {
        "inputs": {"image": batch["image"], "more": (np.arange(8), {"z": np.ones((8, 2))})},
        "targets/label": batch["label"],
        "point": Point(np.arange(8), np.arange(8.0, dtype=np.float32)),
        "mix_seed": batch["mix_seed"],
    }
    fields = {"num_classes": 10, "image_key": "inputs/image", "label_key": "targets/label"}
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for transform in (KINDS[kind](**fields), KINDS[kind](**fields, sharding=sharding)):
        mixed = transform.map(nested)
        assert list(mixed) == ["inputs", "targets/label", "point"]
        np.testing.assert_array_equal(mixed["inputs"]["image"], expected["image"])
        np.testing.assert_array_equal(mixed["targets/label"], expected["label"])
        np.testing.assert_array_equal(mixed["inputs"]["more"][1]["z"], np.ones((8, 2)))
        assert type(mixed["point"]) is Point
        if transform.sharding:
            assert all(x.sharding == sharding for x in jax.tree.leaves(mixed))
    with pytest.raises(KeyError, match=r"no field 'inputs/imgae'.*mean 'inputs/image'"):
        KINDS[kind](image_key="inputs/imgae").map(nested)
    assert nested["inputs"].keys() == {"image", "more"}  # what came in is not changed


class Pair(grain.transforms.Map):
    """What torchvision gives: `(image, label)`; at module level, for worker processes."""

    def map(self, element: dict[str, Any]) -> tuple[Any, ...]:
        return element["image"], element["label"]


def test_a_tuple_without_seeds() -> None:
    batch = np.zeros((4, 5, 5, 3), np.uint8), np.arange(4, dtype=np.int32)
    transform = gm.MixUpBatch(num_classes=4, image_key=0, label_key=1)
    with pytest.raises(KeyError, match=r"no seeds at the end of a tuple of 2; .*gm\.RecordSeed"):
        transform.map(batch)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_tuples_in_grains_loader(workers: int, rng: np.random.Generator) -> None:
    records = [
        {"image": rng.integers(0, 256, (4, 4, 3), np.uint8), "label": i % 3} for i in range(12)
    ]

    def load(*operations: Any) -> list[Any]:
        loader = grain.DataLoader(
            data_source=records,
            sampler=grain.samplers.IndexSampler(12, shuffle=True, seed=0, num_epochs=1),
            operations=operations,
            worker_count=workers,
        )
        return list(loader)

    stack = grain.transforms.Batch(4)
    expected = load(gm.RecordSeed(), stack, gm.MixBatch(num_classes=3))
    mix = gm.MixBatch(num_classes=3, image_key=0, label_key=1)
    for seed in (gm.RecordSeed(), gm.RecordSeed("unused name")):
        mixed = load(Pair(), seed, stack, mix)
        assert len(mixed) == 3
        for (image, label), batch in zip(mixed, expected, strict=True):
            np.testing.assert_array_equal(image, batch["image"])
            np.testing.assert_array_equal(label, batch["label"])


def test_ids_in_tuples_and_nested_records() -> None:
    flat = gm.RecordSeed(id_key="id").random_map({"id": 7})["mix_seed"]
    assert gm.RecordSeed(id_key="a/id").random_map({"a": {"id": 7}})["mix_seed"] == flat
    assert gm.RecordSeed(id_key=1).random_map(("image", 7))[2] == flat
    with pytest.raises(KeyError, match="no field 3 among"):
        gm.RecordSeed(id_key=3).random_map(("image", 7))


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
    mix = gm.MixBatch(
        1.0,
        label_key=("label", "age"),
        num_classes=(4, None),
        mask_key="map",
        pair_keys=("caption",),
        boxes_key="boxes",
        box_format="xyxy",
    )
    mixed = mix.map(batch)
    sums = {key: zlib.crc32(np.ascontiguousarray(x).tobytes()) for key, x in mixed.items()}
    assert sums == KNOWN, sums


KNOWN: dict[str, int] = {
    "image": 2202666638,
    "label": 270955362,
    "age": 3232090967,
    "map": 3242931493,
    "caption": 491131560,
    "boxes": 3382869919,
    "box_weight": 3453306386,
    "label_weight": 2952938173,
    "map_weight": 3872425115,
}

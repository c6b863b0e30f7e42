"""Partners that records bring, and seeds of a step's key."""

import dataclasses
import zlib
from typing import Any

import grain
import jax
import numpy as np
import pytest
from common import KINDS, assert_same, each_kind, make_batch
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import grain_mix as gm


def over(count: int, axis_type: AxisType = AxisType.Auto) -> NamedSharding:
    mesh = jax.make_mesh((count,), ("data",), (axis_type,), devices=jax.devices()[:count])
    return NamedSharding(mesh, PartitionSpec("data"))


def halves(key: Any, lam: Any, lengths: tuple[int, ...]) -> Any:
    return jax.random.uniform(key, lengths) < lam


TARGETS = {
    "label": gm.OneHot(10),
    "tags": gm.MultiHot(union=True),
    "sparse": gm.Sparse(),
    "age": gm.Soft(),
    "text": gm.Pair(),
    "depth": gm.ValueMap(),
    "classes": gm.LabelMap(),
    "boxes": gm.Boxes("xyxy", fields=("box_class",), masks="masks"),
}


def record_of(rng: np.random.Generator, size: int) -> dict[str, Any]:
    low = rng.integers(0, 5, (size, 2, 2))
    return {
        "image": rng.integers(256, size=(size, 11, 9, 3), dtype=np.uint8),
        "label": rng.integers(10, size=size),
        "tags": rng.integers(2, size=(size, 4)),
        "sparse": rng.integers(99, size=size),
        "age": rng.normal(size=size).astype(np.float32),
        "text": rng.integers(99, size=(size, 3)),
        "depth": rng.normal(size=(size, 11, 9)).astype(np.float32),
        "classes": rng.integers(9, size=(size, 11, 9), dtype=np.uint8),
        "boxes": np.concatenate([low, low + rng.integers(0, 5, (size, 2, 2))], -1).astype(np.int32),
        "box_class": rng.integers(9, size=(size, 2)),
        "masks": rng.integers(2, size=(size, 2, 11, 9), dtype=np.uint8),
        "valid": rng.random(size) < 0.8,
    }


def batch_of(rng: np.random.Generator, size: int) -> dict[str, Any]:
    return {
        **record_of(rng, size),
        "mix_seed": rng.integers(2**32, size=size, dtype=np.uint32),
        "other": record_of(rng, size),
    }


@each_kind
@pytest.mark.filterwarnings("ignore:grain_mix. several records of one batch")
def test_a_partner_of_ones_own_is_as_a_neighbour(kind: str, rng: np.random.Generator) -> None:
    """In a batch where each record is followed by its partner, the even records are the same."""
    batch = batch_of(rng, 6)
    del batch["valid"], batch["other"]["valid"]
    transform = KINDS[kind](targets=TARGETS)
    mixed = dataclasses.replace(transform, partner_key="other").map(batch)
    seeds, other = batch.pop("mix_seed"), batch.pop("other")
    woven = {
        name: np.stack([value, other[name]], 1).reshape(12, *value.shape[1:])
        for name, value in batch.items()
    }
    expected = transform.map(woven | {"mix_seed": seeds.repeat(2)})
    assert mixed.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(mixed[name], value[::2], name)


@each_kind
def test_batches_devices_and_jit_change_nothing(kind: str, rng: np.random.Generator) -> None:
    batch = batch_of(rng, 8)
    transform = KINDS[kind](targets=TARGETS, partner_key="other", valid_key="valid", prob=0.9)
    mixed = transform.map(batch)
    draw = transform.draw(
        batch["mix_seed"], batch["image"].shape, batch["valid"] & batch["other"]["valid"]
    )
    assert draw.partner is None
    assert ((np.asarray(draw.lam) < 1) <= (batch["valid"] & batch["other"]["valid"])).all()
    parts = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(8)]
    alone = [transform.map(part) for part in parts]
    for other in (
        {name: np.concatenate([part[name] for part in alone]) for name in mixed},
        jax.jit(transform.mix)(batch),
        dataclasses.replace(transform, sharding=over(8)).map(batch),  # a record for each
        jax.jit(transform.mix)(jax.device_put(batch, over(4, AxisType.Explicit))),
    ):
        assert other.keys() == mixed.keys()
        for name, value in mixed.items():
            np.testing.assert_array_equal(np.asarray(other[name]), value, name)


def test_weight_maps_batches_that_share_a_draw_and_tuples(rng: np.random.Generator) -> None:
    batch = batch_of(rng, 5)
    own, other = ((x["image"], x["label"]) for x in (batch, batch["other"]))
    names: dict[str, Any] = {"image_key": 0, "label_key": 1, "num_classes": 10}
    seeds = {"mix_seed": batch["mix_seed"]}
    for transform in (gm.WeightMapMixBatch(halves, **names), gm.MixUpBatch(mode="batch", **names)):
        with_partner = dataclasses.replace(transform, partner_key="other")
        out = with_partner.map((*own, {**seeds, "other": other}))
        assert len(out) == 2
        third = dataclasses.replace(transform, partner_key=2).map((*own, other, seeds))
        assert_same([third], [out])
        draw = with_partner.draw(batch["mix_seed"], own[0].shape)
        hot = np.eye(10, dtype=np.float32)
        lam = np.asarray(draw.lam)[:, None]
        expected = lam * hot[own[1]] + (1 - lam) * hot[other[1]]
        np.testing.assert_allclose(out[1], expected, atol=1e-6)
        assert transform.mode == "elem" or len(set(lam.ravel())) == 1


def test_background_noise_without_labels(rng: np.random.Generator) -> None:
    batch = {
        "image": rng.normal(size=(4, 50)).astype(np.float32),
        "label": np.arange(4),
        "mix_seed": rng.integers(2**32, size=4, dtype=np.uint32),
        "noise": {"image": rng.normal(size=(4, 50)).astype(np.float32), "kind": np.arange(4)},
    }
    mixed = gm.MixUpBatch(gm.Beta(8, 2), partner_key="noise", label_key=None).map(batch)
    assert mixed.keys() == {"image", "label"}
    np.testing.assert_array_equal(mixed["label"], np.arange(4))


def test_grains_datasets_that_are_zipped(rng: np.random.Generator) -> None:
    """The same bits for any batch size and any split, and in worker processes."""

    def records(offset: int) -> grain.MapDataset:
        data = [
            {"image": np.full((6, 5, 3), 10 * i + offset, np.uint8), "label": i} for i in range(12)
        ]
        return grain.MapDataset.source(data).seed(offset)

    def pairs() -> grain.MapDataset:
        both = grain.experimental.ZipMapDataset([records(1).shuffle(), records(2).shuffle()])
        return (
            both.map(lambda pair: {**pair[0], "other": pair[1]}).seed(3).random_map(gm.RecordSeed())
        )

    mix = gm.CutMixBatch(num_classes=12, partner_key="other")

    def mixed(dataset: grain.MapDataset, size: int) -> list[dict[str, Any]]:
        batches = dataset.batch(size).map(mix)
        return [
            jax.tree.map(lambda x, i=i: x[i], batch)
            for batch in (batches[k] for k in range(len(batches)))
            for i in range(len(batch["label"]))
        ]

    expected = mixed(pairs(), 12)
    assert_same(mixed(pairs(), 5), expected)
    assert_same(mixed(pairs(), 1), expected)
    hosts = [mixed(pairs()[host::3], 2) for host in range(3)]
    assert_same([hosts[i % 3][i // 3] for i in range(12)], expected)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"other": None}, TypeError, "'other' is a NoneType.*a dict or a tuple"),
        ({"image": ...}, KeyError, "no field 'other/image' among .*the partner of 'image'"),
        ({"label": ...}, KeyError, "no field 'other/label'.*the partner of 'label'"),
        (
            {"image": np.zeros((4, 11, 8, 3), np.uint8)},
            ValueError,
            r"'image' is uint8 \[4, 11, 9, 3\], but 'other/image' is uint8 \[4, 11, 8, 3\]",
        ),
        (
            {"label": np.arange(4, dtype=np.int32)},
            ValueError,
            "'label' is int64.*'other/label' is int32",
        ),
        ({"label": np.array([0, 1, 2, 99])}, ValueError, "'other/label' from 0 to 99"),
    ],
)
def test_partners_that_do_not_fit(
    changes: dict[str, Any], error: type[Exception], message: str, rng: np.random.Generator
) -> None:
    batch = make_batch(rng, 4)
    other: Any = {"image": batch["image"], "label": batch["label"]} | changes
    if "other" in changes:
        other = changes["other"]
    else:
        other = {name: value for name, value in other.items() if value is not ...}
    with pytest.raises(error, match=f"(MixUpBatch|OneHot): .*{message}"):
        gm.MixUpBatch(num_classes=10, partner_key="other").map(batch | {"other": other})


def test_pairs_that_are_no_records_yet(rng: np.random.Generator) -> None:
    batch = make_batch(rng, 4)
    with pytest.raises(KeyError, match=r"pairs of ZipMapDataset.*\*\*pair\[0\], \"other\": pair"):
        gm.MixUpBatch(num_classes=10, partner_key="other").map((batch, batch))
    batch["other"] = {"image": batch["image"], "label": batch["label"]}
    with pytest.raises(ValueError, match="'other/label' is a field of 'other'"):
        gm.MixUpBatch(partner_key="other", label_key="other/label").map(batch)


def test_known_answers() -> None:
    """These numbers must never change: a partner that is brought, and another law of λ."""
    images = (np.arange(2 * 4 * 6 * 8 * 3).reshape(2, 4, 6, 8, 3) % 251).astype(np.uint8)
    batch = {
        "image": images[0],
        "label": np.arange(4),
        "mix_seed": np.array([3, 14, 15, 92], np.uint32),
        "other": {"image": images[1], "label": 3 - np.arange(4)},
    }
    mix = gm.MixBatch(gm.Beta(2, 8), gm.Beta(8, 2), num_classes=4, partner_key="other")
    mixed = mix.map(batch)
    found = {name: zlib.crc32(np.ascontiguousarray(x).tobytes()) for name, x in mixed.items()}
    assert found == {"image": 1853917435, "label": 2978698472}


def test_slices_must_be_whole(rng: np.random.Generator) -> None:
    batch = make_batch(rng, 6)
    batch["other"] = {name: batch[name] for name in ("image", "label")}
    transform = gm.MixUpBatch(num_classes=10, partner_key="other")
    dataclasses.replace(transform, sharding=over(2)).map(batch)  # of three records each
    with pytest.raises(ValueError, match="6 records in 4 slices; expected a multiple of 4"):
        dataclasses.replace(transform, sharding=over(4)).map(batch)


# --- keys ---------------------------------------------------------------------------------------


@each_kind
def test_a_key_in_the_step(kind: str, rng: np.random.Generator) -> None:
    """The same key gives the same bits on any number of devices, and for any size of the batch."""
    batch = make_batch(rng, 16)
    del batch["mix_seed"]
    transform = KINDS[kind](num_classes=10)
    key = jax.random.key(int(rng.integers(2**31)))
    expected = transform.mix(batch, key=key)
    step = jax.jit(lambda batch, key: transform.mix(batch, key=key))
    old = jax.random.key_data(key)
    placed = [
        jax.device_put(batch, over(n, t)) for n, t in ((4, AxisType.Auto), (8, AxisType.Explicit))
    ]
    for other in (step(batch, key), step(batch, old), *(step(b, key) for b in placed)):
        assert_same([jax.device_get(other)], [jax.device_get(expected)])
    some = transform.mix({name: value[:6] for name, value in batch.items()}, key=key)
    np.testing.assert_array_equal(some["image"], expected["image"][:6])
    other = transform.mix(batch, key=jax.random.fold_in(key, 1))
    assert (np.asarray(other["label"]) != np.asarray(expected["label"])).any()
    compiled = step.lower(placed[0], key).compile().as_text()
    assert not [
        w for w in ("all-gather", "all-reduce", "collective", "all-to-all") if w in compiled
    ]


def test_wrong_keys(rng: np.random.Generator) -> None:
    batch = make_batch(rng, 4)
    transform = gm.MixUpBatch(num_classes=10)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="'mix_seed' in the batch, and a key"):
        transform.mix(batch, key=key)
    del batch["mix_seed"]
    for wrong in (7, jax.random.split(key), np.zeros((2, 2), np.uint32), np.zeros(2)):
        with pytest.raises((TypeError, ValueError), match=r"key is .*(one key|a key of)"):
            transform.mix(batch, key=wrong)
    parts = PartitionSpec("data")
    mix = jax.shard_map(
        lambda batch: transform.mix(batch, key=key),
        mesh=over(2).mesh,
        in_specs=parts,
        out_specs=parts,
    )
    with pytest.raises(ValueError, match="inside shard_map, where all shards would draw alike"):
        mix(batch)

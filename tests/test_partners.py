"""Partners that records bring, and seeds of a step's key."""

import dataclasses
import re
import zlib
from typing import Any

import grain
import jax
import numpy as np
import pytest
import reference
from common import KINDS, assert_same, everywhere, make_batch, nightly, over
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from programs import all_kinds, batch_of, coins

import grain_mix as gm

# For what does not depend on it.
one_kind = pytest.mark.parametrize("kind", ["both", nightly("mixup"), nightly("cutmix")])


@one_kind
def test_batches_devices_and_jit_change_nothing(kind: str, rng: np.random.Generator) -> None:
    """With all kinds of targets, and padding among the records and among their partners."""
    options: dict[str, Any] = {"partner_key": "other", "valid_key": "valid", "prob": 0.9}
    transform, fields = all_kinds(KINDS[kind](**options), 18)
    batch, other = (batch_of(rng, 8, fields) | {"valid": rng.random(8) < 0.75} for _ in range(2))
    del other["mix_seed"]
    batch["other"] = other
    mixed = everywhere(transform, batch)
    reference.check_mixed(transform, batch, mixed)
    for i in range(8):
        alone = transform.map(jax.tree.map(lambda x, i=i: x[i : i + 1], batch))
        assert_same([alone], [{name: value[i : i + 1] for name, value in mixed.items()}])
    on_eight = dataclasses.replace(transform, sharding=over(8))  # a record for each
    found = [on_eight.map(batch)]
    found.append(jax.jit(transform.mix)(jax.device_put(batch, over(4, AxisType.Explicit))))
    assert_same(jax.device_get(found), [mixed] * 2)
    real = batch["valid"] & other["valid"]
    assert transform.draw(batch["mix_seed"], batch["image"].shape, real).partner is None


@pytest.mark.parametrize("transform", [gm.WeightMapMixBatch(coins), gm.MixUpBatch(mode="batch")])
def test_maps_tuples_and_a_shared_draw(transform: Any, rng: np.random.Generator) -> None:
    batch, other = make_batch(rng, 5), make_batch(rng, 5)
    del other["mix_seed"]
    transform = dataclasses.replace(transform, num_classes=10, partner_key="other")
    mixed = transform.map(batch | {"other": other})
    reference.check_mixed(transform, batch | {"other": other}, mixed)
    lam = transform.draw(batch["mix_seed"], batch["image"].shape).lam
    assert transform.mode == "elem" or len(set(lam.tolist())) == 1
    expected = mixed["image"], mixed["label"]
    fields, partner = (batch["image"], batch["label"]), (other["image"], other["label"])
    seeds = {"mix_seed": batch["mix_seed"]}
    names: dict[str, Any] = {"image_key": 0, "label_key": 1}
    in_dict = dataclasses.replace(transform, **names)
    in_third = dataclasses.replace(transform, **names, partner_key=2)
    assert_same([in_dict.map((*fields, {**seeds, "other": partner}))], [expected])
    assert_same([in_third.map((*fields, partner, seeds))], [expected])


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
        images = [np.full((6, 5, 3), 10 * i + offset, np.uint8) for i in range(12)]
        data = [{"image": image, "label": i} for i, image in enumerate(images)]
        return grain.MapDataset.source(data).seed(offset).shuffle()

    def pairs() -> grain.MapDataset:
        both = grain.experimental.ZipMapDataset([records(1), records(2)])
        both = both.map(lambda pair: {**pair[0], "other": pair[1]})
        return both.seed(3).random_map(gm.RecordSeed())

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


OTHER_IMAGE, OTHER_LABEL = np.zeros((4, 11, 8, 3), np.uint8), np.arange(4, dtype=np.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "TypeError: .*'other' is a NoneType.*a dict or a tuple"),
        ({"image": None}, "KeyError: .*no field 'other/image' among .*the partner of 'image'"),
        ({"label": None}, "KeyError: .*no field 'other/label'.*the partner of 'label'"),
        ({"image": OTHER_IMAGE}, r"ValueError.*9, 3\], but 'other/image' is uint8 \[4, 11, 8, 3\]"),
        ({"label": OTHER_LABEL}, "ValueError: .*'label' is int64.*'other/label' is int32"),
        ({"label": np.array([0, 1, 2, 99])}, "ValueError: OneHot: .*'other/label' from 0 to 99"),
    ],
)
def test_partners_that_do_not_fit(changes: Any, message: str, rng: np.random.Generator) -> None:
    batch = make_batch(rng, 4)
    other = None
    if changes is not None:
        other = {"image": batch["image"], "label": batch["label"]} | changes
        other = {name: value for name, value in other.items() if value is not None}
    with pytest.raises((KeyError, TypeError, ValueError)) as error:
        gm.MixUpBatch(num_classes=10, partner_key="other").map(batch | {"other": other})
    assert re.match(message, f"{error.typename}: {error.value.args[0]}")


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


@one_kind
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
    for wrong in (7, nnx.Rngs(0), jax.random.split(key), np.zeros((2, 2), np.uint32), np.zeros(2)):
        with pytest.raises((TypeError, ValueError), match=r"key is .*(one key|a key of)"):
            transform.mix(batch, key=wrong)
    parts = PartitionSpec("data")
    mix = jax.shard_map(
        lambda batch: transform.mix(batch, key=key),
        mesh=over(2).mesh,
        in_specs=parts,
        out_specs=parts,
    )
    with pytest.raises(
        ValueError, match="inside shard_map or pmap, where all shards would draw alike"
    ):
        mix(batch)

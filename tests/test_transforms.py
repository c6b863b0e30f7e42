"""The transforms apart from mixing: their fields, their documentation, padding, specs."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
import pytest
from common import KINDS, each_kind, make_batch
from reference import aligned

import grain_mix as gm

# --- padding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode", "size"),
    [("mixup", "elem", 8), ("cutmix", "batch", 7), ("both", "elem", 7)],
)
def test_pairs_with_padding_stay_unmixed(
    kind: str, mode: str, size: int, rng: np.random.Generator
) -> None:
    batch = make_batch(rng, size)
    valid = rng.random(size) < 0.7
    labels: dict[str, Any] = {"targets": {"label": gm.Sparse(10)}, "mode": mode}
    everything = KINDS[kind](**labels).map(batch)
    mixed = KINDS[kind](**labels, valid_key="valid").map(batch | {"valid": valid})
    nothing = KINDS[kind](**labels, prob=0).map(batch)
    assert list(mixed) == ["image", "label", "valid", "label_weight"]
    np.testing.assert_array_equal(mixed["valid"], valid)
    for i in range(size):
        j = i ^ 1 if i ^ 1 < size else i - 1
        expected = everything if valid[i] and valid[j] else nothing
        for key in expected:
            np.testing.assert_array_equal(mixed[key][i], expected[key][i], err_msg=f"{key} {i}")


def test_padding_over_devices(rng: np.random.Generator) -> None:
    batch = make_batch(rng, 8) | {"valid": np.arange(8) < 5}
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    transform = gm.MixBatch(num_classes=10, valid_key="valid")
    expected = transform.map(batch)
    mixed = dataclasses.replace(transform, sharding=sharding).map(batch)
    assert list(mixed) == list(expected)
    for key, value in expected.items():
        assert mixed[key].sharding == sharding
        np.testing.assert_array_equal(mixed[key], value)
    drawn = transform.draw(batch["mix_seed"], batch["image"].shape, batch["valid"])
    assert (np.asarray(drawn.lam)[4:] == 1).all()
    assert (np.asarray(drawn.lam)[:4] < 1).any()


@pytest.mark.filterwarnings("ignore:grain_mix. several records of one batch")
def test_grains_padding() -> None:
    """`batch_and_pad` fills the last batch up with zeros, which must not reach a record."""
    records = [{"image": np.full((4, 4, 1), 100, np.uint8), "label": 3} for _ in range(5)]
    dataset = (
        grain.MapDataset.source(records)
        .seed(0)
        .map(lambda record: record | {"real": True})
        .random_map(gm.RecordSeed())
        .batch(8, batch_fn=functools.partial(grain.experimental.batch_and_pad, batch_size=8))
    )
    trap = dataset.map(gm.MixUpBatch(1.0, num_classes=5))[0]
    assert (trap["image"][4] < 100).all()  # without valid_key, the last record is half padding
    batch = dataset.map(gm.MixUpBatch(1.0, num_classes=5, valid_key="real"))[0]
    assert (batch["image"][:5] == 100).all()
    assert (batch["label"][:5] == np.eye(5)[3]).all()
    assert batch["real"].tolist() == [True] * 5 + [False] * 3


@pytest.mark.parametrize(
    ("valid", "message"),
    [
        (np.ones(4, np.int32), r"'valid' is int32 \[4\]; expected bool \[4\]; pass True"),
        (np.ones((4, 1), bool), r"'valid' is bool \[4, 1\]; expected bool \[4\]; pass True"),
        (np.ones(3, bool), r"'valid' is bool \[3\]; expected bool \[4\]; pass True"),
    ],
)
def test_a_wrong_valid_field(valid: Any, message: str, rng: np.random.Generator) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        gm.MixUpBatch(num_classes=10, valid_key="valid").map(make_batch(rng, 4) | {"valid": valid})


def test_a_missing_valid_field(rng: np.random.Generator) -> None:
    with pytest.raises(KeyError, match=r"no field 'real' among .*pass the name as valid_key"):
        gm.MixUpBatch(num_classes=10, valid_key="real").map(make_batch(rng, 4))


# --- documentation ------------------------------------------------------------------------------


def paragraphs(transform: Any) -> Iterator[tuple[str, str]]:
    text = inspect.getdoc(transform) or ""
    arguments = text.split("Args:\n")[1].split("\nRaises:")[0]
    for match in re.finditer(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", arguments, re.M | re.S):
        yield match[1], " ".join(match[2].split())


@each_kind
def test_each_transform_documents_all_of_its_fields(kind: str) -> None:
    names = [field.name for field in dataclasses.fields(KINDS[kind])]
    documented = dict(paragraphs(KINDS[kind]))
    assert sorted(documented) == sorted(names)
    for name, text in paragraphs(gm.MixUpBatch):  # what is shared reads the same everywhere
        assert name == "alpha" or documented[name] == text


@each_kind
def test_signatures_show_all_fields(kind: str) -> None:
    parameters = inspect.signature(KINDS[kind]).parameters
    assert list(parameters) == sorted(
        parameters, key=lambda name: parameters[name].kind
    )  # positional ones first
    assert parameters.keys() == {field.name for field in dataclasses.fields(KINDS[kind])}


# --- specs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "drop_remainder", "label"),
    [("mixup", True, gm.Sparse(10)), ("both", False, gm.OneHot(10))],
)
def test_grains_element_spec(
    kind: str, drop_remainder: bool, label: gm.Target, rng: np.random.Generator
) -> None:
    class Spec(grain.transforms.Map):
        """A decoder that says what it returns, which Grain asks of each step."""

        def map(self, element: int) -> Any:
            return {"image": np.zeros((8, 6, 3), np.uint8), "label": element, "valid": True}

        def output_spec(self, _: Any) -> Any:
            return {
                "image": grain.experimental.ShapeDtypeStruct((8, 6, 3), np.uint8),
                "label": grain.experimental.ShapeDtypeStruct((), np.int64),
                "valid": grain.experimental.ShapeDtypeStruct((), bool),
            }

    dataset = grain.MapDataset.range(10).seed(0).map(Spec()).random_map(gm.RecordSeed())
    dataset = dataset.batch(4, drop_remainder=drop_remainder)
    dataset = dataset.map(KINDS[kind](targets={"label": label}, valid_key="valid"))
    spec = grain.experimental.get_element_spec(dataset)
    batch = dataset[0]
    assert list(spec) == list(batch)
    for key, value in batch.items():
        assert spec[key].shape == (4 if drop_remainder else None, *value.shape[1:])
        assert spec[key].dtype == value.dtype


# --- messages -----------------------------------------------------------------------------------


def test_messages_for_common_mistakes(rng: np.random.Generator) -> None:
    batch = make_batch(rng, 4)
    records = [{"image": np.zeros((8, 6, 3), np.uint8), "label": 1}] * 4
    mixed = gm.MixUpBatch(num_classes=10).map(batch)
    with pytest.raises(KeyError, match=r"another of these transforms.*used the seeds up.*MixBatch"):
        gm.CutMixBatch().map(mixed)
    with pytest.raises(TypeError, match=r"unknown parameter 'alpha'; .*mixup_alpha"):
        gm.MixBatch(alpha=0.2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"unknown parameter 'num_clases'.*num_classes"):
        gm.CutMixBatch(num_clases=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"called like a function.*call .map\(batch\)"):
        gm.MixUpBatch()(batch)
    with pytest.raises(ValueError, match=r"one seed per record.*batch_size= of grain.load"):
        next(
            iter(
                grain.load(
                    records,
                    seed=0,
                    batch_size=2,
                    transformations=[gm.RecordSeed(), gm.MixUpBatch(label_key=None)],
                )
            )
        )
    with pytest.raises(TypeError, match=r"^MixUpBatch: the class .* write MixUpBatch\(\), with br"):
        grain.MapDataset.source(records).map(gm.MixUpBatch)[0]
    masked = batch | {"image": np.ma.masked_array(batch["image"])}
    with pytest.raises(TypeError, match=r"'image' is a masked array.*value.filled\(0\)"):
        gm.MixUpBatch(num_classes=10).map(masked)
    for field in ("prob", "switch_prob"):
        for chance in (1e-9, 1 - 1e-12):
            with pytest.raises(ValueError, match=f"{field}=.*in steps of 1/16777216: round it"):
                gm.MixBatch(**{field: chance})


# --- labels -------------------------------------------------------------------------------------


def test_class_ids_with_an_axis_of_their_own(rng: np.random.Generator) -> None:
    batch = make_batch(rng, 6)
    column = batch | {"label": batch["label"][:, None]}
    for label in (gm.OneHot(10), gm.Sparse(10)):
        transform = gm.MixBatch(targets={"label": label})
        for key, value in transform.map(batch).items():
            np.testing.assert_array_equal(transform.map(column)[key], value)


@pytest.mark.slow  # each operation is a program
@pytest.mark.parametrize("size", [1, 5])
def test_without_jit_nothing_shares_memory(size: int, rng: np.random.Generator) -> None:
    """Without the copy, an unmixed record could be the caller's own memory."""
    batch = make_batch(rng, size)
    batch |= {
        "image": aligned(batch["image"]),
        "label": aligned(rng.random((size, 16), np.float32)),
    }
    with jax.disable_jit():
        for make in KINDS.values():
            mixed = make(prob=0).map(batch)
            for key, value in mixed.items():
                assert not np.shares_memory(value, batch[key])
            for value in make(prob=0).mix(batch).values():
                assert not any(np.shares_memory(value, other) for other in batch.values())


def test_short_axes(rng: np.random.Generator) -> None:
    """What the docstring of `minmax` and `spatial_axes` says of axes that are short."""
    batch = make_batch(rng, 64) | {"image": rng.integers(0, 256, (64, 1, 2, 3), np.uint8)}
    box = (
        gm.CutMixBatch(minmax=(0.6, 0.9), spatial_axes=(1, 2))
        .draw(batch["mix_seed"], (64, 1, 2, 3))
        .box
    )
    assert box is not None
    assert (np.asarray(box[:, :, 1] - box[:, :, 0]) == [1, 2]).all()
    mixed = gm.CutMixBatch(num_classes=10, spatial_axes=(1, 2)).map(
        batch
    )  # the paper's box, on an axis of length 1
    np.testing.assert_array_equal(mixed["image"], batch["image"])
    mixed = gm.CutMixBatch(num_classes=10, spatial_axes=(2,)).map(batch)
    assert (mixed["image"] != batch["image"]).any()

"""The transforms apart from mixing: padding, documentation, specs, messages, short axes."""

import dataclasses
import functools
import inspect
import re
import warnings
from typing import Any

import grain
import jax
import numpy as np
import pytest
from common import KINDS, Rng, each_kind, make_batch, over
from reference import aligned, partner_of

import grain_mix as gm
from grain_mix import _errors


@pytest.mark.parametrize(
    ("kind", "mode", "size"), [("mixup", "elem", 8), ("cutmix", "batch", 7), ("both", "elem", 7)]
)
def test_pairs_with_padding_stay_unmixed(kind: str, mode: str, size: int, rng: Rng) -> None:
    batch, valid = make_batch(rng, size), rng.random(size) < 0.7
    transform = KINDS[kind](targets={"label": gm.Sparse(10)}, mode=mode)
    everything = transform.map(batch)
    nothing = dataclasses.replace(transform, prob=0).map(batch)
    padded = dataclasses.replace(transform, valid_key="valid").map(batch | {"valid": valid})
    assert list(padded) == ["image", "label", "valid", "label_weight"]
    np.testing.assert_array_equal(padded["valid"], valid)
    for i in range(size):
        expected = everything if valid[i] and valid[partner_of(i, size)] else nothing
        for key in expected:
            np.testing.assert_array_equal(padded[key][i], expected[key][i], err_msg=f"{key} {i}")


@pytest.mark.filterwarnings("ignore:grain_mix. several records of one batch")
def test_grains_padding() -> None:
    """`batch_and_pad` fills the last batch up with zeros, which must not reach a record."""
    records = [{"image": np.full((4, 4, 1), 100, np.uint8), "label": 3, "real": True}] * 5
    pad = functools.partial(grain.experimental.batch_and_pad, batch_size=8)
    dataset = grain.MapDataset.source(records).seed(0).random_map(gm.RecordSeed())
    dataset = dataset.batch(8, batch_fn=pad)
    trap = dataset.map(gm.MixUpBatch(1.0, num_classes=5))[0]
    assert (trap["image"][4] < 100).all()  # without valid_key, the last record is half padding
    batch = dataset.map(gm.MixUpBatch(1.0, num_classes=5, valid_key="real"))[0]
    assert (batch["image"][:5] == 100).all()
    assert (batch["label"][:5] == np.eye(5)[3]).all()
    assert batch["real"].tolist() == [True] * 5 + [False] * 3


def documented(transform: Any) -> dict[str, str]:
    """What the docstring says of each argument."""
    text = inspect.getdoc(transform) or ""
    arguments = text.split("Args:\n")[1].split("\nRaises:")[0]
    found = re.finditer(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", arguments, re.M | re.S)
    return {match[1]: " ".join(match[2].split()) for match in found}


@each_kind
def test_signatures_and_documentation_show_all_fields(kind: str) -> None:
    names = [field.name for field in dataclasses.fields(KINDS[kind])]
    texts = documented(KINDS[kind])
    assert sorted(texts) == sorted(names)
    for name, text in documented(gm.MixUpBatch).items():  # what is shared reads the same everywhere
        assert name in ("alpha", "sources") or texts[name] == text
    parameters = inspect.signature(KINDS[kind]).parameters
    assert parameters.keys() == set(names)
    kinds = [parameter.kind for parameter in parameters.values()]
    assert kinds == sorted(kinds)  # positional ones first


class Decode(grain.transforms.Map):
    """Says what it returns, which Grain asks of each step."""

    def map(self, element: int) -> Any:
        return {"image": np.zeros((8, 6, 3), np.uint8), "label": element, "valid": True}

    def output_spec(self, _: Any) -> Any:
        struct = grain.experimental.ShapeDtypeStruct
        image = struct((8, 6, 3), np.uint8)
        return {"image": image, "label": struct((), np.int64), "valid": struct((), bool)}


@pytest.mark.parametrize(
    ("kind", "drop_remainder", "label"),
    [("mixup", True, gm.Sparse(10)), ("both", False, gm.OneHot(10))],
)
def test_grains_element_spec(kind: str, drop_remainder: bool, label: gm.Target) -> None:
    dataset = grain.MapDataset.range(10).seed(0).map(Decode()).random_map(gm.RecordSeed())
    dataset = dataset.batch(4, drop_remainder=drop_remainder)
    dataset = dataset.map(KINDS[kind](targets={"label": label}, valid_key="valid"))
    spec, batch = grain.experimental.get_element_spec(dataset), dataset[0]
    assert list(spec) == list(batch)
    for key, value in batch.items():
        assert spec[key].shape == (4 if drop_remainder else None, *value.shape[1:])
        assert spec[key].dtype == value.dtype


UINT8, FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)
STACKED = {"label": gm.Stacked()}
UNKNOWN: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    # What mixes, the shapes that come in beside the image, and those that come out.
    "no length is the image's by chance": (
        gm.CutMixBatch(targets=STACKED),
        {"image": (None, 32, 32, 3), "label": (None, None, 32)},
        {"image": (None, 32, 32, 3), "label": (None, 2, None, 32)},
    ),
    "boxes and masks": (
        gm.CutMixBatch(targets={"label": gm.Boxes("xyxy", masks="masks")}),
        {"image": (4, 32, 16, 3), "label": (4, None, 4), "masks": (4, None, 32, 16)},
        {"image": (4, 32, 16, 3), "label": (4, None, 4), "masks": (4, None, 32, 16)},
    ),
    "axes from the end": (
        gm.CutMixBatch(spatial_axes=(-2, -1), targets={"label": gm.ValueMap()}),
        {"image": (None, 3, None, 32), "label": (None, None, 32)},
        {"image": (None, 3, None, 32), "label": (None, None, 32)},
    ),
    "a map of the image's unknown lengths": (
        gm.MosaicBatch(targets={"label": gm.LabelMap()}),
        {"image": (None, 32, None, 3), "label": (None, 32, None)},
        {"image": (None, 32, None, 3), "label": (None, 32, None)},
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_lengths_stay_unknown(case: str) -> None:
    transform, before, after = UNKNOWN[case]
    struct = grain.experimental.ShapeDtypeStruct
    spec = {name: struct(shape, FLOAT32) for name, shape in before.items()}
    spec |= {"mix_seed": struct((before["image"][0],), np.dtype(np.uint32))}
    out = transform.output_spec(spec)
    assert {name: out[name].shape for name in before} == after


def test_the_spec_of_a_transform_with_a_sharding(rng: Rng) -> None:
    """Devices hold 64 bits in 32."""
    batch = make_batch(rng, 8, id=np.arange(8))
    transform = gm.MixUpBatch(num_classes=10, sharding=over(4))
    struct = grain.experimental.ShapeDtypeStruct
    spec = transform.output_spec({name: struct(x.shape, x.dtype) for name, x in batch.items()})
    mixed = transform.map(batch)
    assert {name: (x.shape, x.dtype) for name, x in spec.items()} == {
        name: (x.shape, x.dtype) for name, x in mixed.items()
    }
    assert spec["id"].dtype == np.int32


def test_messages_for_common_mistakes(rng: Rng) -> None:
    batch = make_batch(rng, 4)
    records = [{"image": np.zeros((8, 6, 3), np.uint8), "label": 1}] * 4
    mixed = gm.MixUpBatch(num_classes=10).map(batch)
    masked = batch | {"image": np.ma.masked_array(batch["image"])}
    seeded = [gm.RecordSeed(), gm.MixUpBatch(label_key=None)]
    with pytest.raises(KeyError, match=r"another of these transforms.*used the seeds up.*MixBatch"):
        gm.CutMixBatch().map(mixed)
    with pytest.raises(TypeError, match=r"unknown parameter 'alpha'; .*mixup_alpha"):
        gm.MixBatch(alpha=0.2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"unknown parameter 'num_clases'.*num_classes"):
        gm.CutMixBatch(num_clases=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"called like a function.*call .map\(batch\)"):
        gm.MixUpBatch()(batch)
    with pytest.raises(ValueError, match=r"one seed per record.*batch_size= of grain.load"):
        list(grain.load(records, seed=0, batch_size=2, transformations=seeded))
    with pytest.raises(TypeError, match=r"^MixUpBatch: the class .* write MixUpBatch\(\), with br"):
        grain.MapDataset.source(records).map(gm.MixUpBatch)[0]
    with pytest.raises(TypeError, match=r"'image' is a masked array.*value.filled\(0\)"):
        gm.MixUpBatch(num_classes=10).map(masked)
    for field in ("prob", "switch_prob"):
        for chance in (1e-9, 1 - 1e-12):
            with pytest.raises(ValueError, match=f"{field}=.*in steps of 1/16777216: round it"):
                gm.MixBatch(**{field: chance})


@pytest.mark.slow  # each operation is a program
@pytest.mark.parametrize("size", [1, 5])
def test_without_jit_nothing_shares_memory(size: int, rng: Rng) -> None:
    """Without the copy, an unmixed record could be the caller's own memory."""
    batch = make_batch(rng, size, label=aligned(rng.random((size, 16), np.float32)))
    batch["image"] = aligned(batch["image"])
    with jax.disable_jit():
        for make in KINDS.values():
            for mixed in (make(prob=0).map(batch), make(prob=0).mix(batch)):
                for value in mixed.values():
                    assert not any(np.shares_memory(value, other) for other in batch.values())


def test_short_axes(rng: Rng) -> None:
    """An axis of length 1 is cut by `minmax`, and cannot be cut by the paper's box."""
    batch = make_batch(rng, 64, (1, 2, 3))
    short = gm.CutMixBatch(minmax=(0.6, 0.9), spatial_axes=(1, 2))
    box = np.asarray(short.draw(batch["mix_seed"], (64, 1, 2, 3)).box)
    assert (box[:, :, 1] - box[:, :, 0] == [1, 2]).all()
    mixed = gm.CutMixBatch(num_classes=10, spatial_axes=(2,)).map(batch)
    assert (mixed["image"] != batch["image"]).any()


def test_axes_that_the_papers_box_cannot_cut(rng: Rng) -> None:
    batch = make_batch(rng, 64, (1, 2, 3))
    for kind in ("cutmix", "both"):
        transform = KINDS[kind](num_classes=10, spatial_axes=(1, 2))
        with pytest.raises(
            ValueError, match=r"spatial_axes=\(1, 2\) .*box would be empty.*=\(2,\)"
        ):
            transform.map(batch)
        with pytest.raises(ValueError, match="longer than 1"):
            transform.draw(batch["mix_seed"], (64, 1, 2, 3))


@pytest.mark.parametrize(
    ("shape", "axes", "rest"),
    [
        ((2, 32, 30, 3), (2, 3), r"\(1, 2\)"),
        ((2, 3, 32, 30), (1, 2), r"\(2, 3\)"),
        ((2, 2, 160), (1,), r"\(2,\)"),
        ((2, 32, 30, 3), (1, 2), None),
        ((2, 8, 32, 3), (1, 2), None),
        ((2, 32, 3, 30), (2, 3), None),  # in the middle
        ((2, 8, 8, 3), (2, 3), None),  # all are short
    ],
)
def test_axes_that_look_like_channels(shape: Any, axes: Any, rest: str | None) -> None:
    batch = {"image": np.zeros(shape, np.uint8), "mix_seed": np.arange(2, dtype=np.uint32)}
    transform = gm.CutMixBatch(label_key=None, spatial_axes=axes)
    spec = jax.tree.map(lambda x: grain.experimental.ShapeDtypeStruct(x.shape, x.dtype), batch)
    _errors.WARNED.discard("channels")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):  # once is enough
            transform.output_spec(spec)
    assert len(caught) == (rest is not None)
    if rest is not None:
        assert re.search(rf"if the layout is \[B, .*; then pass {rest}", str(caught[0].message))


@dataclasses.dataclass(frozen=True, eq=False)
class Noted(gm.MixUpBatch):
    """A transform of a user's own, with one more field."""

    note: str = ""


def test_a_subclass_with_a_field_and_draws_that_are_compared(rng: Rng) -> None:
    batch, noted = make_batch(rng, 4), Noted(num_classes=10, note="x")
    np.testing.assert_array_equal(
        noted.map(batch)["label"], gm.MixUpBatch(num_classes=10).map(batch)["label"]
    )
    assert noted != Noted(num_classes=10, note="y")
    draw, other = (noted.draw(batch["mix_seed"], batch["image"].shape) for _ in range(2))
    assert draw == draw
    assert draw != other  # without asking NumPy whether arrays are true

"""Bad input is an error that says where it came from, what came, what was expected and the fix.

In the tables "…" stands for any text, so that a message can be reworded but loses no part.
"""

import contextlib
import copy
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
import pytest
from common import data_loader, run_python

import grain_mix as gm


def case(error: type[Exception], message: str, *values: Any) -> Any:
    return pytest.param(error, message, *values, id=message.replace(" … ", ", "))


def call(error: type[Exception], message: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    return case(error, message, functools.partial(function, *args, **kwargs))


def bad(error: type[Exception], message: str, made: Any, **fields: list[Any]) -> list[Any]:
    """A case for each value of each field."""
    return [
        call(error, f"{name}={repr(value)[:8]} … {message}", made, **{name: value})
        for name, values in fields.items()
        for value in values
    ]


def assert_fails(error: type[Exception], message: str, function: Callable[[], Any]) -> None:
    with pytest.raises(error) as caught:
        function()
    assert type(caught.value) is error  # a subclass would be some library's own error
    assert_says(caught.value, message)


def assert_says(error: Exception, message: str) -> None:
    text = str(error.args[0])
    assert re.fullmatch(r"(\w+|label_key)(\.draw)?: .+; expected .+; .+", text)
    assert re.search(".*".join(map(re.escape, message.split(" … "))), text), text


# --- parameters ---------------------------------------------------------------------------------

WEIGHED = {"x": gm.Sparse(), "x_weight": gm.Soft()}


def law(quantile: Any, **options: Any) -> Any:
    """A law with these quantiles."""
    made = type("Mine", (gm.Law,), {"quantile": lambda self, p: quantile(p)})
    return dataclasses.dataclass(frozen=True, **options)(made)()


@dataclasses.dataclass(frozen=True)
class Table(gm.Law):
    values: Any

    def quantile(self, p: Any) -> Any:
        return self.values


FALLS, ANY = "numbers from 0 to 1 that do not fall", np.random.default_rng()
LAWS = [  # the error, its message, and a law
    (ValueError, f"Beta(a=1e+17, b=3e+17) … nan … {FALLS} … gm.Uniform(x", gm.Beta(1e17, 3e17)),
    (ValueError, f"Mine() … from 1.00 … to 1.99 … {FALLS}", law(lambda p: 1 + p)),
    (ValueError, f"Mine() … from -0.99 … {FALLS}", law(lambda p: -p)),
    (ValueError, f"Mine() … gives 0.9 … for p= … {FALLS}", law(lambda p: 1 - p)),
    (ValueError, f"from nan to nan … {FALLS}", law(lambda p: p * np.nan)),
    (ValueError, "other numbers each time … the same", law(lambda p: np.sort(ANY.random(4097)))),
    (TypeError, "a float … NumPy's float64 [4097] … for p as an array", law(lambda p: 0.5)),
    (TypeError, "float64 [2] … NumPy's float64 [4097]", law(lambda p: p[:2])),
    (TypeError, "a list … NumPy's float64 [4097]", law(lambda p: p.tolist())),
    (TypeError, "alpha=Table … no hash … numbers, strings", Table([1])),
    (TypeError, "frozen dataclass … decorate class Sub with", type("Sub", (Table,), {})(1)),
    (TypeError, "alpha=<class … Uniform … with brackets", gm.Uniform),
]

PARAMETERS = [
    *(call(error, message, gm.MixUpBatch, value) for error, message, value in LAWS),
    call(ValueError, "low=0.7, high=0.2 … low <= high … swap", gm.Uniform, 0.7, 0.2),
    call(ValueError, "high=1.5 … number from 0 to 1", gm.Uniform, 0, 1.5),
    call(TypeError, "law=0.2 … a law … gm.Beta(0.2, 0.2)", gm.Larger, 0.2),
    call(TypeError, "law=Larger … any other law", gm.Larger, gm.Larger(gm.Beta(1, 1))),
    call(TypeError, "law=Table … no hash", gm.Larger, Table([1])),
    *bad(ValueError, "finite number above 0 … like 0.2", gm.MixUpBatch, alpha=[0, np.nan, 10**400]),
    *bad(ValueError, "finite number above 0 … like 0.2", gm.CutMixBatch, alpha=[-1.0, np.inf]),
    *bad(TypeError, "number above 0 … like 0.2", gm.MixUpBatch, alpha=["0.2", None, True]),
    *bad(ValueError, "above 0", gm.MixBatch, mixup_alpha=[0]),
    *bad(TypeError, "above 0", gm.MixBatch, cutmix_alpha=["1"]),
    *bad(TypeError, "gm.Beta(2, 8) … gm.Uniform(2, 8)", gm.MixUpBatch, alpha=[(2, 8)]),
    call(ValueError, "a=0 … above 0", gm.Beta, 0, 1),
    *bad(ValueError, "0 to 1 … pass", gm.MixBatch, prob=[1.5, np.nan], switch_prob=[-0.1]),
    *bad(ValueError, "0 to 1 … pass", gm.MixUpBatch, label_smoothing=[2]),
    *bad(TypeError, "0 to 1 … pass", gm.CutMixBatch, prob=[True]),
    call(ValueError, "mode='batc' … 'pair' … mean 'batch'?", gm.MixUpBatch, mode="batc"),
    call(ValueError, "mode='Elem' … 'pair' … mean 'elem'?", gm.MixBatch, mode="Elem"),
    call(ValueError, "mode=None … 'pair' … docstring", gm.CutMixBatch, mode=None),
    *bad(TypeError, "(lo, hi) … like (0.2, 0.8)", gm.CutMixBatch, minmax=[0.5, (0, 1, 2)]),
    *bad(ValueError, "0 to 1 … pass", gm.CutMixBatch, minmax=[(0.1, 1.2), (np.nan, 1)]),
    call(ValueError, "minmax=(0.8, 0.2) … (0.2, 0.8)", gm.CutMixBatch, minmax=(0.8, 0.2)),
    call(ValueError, "cutmix_minmax=(1, 0) … (0, 1)", gm.MixBatch, cutmix_minmax=(1, 0)),
    *bad(ValueError, "above 0 … Soft", gm.MixUpBatch, num_classes=[0]),
    *bad(ValueError, "above 0 … Soft", gm.OneHot, num_classes=[-1]),
    *bad(ValueError, "int32", gm.Sparse, num_classes=[2**31]),
    *bad(TypeError, "int … Soft", gm.CutMixBatch, num_classes=[2.5, True]),
    *bad(ValueError, "0 to 1", gm.Soft, smoothing=[2]),
    *bad(TypeError, "True or False", gm.MultiHot, union=[1]),
    *bad(TypeError, "tuple of axes", gm.ValueMap, axes=[1]),
    call(ValueError, "image_key=() … at least one … pass", gm.MixUpBatch, image_key=()),
    call(TypeError, "image_key … 1.5 … name … string", gm.MixUpBatch, image_key=("a", 1.5)),
    *bad(TypeError, "name … string", gm.MixBatch, label_key=[True], seed_key=[None]),
    *bad(TypeError, "name … string", gm.RecordSeed, seed_key=[b"s"]),
    call(TypeError, "targets='' … name … string", gm.CutMixBatch, targets={"": gm.Stacked()}),
    *bad(TypeError, "dict", gm.CutMixBatch, targets=[["label"]]),
    call(ValueError, "'x' … twice, in image_key … role", gm.MixUpBatch, image_key=["x", "x"]),
    call(ValueError, "'label' … twice, by label_key and valid", gm.MixBatch, valid_key="label"),
    call(ValueError, "'image' … twice, by image_key and seed", gm.MixBatch, seed_key="image"),
    call(ValueError, "'x_weight' … twice … rename", gm.MixUpBatch, targets=WEIGHED),
    *bad(TypeError, "tuple … (1, 2)", gm.CutMixBatch, spatial_axes=[1, (), (1.0, 2)]),
    *bad(ValueError, "once … (1, 2)", gm.MixBatch, spatial_axes=[(1, 1)]),
    *bad(ValueError, "no 0 … (1, 2)", gm.CutMixBatch, spatial_axes=[(0, 1)]),
]

# --- draw and the two formulas ------------------------------------------------------------------

MIXUP = gm.MixUpBatch(num_classes=3)
CUTMIX = gm.CutMixBatch(num_classes=3)
SEEDS = np.arange(4, dtype=np.uint32)
SHAPE = (4, 6, 8, 3)
X = np.zeros(SHAPE, np.float32)
TILES = np.array([[[[0, 2]], [[2, 6]]]] * 4)  # along the rows
SHIFT, SOURCES = np.zeros((4, 2, 1), int), np.array([[0, 1], [1, 0], [2, 3], [3, 2]])
ROW, ENDS = SOURCES[:, :1], np.array([0, 1])
LAM = np.full(4, 0.5, np.float32)
BOX = np.array([[[1, 3], [2, 5]]] * 4)
LONG_BOX = BOX.repeat(2, 1)
PARTNER = np.array([1, 0, 3, 2])
RIGHT = np.array([[0], [4]])

CALLS = [
    call(TypeError, "seeds is a list … array … uint32", CUTMIX.draw, [1, 2, 3, 4], SHAPE),
    call(TypeError, "seeds' is int64 [4] … .astype(np.uint32)", MIXUP.draw, PARTNER, SHAPE),
    call(ValueError, "seeds' is one seed … [B] … RecordSeed", CUTMIX.draw, SEEDS[0], SHAPE),
    call(ValueError, "empty batch … B > 0 … filter", MIXUP.draw, SEEDS[:0], SHAPE),
    call(ValueError, "image_shape=(6, 8, 3) … (4, ...) … B", MIXUP.draw, SEEDS, SHAPE[1:]),
    call(TypeError, "image_shape=4 … shape … B first", CUTMIX.draw, SEEDS, 4),
    call(TypeError, "image_shape=(4, 6.0) … shape … B first", CUTMIX.draw, SEEDS, (4, 6.0)),
    call(ValueError, "image_shape … [4, 6] … axes … [B, T]", CUTMIX.draw, SEEDS, (4, 6)),
    call(ValueError, "image_shape … axes 3 and 4", CUTMIX.draw, SEEDS, (4, 6, 8, 5, 7, 9, 3)),
    call(ValueError, "image_shape … [B, T, D, H, W, C]", CUTMIX.draw, SEEDS, (4, 6, 8, 5, 7, 9)),
    call(ValueError, "image_shape … (4, 6, 0) … (4, ...)", CUTMIX.draw, SEEDS, (4, 6, 0)),
    call(ValueError, "image_shape … (4, -6, 8)", CUTMIX.draw, SEEDS, (4, -6, 8)),
    call(TypeError, "images … array … np.asarray(images)", gm.mixup, [[1]], LAM, PARTNER),
    call(TypeError, "images' is int64 … float32 … np.int32", gm.cutmix, BOX, BOX, PARTNER),
    call(TypeError, "images' is bool … float32 … cast", gm.mixup, X > 0, LAM, PARTNER),
    call(TypeError, "images … B > 0", gm.mixup, X[:0], LAM, PARTNER),
    call(ValueError, "lam of shape () … [4] … np.full(4, lam)", gm.mixup, X, 0.5, PARTNER),
    call(ValueError, "lam of shape (3,) … [4]", gm.mixup, X, LAM[:3], PARTNER),
    call(ValueError, "lam from 1.5 to 1.5 … 0 <= lam <= 1", gm.mixup, X, LAM * 3, PARTNER),
    call(ValueError, "lam from -0.5 to -0.5 … 0 <= lam", gm.mixup, X, -LAM, PARTNER),
    call(ValueError, "lam from nan … 0 <= lam <= 1", gm.mixup, X, LAM * np.nan, PARTNER),
    call(TypeError, "lam … <U", gm.mixup, X, LAM.astype(str), PARTNER),
    call(TypeError, "partner is a list … np.asarray(partner)", gm.mixup, X, LAM, [1, 0]),
    call(TypeError, "partner is a NoneType … an array [B, ...]", gm.cutmix, X, BOX, None),
    call(ValueError, "partner is float32 [4] … integers", gm.cutmix, X, BOX, LAM),
    call(ValueError, "partner is int64 [2] … integers [4]", gm.cutmix, X, BOX, PARTNER[:2]),
    call(ValueError, "partner from 1 to 4 … partner <= 3", gm.mixup, X, LAM, PARTNER + 1),
    call(ValueError, "partner from -1 to 2 … 0 <= partner", gm.cutmix, X, BOX, PARTNER - 1),
    call(ValueError, "box of shape (2, 2) … [4, n, 2] … stop", gm.cutmix, X, BOX[0], PARTNER),
    call(ValueError, "box of shape (3, 2, 2) … [4, n, 2]", gm.cutmix, X, BOX[:3], PARTNER),
    call(ValueError, "box … (4, 0, 2)", gm.cutmix, X, BOX[:, :0], PARTNER),
    call(ValueError, "spatial_axes=(1, 2, 3, 4) … [4, 6, 8", gm.cutmix, X, LONG_BOX, PARTNER),
    call(TypeError, "box … float64", gm.cutmix, X, BOX + 0.7, PARTNER),
    call(ValueError, "box[:, 0] from -1 to 1 … 0 <= … clip", gm.cutmix, X, BOX - 2, PARTNER),
    call(ValueError, "box[:, 1] from 6 to 9 … <= 8 … clip", gm.cutmix, X, BOX + RIGHT, PARTNER),
    call(ValueError, "box[:, 0] from 4294967297", gm.cutmix, X, BOX + 2**32, PARTNER),
    call(ValueError, "box … start <= stop", gm.cutmix, X, BOX[..., ::-1], PARTNER),
    call(ValueError, "lam of shape () … [4]", gm.mixup, X, [[0.5], [0.5, 1]], PARTNER),
    call(TypeError, "lam is >f4 … swapped … float32", gm.mixup, X, LAM.astype(">f4"), PARTNER),
    call(TypeError, "lam is timedelta64", gm.mixup, X, LAM.astype("m8[s]"), PARTNER),
    *(
        call(error, message, gm.mosaic, X, tiles, shift, sources)
        for error, message, tiles, shift, sources in [
            (TypeError, "tiles is a list … integers [4, k, n, 2]", [[1]], SHIFT, SOURCES),
            (
                ValueError,
                "shift is int64 [3, 2, 1] … integers [4, 2, 1]",
                TILES,
                SHIFT[:3],
                SOURCES,
            ),
            (ValueError, "sources from 1 to 4 … sources <= 3", TILES, SHIFT, SOURCES + 1),
            (ValueError, "tiles with start > stop … swap", TILES[..., ::-1], SHIFT, SOURCES),
            (
                ValueError,
                "tiles from 0 to 7 … tiles <= 6 … lie in",
                TILES + ENDS,
                SHIFT,
                SOURCES,
            ),
            (ValueError, "tiles - shift from -1 to 5 … show what is in", TILES, SHIFT + 1, SOURCES),
            (
                ValueError,
                "tiles of 4 to 4 pixels … 6 pixels … cover",
                TILES[:, 1:],
                SHIFT[:, 1:],
                ROW,
            ),
        ]
    ),
    call(ValueError, "image_shape … 16777216", CUTMIX.draw, SEEDS, (4, 2**25, 8, 3)),
    *(
        call(error, message, gm.cutmix, X, BOX, PARTNER, spatial_axes=axes)
        for error, message, axes in [
            (ValueError, "spatial_axes=(0, 1) … (1, 2)", (0, 1)),
            (ValueError, "spatial_axes=(2, 4) … 1 to 3 … (1, 2) for", (2, 4)),
            (ValueError, "spatial_axes=(1, -3) … different … (1, 2) for", (1, -3)),
            (ValueError, "spatial_axes=(1, 2, 3)", (1, 2, 3)),
            (ValueError, "spatial_axes=(1,)", (1,)),
            (TypeError, "spatial_axes=('1', '2')", ("1", "2")),
            (TypeError, "spatial_axes=1", 1),
        ]
    ),
]


@pytest.mark.parametrize(("error", "message", "function"), PARAMETERS + CALLS)
def test_call(error: type[Exception], message: str, function: Callable[[], Any]) -> None:
    assert_fails(error, message, function)


# --- batches ------------------------------------------------------------------------------------

MIX = gm.MixBatch(num_classes=3)
SPARSE = gm.MixUpBatch(targets={"label": gm.Sparse()})
MANY = gm.MixUpBatch(num_classes=70_000)  # more than int16 counts
MASKED = gm.CutMixBatch(targets={"label": gm.OneHot(3), "mask": gm.LabelMap()})
PADDED, ONES = gm.MixUpBatch(num_classes=3, valid_key="valid"), np.ones(4, np.int32)
RGBD = gm.CutMixBatch(num_classes=3, image_key=("image", "depth"))
VERB = gm.MixUpBatch(targets={"label/verb": gm.OneHot(3)})
VIEW, VIEWS = (gm.CutMixBatch(num_classes=3, image_key=name) for name in ("views/0", "views"))
HEADS = {"verb": np.zeros(4, int), "noun": np.zeros(4, int)}


def batch(drop: str | None = None, **changes: Any) -> dict[str, Any]:
    """A good batch with these changes."""
    good = {
        "image": np.full(SHAPE, 7, np.uint8),
        "label": np.array([0, 1, 2, 0]),
        "mix_seed": SEEDS,
    }
    return {key: value for key, value in (good | changes).items() if key != drop}


def label(*values: Any) -> dict[str, Any]:
    return batch(label=np.array(values))


def narrow(dtype: str, first: int) -> dict[str, Any]:
    return batch(label=np.array([first, 1, 2, 0], dtype))


def zeros(field: str, dtype: str, *shape: int) -> dict[str, Any]:
    return batch(**{field: np.zeros(shape or SHAPE, dtype)})


def along(*axes: int) -> gm.CutMixBatch:
    return gm.CutMixBatch(num_classes=3, spatial_axes=axes)


NO_SEEDS, NO_LABEL, NO_IMAGE = map(batch, ("mix_seed", "label", "image"))
EMPTY = {key: value[:0] for key, value in batch().items()}
MISSPELT = gm.MixUpBatch(num_classes=3, image_key="imgae")
MISSPELT_MESSAGE = "'imgae' among ['image', 'label', 'mix_seed'] … mean 'image'? … image_key"

ROWS, ONE_EACH = label(*np.eye(4, 5)), label([0], [1], [2], [0])
HUGE, FAR = np.eye(4, 3, dtype=np.int64) * 2**40, np.eye(4, 3) * 1e300
SWAPPED, SECONDS = np.zeros(4, ">i8"), np.zeros(4, "m8[s]")

BATCHES = [
    # What a batch is made of.
    case(TypeError, "batch that is a list … dict … records", MIXUP, [1, 2]),
    case(KeyError, "'image' in a tuple of 2 … image_key=0, label_key=1", CUTMIX, (X, SEEDS)),
    case(TypeError, "'image' is a list … array … NumPy", MIX, batch(image=[1, 2, 3, 4])),
    case(KeyError, MISSPELT_MESSAGE, MISSPELT, batch()),
    case(KeyError, "'image' among ['label', 'mix_seed'] … image_key", MIXUP, NO_IMAGE),
    case(KeyError, "'depth' among ['dept' … mean 'dept'? … image_key", RGBD, batch(dept=X)),
    case(KeyError, "'mask' among … 'msk'] … mean 'msk'? … targets", MASKED, batch(msk=X)),
    case(KeyError, "'label' among ['image' … label_key=None", MIX, NO_LABEL),
    case(KeyError, "'label' among ['image' … leave it out of targets", SPARSE, NO_LABEL),
    case(KeyError, "'lable' … mean 'label'?", gm.MixBatch(label_key="lable"), batch()),
    case(ValueError, "'label/noun' is in the batch … {'label/noun'", VERB, batch(label=HEADS)),
    case(KeyError, "no field 'views/0' … 'views' is a list … a tuple", VIEW, batch(views=[X, X])),
    case(TypeError, "'views' is a list … a tuple … views/0", VIEWS, batch(views=[X, X])),
    case(KeyError, "'label_weight' is in … free … rename", SPARSE, batch(label_weight=LAM)),
    case(ValueError, "an empty batch … B > 0 … filter", MIXUP, EMPTY),
    # Seeds.
    case(KeyError, "'mix_seed' among ['image' … gm.RecordSeed … before Batch", MIXUP, NO_SEEDS),
    case(KeyError, "'seed' … mean 'mix_seed'?", gm.MixUpBatch(seed_key="seed"), batch()),
    case(TypeError, "'mix_seed' is float32 [4] … uint32 [B]", CUTMIX, batch(mix_seed=LAM)),
    case(TypeError, "'mix_seed' is int64 [4] … .astype(np.uint32)", MIX, batch(mix_seed=PARTNER)),
    case(ValueError, "'mix_seed' is uint32 [4, 1] … once", MIXUP, batch(mix_seed=SEEDS[:, None])),
    case(ValueError, "'mix_seed' is one seed … order is", CUTMIX, batch(mix_seed=SEEDS[0])),
    case(ValueError, "there are 3 seeds in 'mix_seed' … one batch", MIX, batch(mix_seed=SEEDS[:3])),
    # Padding.
    case(KeyError, "no field 'valid' among … pass the name as valid_key", PADDED, batch()),
    case(TypeError, "'valid' is int32 [4] … bool [4] … pass True", PADDED, batch(valid=ONES)),
    case(TypeError, "'valid' is bool [1, 4] … bool [4] … pass", PADDED, batch(valid=LAM[None] > 0)),
    case(TypeError, "'valid' is bool [3] … bool [4] … pass True", PADDED, batch(valid=LAM[:3] > 0)),
    # Labels.
    case(ValueError, "int64 [4] … num_classes=K", gm.MixUpBatch(), batch()),
    case(ValueError, "'label' from 0 to 3 … label < 3 … from 1?", CUTMIX, label(0, 1, 2, 3)),
    case(ValueError, "'label' from -1 to 2 … 0 <= label … -1?", MIX, label(0, -1, 2, 0)),
    case(ValueError, "'label' from -2 to 2 … 0 <= label … -1?", SPARSE, label(0, -2, 2, 0)),
    case(ValueError, "'label' from 0 to 2147483648 … fix", SPARSE, label(0, 1, 2, 2**31)),
    case(ValueError, "'label' from -1 to 2 … 0 <= label < 70000", MANY, narrow("int16", -1)),
    case(ValueError, "'label' from -128 to 2 … fix", SPARSE, narrow("int8", -128)),
    case(TypeError, "'label' is float64 [4, 5] … leave num_classes out", CUTMIX, ROWS),
    case(ValueError, "'label' from 0 to 3 … 0 <= label < 3", MIX, label([0], [1], [2], [3])),
    case(ValueError, "'label' is int64 [4, 1] … num_classes=K", gm.MixUpBatch(), ONE_EACH),
    case(ValueError, "'label' … to 1099511627776 … num_classes", gm.MixUpBatch(), label(*HUGE)),
    case(ValueError, "'label' from 0.0 to 1e+300 … scale", gm.MixUpBatch(), label(*FAR)),
    case(TypeError, "'label' is >i8 [4] … swapped … int64", MIX, batch(label=SWAPPED)),
    case(TypeError, "'label' is timedelta64[s] [4] … encode", MIX, batch(label=SECONDS)),
    case(TypeError, "'label' is float64 [4] … integers … gm.Soft()", MIXUP, label(0.0, 1, 2, 0)),
    case(TypeError, "'label' is <U3 [4] … numbers … encode", MIXUP, label("cat", "dog", "?", "?")),
    case(TypeError, "'label' is float64 [4, 2, 3] … num_classes", MIX, label(*np.zeros((4, 2, 3)))),
    case(ValueError, "'label' is float64 [4, 0]", gm.MixUpBatch(), label([], [], [], [])),
    case(TypeError, "float64 [4, 4] … integers [B] … gm.Soft()", SPARSE, label(*np.eye(4))),
    case(ValueError, "'label' is int64 [3] … 4 seeds … one batch", CUTMIX, label(0, 1, 2)),
    # Images and masks.
    case(TypeError, "'image' is <U3 … uint8 … decode", MIXUP, zeros("image", "U3")),
    case(TypeError, "'image' is object … uint8 … decode", CUTMIX, zeros("image", "O")),
    case(TypeError, "'image' is >f4 … swapped … .astype(np.float32)", MIX, zeros("image", ">f4")),
    case(TypeError, "'image' is complex64 … float32 … convert", MIX, zeros("image", "c8")),
    case(TypeError, "'image' is float64 … .astype(np.float32)", MIXUP, zeros("image", "f8")),
    case(TypeError, "'image' is int64 … int32 … .astype(np.int32)", CUTMIX, zeros("image", "i8")),
    case(TypeError, "'image' is uint64 … .astype(np.uint32)", MIX, zeros("image", "u8")),
    case(TypeError, "'image' is bool … uint8 … CutMixBatch", MIXUP, zeros("image", "?")),
    case(TypeError, "'image' is bool … uint8 … cast", MIX, zeros("image", "?")),
    case(ValueError, "'image' … [4, 0, 8, 3] … pixel", CUTMIX, zeros("image", "u1", 4, 0, 8, 3)),
    case(ValueError, "'image' … 0, 0, 3 … pixel … filter", MIXUP, zeros("image", "u1", 4, 0, 0, 3)),
    case(ValueError, "'image' … [4, 6] … (1,) for", CUTMIX, zeros("image", "u1", 4, 6)),
    case(ValueError, "(2, 4) … 'image' … 1 to 3 … [B, H, W, C]", along(2, 4), batch()),
    case(ValueError, "(1, -3) … [4, 6, 8, 3] … different axes", along(1, -3), batch()),
    case(ValueError, "(-4, 2) … [4, 6, 8, 3] … 1 to 3", along(-4, 2), batch()),
    case(ValueError, "'mask' is uint8 [4, 6, 7] … resize it", MASKED, zeros("mask", "u1", 4, 6, 7)),
    case(ValueError, "'mask' is uint8 [4, 6], with … resize", MASKED, zeros("mask", "u1", 4, 6)),
    case(TypeError, "'mask' is int64 … np.int32", MASKED, zeros("mask", "i8", 4, 6, 8)),
    case(ValueError, "'depth' … [4, 6, 8, 0] … pixel", RGBD, zeros("depth", "f4", 4, 6, 8, 0)),
    case(ValueError, "'depth' … [4, 5, 8] … resize 'depth'", RGBD, zeros("depth", "f4", 4, 5, 8)),
    case(ValueError, "'depth' is float32 [3, 6, 8] … 4 seeds", RGBD, zeros("depth", "f4", 3, 6, 8)),
]


@pytest.mark.parametrize("method", ["map", "mix"])
@pytest.mark.parametrize(("error", "message", "transform", "fields"), BATCHES)
def test_batch(
    error: type[Exception], message: str, transform: Any, fields: Any, method: str
) -> None:
    before = copy.deepcopy(fields)
    assert_fails(error, message, functools.partial(getattr(transform, method), fields))
    assert repr(fields) == repr(before)


@pytest.mark.parametrize("transform", [MIXUP, CUTMIX, MIX, SPARSE, MANY])
def test_batch_without_changes_is_good(transform: Any) -> None:
    # Or else a case above might fail for a reason that it does not name.
    assert transform.map(batch())["label"].shape[0] == 4
    assert transform.map(narrow("int8", 0))["label"].shape[0] == 4


def test_shapes_are_checked_under_jit() -> None:
    message = "'label' is float32 [4, 5] … leave num_classes out"
    assert_fails(TypeError, message, lambda: jax.jit(CUTMIX.mix)(ROWS))


@pytest.mark.parametrize("transform", [MIXUP, CUTMIX, MIX])
def test_map_under_jit(transform: Any) -> None:
    message = "under jit, where 'image' is uint8 [4, 6, 8, 3] … with values … call mix"
    assert_fails(TypeError, message, lambda: jax.jit(transform.map)(batch()))


def test_labels_of_an_array_on_a_device() -> None:
    on_device = batch(label=jax.numpy.array([0, 1, 2, 3]))
    assert_fails(ValueError, "'label' from 0 to 3 … label < 3", lambda: MIX.mix(on_device))


def starts_jax() -> str | None:
    """The first case above that starts JAX before the error."""
    from jax._src.xla_bridge import _backends

    calls = [(row.id, row.values[2]) for row in PARAMETERS + CALLS]
    calls += [(row.id, functools.partial(row.values[2].map, row.values[3])) for row in BATCHES]
    for name, function in calls:
        with contextlib.suppress(Exception):
            function()
        if _backends:
            return name
    return None


def test_errors_come_before_any_device_work() -> None:
    # In a new process: in this one, other tests have started JAX already.
    done = run_python("-c", f"import {__name__} as module; print(module.starts_jax())")
    assert done.stdout.strip() == "None"


# --- in Grain -----------------------------------------------------------------------------------


RECORDS = [{"image": np.full((4, 4, 3), i, np.uint8), "label": i % 3} for i in range(8)]


class AsList(grain.transforms.Map):
    def map(self, element: dict[str, Any]) -> list[Any]:
        return list(element.values())


def first_batch(*operations: Any, **options: Any) -> Any:
    return next(iter(data_loader(RECORDS, *operations, **options)))


SEED, BATCH = gm.RecordSeed(), grain.transforms.Batch(4)
LOADERS = [
    call(KeyError, "'mix_seed' among … gm.RecordSeed … before Batch", first_batch, BATCH, MIXUP),
    call(ValueError, "'mix_seed' … order is RecordSeed", first_batch, BATCH, SEED, MIXUP),
    # Records that were never batched, with a label and without.
    call(TypeError, "'label' … int … array … Batch", first_batch, SEED, CUTMIX),
    call(ValueError, "'mix_seed' … Batch, then", first_batch, SEED, gm.MixUpBatch(label_key=None)),
    call(KeyError, "'mix_seed' is taken … RecordSeed once", first_batch, SEED, SEED),
    call(KeyError, "'label' is taken … ['image', 'label']", first_batch, gm.RecordSeed("label")),
    call(TypeError, "record that is a list … dict … make", first_batch, AsList(), SEED),
    call(ValueError, "sampler has no seed … Generator … seed=0", first_batch, SEED, seed=None),
]


@pytest.mark.parametrize(("error", "message", "function"), LOADERS)
def test_loader(error: type[Exception], message: str, function: Callable[[], Any]) -> None:
    assert_fails(error, message, function)


@pytest.mark.slow
def test_message_reaches_the_main_process() -> None:
    with pytest.raises(KeyError) as caught:
        first_batch(SEED, BATCH, MISSPELT, worker_count=2)
    assert_says(caught.value, MISSPELT_MESSAGE)

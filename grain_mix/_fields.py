"""Finding, replacing and dropping the fields of a batch."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from grain_mix._errors import describe, did_you_mean, fail, is_array, kind


def check_mapping(where: str, batch: Any) -> None:
    """Checks that a batch has named fields."""
    if not isinstance(batch, Mapping):
        fix = 'let records be dicts, like {"image": image, "label": label}'
        fail(TypeError, where, f"a batch that is {kind(batch)}", "a dict", fix)


def find(where: str, batch: Mapping[str, Any], key: str, fix: str) -> Any:
    """Returns a field after checking that it is there and is an array."""
    if key not in batch:
        came = f"no field {key!r} among {sorted(map(str, batch))}"
        hint = did_you_mean(key, batch)
        fail(KeyError, where, came, f"a field {key!r} in the batch", hint + fix)
    value = batch[key]
    if not is_array(value):
        fix = (
            "put grain.transforms.Batch before this transform (batch_size= of grain.load batches "
            "last, so leave it out), and let records hold NumPy arrays"
        )
        fail(TypeError, where, f"{key!r} is {describe(value)}", "an array [B, ...]", fix)
    if isinstance(value, np.ma.MaskedArray):
        fix = 'fill it before, value.filled(0), and keep the mask as a field, "mask": value.mask'
        fail(TypeError, where, f"{key!r} is a masked array", "an array without a mask", fix)
    return value


def replace(
    batch: Mapping[str, Any], dropped: Iterable[str], new: Mapping[str, Any]
) -> dict[str, Any]:
    """A new dict: without the dropped fields, with the new ones, all others as they were."""
    gone = set(dropped)
    return {key: value for key, value in batch.items() if key not in gone} | dict(new)


def has_values(x: Any) -> bool:
    """Whether an array's values are known here: not under `jit`, nor on another host."""
    if isinstance(x, jax.core.Tracer) or not hasattr(x, "__array__"):  # a spec has none
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable

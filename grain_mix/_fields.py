"""Finding, replacing and dropping the fields of a batch, which is a dict or a tuple.

A key is a name, a path `"inputs/image"` into nested dicts, or the position of a tuple's element.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from grain_mix._errors import describe, did_you_mean, fail, is_array, kind

Key = str | int
Path = tuple[Any, ...]  # from the batch to a field, through dicts and tuples
DROPPED = object()


def check_container(where: str, batch: Any) -> None:
    """Checks that a batch has named fields, or is a tuple of fields."""
    if not isinstance(batch, Mapping | tuple):
        fix = 'let records be dicts, like {"image": image, "label": label}, or tuples'
        fail(TypeError, where, f"a batch that is {kind(batch)}", "a dict or a tuple", fix)


def locate(batch: Any, key: Key) -> Path | None:
    """The path to a field, or `None` if there is none."""
    if isinstance(batch, tuple):
        inside = isinstance(key, int) and -len(batch) <= key < len(batch)
        return (key % len(batch),) if inside else None
    if not isinstance(batch, Mapping):
        return None
    if key in batch:
        return (key,)
    first, slash, rest = str(key).partition("/")
    below = locate(batch[first], rest) if slash and first in batch else None
    return None if below is None else (first, *below)


def locate_seed(batch: Any, seed_key: Key) -> Path | None:
    """The path to the seeds: in a tuple they are the last element, unless `seed_key` is an int."""
    last = isinstance(batch, tuple) and isinstance(seed_key, str)
    return locate(batch, -1 if last else seed_key)


def get(batch: Any, path: Path) -> Any:
    """Returns what is at a path."""
    for key in path:
        batch = batch[key]
    return batch


def find(where: str, batch: Any, key: Key, path: Path | None, fix: str) -> Any:
    """Returns a field after checking that it is there and is an array."""
    if path is None:
        names = [show(other) for other in leaves(batch)]
        came = f"no field {key!r} among {sorted(names)}"
        if isinstance(batch, tuple):
            came = f"no field {key!r} in a tuple of {len(batch)}"
            fix = f"a tuple's fields are numbers, so pass image_key=0, label_key=1; {fix}"
        fail(KeyError, where, came, f"a field {key!r} in the batch", did_you_mean(key, names) + fix)
    value = get(batch, path)
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


def leaves(batch: Any) -> dict[Path, Any]:
    """Everything in nested dicts and tuples, by its path."""

    def walk(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
        if isinstance(value, Mapping):
            for key, below in value.items():
                yield from walk(below, (*path, key))
        elif isinstance(value, tuple):
            for i, below in enumerate(value):
                yield from walk(below, (*path, i))
        else:
            yield path, value

    return dict(walk(batch, ()))


def show(path: Path) -> str:
    """A path as users write it."""
    return "/".join(map(str, path))


def replace(batch: Any, new: Mapping[Path, Any]) -> Any:
    """The batch in the same shape, with new values at these paths, added or `DROPPED`.

    What is added to a tuple comes last, in the order of `new`.
    """
    if new.keys() == {()}:
        return new[()]
    below: dict[Any, dict[Path, Any]] = {}
    for path, value in new.items():
        below.setdefault(path[0], {})[path[1:]] = value
    if isinstance(batch, Mapping):
        changed = {key: replace(batch.get(key), values) for key, values in below.items()}
        merged = {**batch, **changed}
        return {key: value for key, value in merged.items() if value is not DROPPED}
    items: list[Any] = [
        replace(item, below.pop(i)) if i in below else item for i, item in enumerate(batch)
    ]
    items += [replace(None, values) for values in below.values()]
    kept = [item for item in items if item is not DROPPED]
    named = hasattr(batch, "_fields") and len(kept) == len(batch)
    return type(batch)(*kept) if named else tuple(kept)


def convert(batch: Any, function: Callable[[Any], Any]) -> Any:
    """The batch in the same shape, with a function of each leaf."""
    changed = {path: function(value) for path, value in leaves(batch).items()}
    return replace(batch, changed) if changed else batch


def has_values(x: Any) -> bool:
    """Whether an array's values are known here: not under `jit`, nor on another host."""
    if isinstance(x, jax.core.Tracer) or not hasattr(x, "__array__"):  # a spec has none
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable

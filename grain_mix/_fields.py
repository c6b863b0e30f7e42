"""Finding, replacing and dropping the fields of a batch, which is a dict or a tuple.

A field's name is a key, a path `"inputs/image"` or `"views/0"` through dicts and tuples, or a
position in a tuple. What is added to a tuple goes into one dict at its end.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from grain_mix._errors import describe, did_you_mean, fail, is_array, kind

Path = tuple[Any, ...]  # from the batch to a field, through dicts and tuples
DROPPED = object()


def check_container(caller: str, batch: Any) -> None:
    """Checks that a batch has named fields, or is a tuple of fields."""
    if not isinstance(batch, Mapping | tuple):
        fix = 'let records be dicts, like {"image": image, "label": label}, or tuples'
        fail(TypeError, caller, f"a batch that is {kind(batch)}", "a dict or a tuple", fix)


def locate(tree: Any, name: str) -> Path | None:
    """The path to a field, or `None`; a key that itself contains a slash is found first."""
    key = _step(tree, name)
    if key is not None:
        return (key,)
    for end in range(len(name) - 1, 0, -1):
        key = _step(tree, name[:end]) if name[end] == "/" else None
        below = None if key is None else locate(tree[key], name[end + 1 :])
        if below is not None:
            return (key, *below)
    if has_end(tree):
        below = locate(tree[-1], name)
        return None if below is None else (len(tree) - 1, *below)
    return None


def _step(tree: Any, name: str) -> Any:
    """The key or position that a name means, or `None`."""
    position = int(name) if name.removeprefix("-").isdecimal() else None
    if isinstance(tree, Mapping):
        return next((key for key in (name, position) if key in tree and key is not None), None)
    if isinstance(tree, tuple) and position is not None and -len(tree) <= position < len(tree):
        return position % len(tree)
    return None


def has_end(tree: Any) -> bool:
    """Whether it is a tuple with a dict at its end, for what is added."""
    return isinstance(tree, tuple) and len(tree) > 0 and isinstance(tree[-1], Mapping)


def path_to_add(tree: Any, path: Path, dropped: Iterable[Path] = ()) -> Path:
    """The path of a field that is added: in a tuple it leads through the dict at its end.

    Where that dict is `dropped`, it leads through a new one.
    """
    container = get(tree, path[:-1])
    if isinstance(container, tuple):
        last = len(container) - 1
        has_its_own = has_end(container) and (*path[:-1], last) not in dropped
        return (*path[:-1], last if has_its_own else last + 1, str(path[-1]))
    return path


def get(tree: Any, path: Path) -> Any:
    """Returns what is at a path."""
    for key in path:
        tree = tree[key]
    return tree


def has(tree: Any, path: Path) -> bool:
    """Whether a path leads to something."""
    try:
        get(tree, path)
    except (LookupError, TypeError):
        return False
    return True


def find(caller: str, batch: Any, name: str, fix: str) -> Path:
    """The path to a field, after checking that it is there and is an array."""
    path = locate(batch, name)
    if path is None:
        names = [show(other) for other in leaves(batch)]
        got = f"no field {name!r} among {sorted(names)}"
        if isinstance(batch, tuple):
            got = f"no field {name!r} in a tuple of {len(batch)}, with {sorted(names)}"
        if isinstance(under := _list_above(batch, name), str):
            fix = f"{under!r} is a list, which is not looked into: make it a tuple or a dict"
            fail(KeyError, caller, got, f"a field {name!r} in the batch", fix)
        close = did_you_mean(name, names)
        fail(KeyError, caller, got, f"a field {name!r} in the batch", close + fix)
    value = get(batch, path)
    if not is_array(value):
        fix = (
            "put grain.transforms.Batch before this transform (batch_size= of grain.load batches "
            "last, so leave it out), and let records hold NumPy arrays"
        )
        if isinstance(value, list) and value and all(map(is_array, value)):
            fix = f"lists are not looked into: make it a tuple, and name {name}/0, or stack it"
        if isinstance(value, Mapping | tuple):
            names = [repr(f"{name}/{show(below)}") for below in leaves(value)]
            fix = f"name a field inside it, such as {' or '.join(names[:3])}"
        fail(TypeError, caller, f"{name!r} is {describe(value)}", "an array [B, ...]", fix)
    check_array(caller, name, value)
    return path


def _list_above(tree: Any, name: str) -> str | None:
    """The name of a list in which a name would be, if lists were looked into."""
    for end in range(len(name) - 1, 0, -1):
        path = locate(tree, name[:end]) if name[end] == "/" else None
        if path is not None and isinstance(get(tree, path), list):
            return name[:end]
    return None


def check_array(caller: str, name: str, value: Any) -> None:
    """Checks that an array is one of NumPy's or JAX's, and says all that it holds."""
    if isinstance(value, np.ma.MaskedArray):
        fix = 'fill it before, value.filled(0), and keep the mask as a field, "mask": value.mask'
        fail(TypeError, caller, f"{name!r} is a masked array", "an array without a mask", fix)
    if not isinstance(value.dtype, np.dtype):
        library = type(value).__module__.partition(".")[0]
        got = f"{name!r} is {kind(value)} of {library}, {describe(value)}"
        fix = "convert it before Batch, np.asarray(value)"
        if library in ("jax", "jaxlib"):  # JAX's keys
            fix = "pass numbers, such as jax.random.key_data(key)"
        fail(TypeError, caller, got, "an array of NumPy or JAX", fix)


def leaves(tree: Any) -> dict[Path, Any]:
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

    return dict(walk(tree, ()))


def show(path: Path) -> str:
    """A path as users write it."""
    return "/".join(map(str, path))


def heads(names: Iterable[str]) -> frozenset[str]:
    """These names of fields, and the names of all that they are in."""
    parts = [name.split("/") for name in names]
    return frozenset("/".join(each[:end]) for each in parts for end in range(1, len(each) + 1))


def signature(tree: Any, names: frozenset[str]) -> tuple[Any, ...]:
    """Equal for trees in which the fields of these `heads` are treated alike.

    The structure, and the type, shape and dtype of each such field. Others have a name alone.
    """
    if isinstance(tree, Mapping):
        # In no order, since keys may come in any.
        return dict, frozenset((k, _signature_of(k, value, names)) for k, value in tree.items())
    size = len(tree)
    counted = {  # a position may be counted from the end
        f"{int(first) % size}{slash}{rest}"
        for first, slash, rest in (name.partition("/") for name in names)
        if size and first.removeprefix("-").isdecimal()
    }
    parts = [_signature_of(i, value, frozenset(counted)) for i, value in enumerate(tree)]
    return type(tree), *parts, *([signature(tree[-1], names)] if has_end(tree) else [])


def _signature_of(key: Any, value: Any, names: frozenset[str]) -> tuple[Any, ...] | None:
    if isinstance(value, Mapping | tuple):
        step = f"{key}/"
        below = (name.removeprefix(step) for name in names if name.startswith(step))
        return signature(value, frozenset(below))
    if str(key) in names:
        return type(value), getattr(value, "shape", None), getattr(value, "dtype", None)
    return None


def replace(tree: Any, new: Mapping[Path, Any]) -> Any:
    """The tree in the same shape, with new values at these paths, added or `DROPPED`.

    The dict at a tuple's end is made where it is needed, and goes where nothing is left in it.
    """
    below: dict[Any, dict[Path, Any]] = {}
    for path, value in new.items():
        if not path:
            return value
        below.setdefault(path[0], {})[path[1:]] = value
    if isinstance(tree, Mapping):
        changed = dict(tree)
        for key, values in below.items():
            value = replace(tree.get(key, {}), values)
            if value is DROPPED:
                changed.pop(key, None)
            else:
                changed[key] = value
        return changed
    items = [replace(item, below[i]) if i in below else item for i, item in enumerate(tree)]
    if len(tree) in below:
        items.append(replace({}, below[len(tree)]))
    elif has_end(tree) and tree[-1] and not items[-1]:
        items.pop()
    kept = [item for item in items if item is not DROPPED]
    if hasattr(tree, "_make") and len(kept) == len(tree):
        return tree._make(kept)
    return tuple(kept)


def convert(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The tree in the same shape, with a function of each leaf."""
    changed = {path: function(value) for path, value in leaves(tree).items()}
    return replace(tree, changed) if changed else tree


def has_values(x: Any) -> bool:
    """Whether an array's values are known here: not under `jit`, nor on another host."""
    if isinstance(x, jax.core.Tracer) or not hasattr(x, "__array__"):  # a spec has none
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable


def known(x: Any) -> Any:
    """An array whose values are known as one of NumPy's; any other as it is."""
    return x if isinstance(x, np.ndarray) or not has_values(x) else np.asarray(jax.device_get(x))

"""What comes out of a batch whose shapes are known in part: for Grain's element specs."""

from collections.abc import Mapping
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Sharding

from grain_mix import _fields, _sharding
from grain_mix._axes import axes_in
from grain_mix._errors import is_array
from grain_mix._guards import into_jax
from grain_mix._mixing import Setup
from grain_mix._plan import plan_of
from grain_mix._rules import ByMap

Struct = grain.experimental.ShapeDtypeStruct
# What an unknown length is tried as: what differs then is unknown as well. Long enough for patches.
UNKNOWN = (64, 96)


def output_spec(setup: Setup, sharding: Sharding | None, input_spec: Any) -> Any:
    """The shapes and dtypes that come out; lengths that are unknown stay unknown."""
    _fields.check_container(setup.caller, input_spec)
    first, second = (_spec_with(setup, input_spec, unknown) for unknown in UNKNOWN)

    def merged(one: Any, other: Any) -> Any:
        if not is_array(one):
            return one
        lengths = zip(one.shape, other.shape, strict=True)
        return Struct(tuple(a if a == b else None for a, b in lengths), one.dtype)

    twice = _fields.leaves(second)
    changes = {path: merged(x, twice[path]) for path, x in _fields.leaves(first).items()}
    if sharding is not None:
        changes = {path: _placed(sharding, x) for path, x in changes.items()}
    return _fields.replace(first, changes)


def _spec_with(setup: Setup, input_spec: Any, unknown: int) -> Any:
    """What comes out where each unknown length is this one."""
    spec = _fields.convert(input_spec, lambda x: _known(x, unknown) if is_array(x) else x)
    # What is as long as the image along its axes has the image's lengths where its own are unknown.
    paths = {name: _fields.locate(spec, name) for name in setup.needed}
    above = [path for key in setup.partner_keys if (path := _fields.locate(spec, key)) is not None]
    image, axes = _get(spec, paths[setup.images[0]]), setup.spatial_axes or (1, 2)
    if is_array(image) and all(-len(image.shape) <= axis < len(image.shape) for axis in axes):
        axes = tuple(axis % len(image.shape) for axis in axes)
        lengths = [image.shape[axis] for axis in axes]
        changes = {}
        for name, path in paths.items():
            for whole in [path, *((*prefix, *(path or ())) for prefix in above)]:
                got = _get(input_spec, whole)
                if whole is not None and is_array(got):
                    like_image = _axes_like_image(setup, name, len(got.shape), axes)
                    likely = dict(zip(like_image, lengths, strict=False))
                    changes[whole] = _known(got, unknown, likely)
        spec = _fields.replace(spec, changes)
    with into_jax():
        plan = plan_of(setup, spec)
        inputs = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)),
            plan.inputs(spec),
            is_leaf=is_array,
        )
        mixed = jax.eval_shape(lambda inputs: plan.mixing.mix(inputs)[0], inputs)
    return plan.put(spec, {name: Struct(x.shape, np.dtype(x.dtype)) for name, x in mixed.items()})


def _known(spec: Any, unknown: int, likely: Mapping[int, int] | None = None) -> Any:
    """A spec whose unknown lengths are these, by their axes, else `unknown`."""
    lengths = [(likely or {}).get(axis, unknown) for axis in range(len(spec.shape))]
    shape = tuple(a if b is None else b for a, b in zip(lengths, spec.shape, strict=True))
    return Struct(shape, np.dtype(spec.dtype))


def _get(tree: Any, path: Any) -> Any:
    return _fields.get(tree, path) if path is not None and _fields.has(tree, path) else None


def _axes_like_image(setup: Setup, name: str, ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which a field must be as long as the image, in the order of the image's."""
    if name in setup.images:
        return axes_in(ndim, axes)
    function: Any = setup.rule.function if isinstance(setup.rule, ByMap) else None
    if name in setup.rule.reads and hasattr(function, "axes_like_image"):
        axes_like: tuple[int, ...] = function.axes_like_image(name, ndim, axes)
        return axes_like
    if setup.rule.cuts or function is not None:
        for field, kind in setup.targets.items():
            for key in ("", *kind.reads):
                if name == (key or field):
                    return kind.axes_like_image(key, ndim, axes)
    return ()


def _placed(sharding: Sharding, x: Any) -> Any:
    """As a global array over the devices of a sharding."""
    if not is_array(x):
        return x
    rows = None if x.shape[0] is None else _sharding.global_rows(sharding, x.shape[0])
    return Struct((rows, *x.shape[1:]), np.dtype(jax.dtypes.canonicalize_dtype(x.dtype)))

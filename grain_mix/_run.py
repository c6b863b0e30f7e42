"""Mixing a batch: on the host, on devices, and inside a user's own `jit`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding
from jax.typing import ArrayLike

from grain_mix import _fields, _map_functions, _sharding
from grain_mix._axes import axes_of, check_axes_to_cut
from grain_mix._bits import random_bits, seeds_of_key, words_of_key
from grain_mix._blend import copy_windows
from grain_mix._draw import Draw
from grain_mix._errors import describe, fail, is_array, is_int, quote
from grain_mix._guards import into_jax
from grain_mix._mixing import Arrays, Inputs, Mixing, Setup, draw_fields
from grain_mix._plan import Plan, Spec, check_seeds, check_valid, plan_of
from grain_mix._rules import ByMap, share_seeds
from grain_mix._seed import warn_of_equal_seeds

# --- what is compiled, once for each way to mix and for each size of its fields ------------------


def _mix(mixing: Mixing, inputs: Inputs, first: Any = 0) -> tuple[Arrays, Any]:
    """The mixed fields and, with a weight map, λ `[B]`, which is NaN where it is none."""
    mixed, draw = mixing.mix(inputs, first)
    return mixed, None if draw.weights is None else draw.lam


@functools.cache
def _on_host() -> Callable[[Mixing, Inputs], tuple[Arrays, Any, Any]]:
    """Mixes NumPy's arrays on the CPU device, and says which windows NumPy has to copy."""

    def mix(mixing: Mixing, inputs: Inputs) -> tuple[Arrays, Any, Any]:
        mixed, draw = mixing.mix(inputs)
        windows = (draw.box, draw.tiles, draw.shift) if mixing.copied else None
        return mixed, None if draw.weights is None else draw.lam, windows

    cpu = SingleDeviceSharding(_sharding.host())
    program: Callable[..., Any] = jax.jit(mix, static_argnums=0, in_shardings=cpu)
    return program


@functools.cache
def _on_devices(sharding: NamedSharding) -> Callable[[Mixing, Inputs], Arrays]:
    """Mixes NumPy's arrays on the devices of this process, each its own part of the batch.

    No group crosses a device, and none talks to another.
    """

    def mix(mixing: Mixing, inputs: Inputs) -> Arrays:
        mixed: Arrays = _by_slices(
            mixing, _sharding.with_explicit_types(sharding, inputs), sharding
        )[0]
        return mixed

    program: Callable[..., Arrays] = jax.jit(mix, static_argnums=0, in_shardings=sharding)
    return program


def _by_slices(mixing: Mixing, inputs: Inputs, sharding: NamedSharding) -> tuple[Arrays, Any]:
    """Mixes each slice of the batch by itself."""

    def mix(inputs: Inputs) -> tuple[Arrays, Any]:
        split = sharding.spec[0] if sharding.spec else ()
        first = jax.lax.axis_index(split) * len(inputs.seeds) if split else 0
        return _mix(mixing, inputs, first)

    # A user's loop or branch starts from constants, which are the same on all devices, and goes on
    # with what is not: JAX would refuse that, had it to say which is which.
    mapped = jax.shard_map(
        mix,
        mesh=sharding.mesh,
        in_specs=(sharding.spec,),
        out_specs=sharding.spec,
        check_vma=False,
    )
    mixed: tuple[Arrays, Any] = mapped(inputs)
    return mixed


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _anywhere(mixing: Mixing, inputs: Inputs, size: int, has_key: bool) -> tuple[Arrays, Any]:
    """Mixes arrays wherever they lie, also split over a mesh of Explicit axes."""
    setup = mixing.setup
    named = dict(inputs.fields[0])
    if not has_key:  # else seeds are made of the key, and not split yet
        named[setup.seed_key] = inputs.seeds
    for above, fields in zip(setup.partner_keys, inputs.fields[1:], strict=False):
        named |= {f"{above}/{name}": x for name, x in fields.items()}
    for above, valid in zip(("", *setup.partner_keys), inputs.valid, strict=False):
        name = f"{above}/{setup.valid_key}" if above else str(setup.valid_key)
        named |= {} if valid is None else {name: valid}
    split = _sharding.explicit_split(setup.caller, named)
    if split is None:
        return _mix(mixing, inputs)
    # Explicit axes leave nothing to the compiler, so each slice is mixed by itself.
    slices = size // split.shard_shape((size,))[0]
    _sharding.check_groups(setup.caller, size, slices, setup.group)
    seeds = inputs.seeds
    if setup.mode == "batch":  # whose first record is in one of the slices only
        seeds = _sharding.on_gathered(functools.partial(share_seeds, "batch"), seeds)
    if has_key:
        seeds = jax.sharding.reshard(seeds, split)
    return _by_slices(mixing, inputs._replace(seeds=seeds), split)


_seeds_of_key = jax.jit(seeds_of_key, static_argnums=1)


# --- the methods of the transforms ---------------------------------------------------------------


def map_batch(setup: Setup, sharding: Sharding | None, batch: Any) -> Any:
    """Mixes a batch of NumPy's arrays, on the host or on the devices of a sharding."""
    with into_jax():
        plan = plan_of(setup, batch)
        inputs = plan.inputs(batch, convert=_as_numpy)
        plan.check_values(inputs)
        warn_of_equal_seeds(inputs.seeds, inputs.valid)
        if sharding is not None:
            return _map_to_devices(plan, sharding, batch, inputs)
        mixing, rest = plan.on_host, inputs
        if mixing.copied:
            fields = [
                {name: x for name, x in each.items() if name not in mixing.copied}
                for each in inputs.fields
            ]
            rest = inputs._replace(fields=tuple(fields))
        arrays, lam, windows = _on_host()(mixing, _sharding.to_host(rest))
        mixed = {name: np.asarray(x) for name, x in arrays.items()}
        if windows is not None:
            windows = [None if window is None else np.asarray(window) for window in windows]
        for name in mixing.copied:
            kind: Any = setup.kinds[name]  # a map of some kind, which has axes
            axes = mixing.space.axes_of(setup.caller, name, inputs.fields[0][name], kind.axes)
            sources = [each[name] for each in inputs.fields]
            mixed[name] = copy_windows(sources, setup.rule.sources, axes, *windows)
        _check_lam(plan, inputs, lam)
        return plan.put(batch, mixed)


def _as_numpy(name: str, x: Any) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, jax.core.Tracer):
        fix = "call mix inside jit, grad, vmap and shard_map; it does the same"
        got = f"under jit, where {name!r} is {describe(x)} without values"
        fail(TypeError, "map", got, "arrays with values", fix)
    return np.asarray(x)


def _map_to_devices(plan: Plan, sharding: Sharding, batch: Any, inputs: Inputs) -> Any:
    setup = plan.mixing.setup
    caller, slices = setup.caller, _sharding.local_slices(sharding)
    _sharding.check_groups(caller, plan.size, slices, setup.group)
    others = plan.passed(batch)
    for path, value in others.items():
        _sharding.check_placeable(caller, _fields.show(path), value, plan.size)
    others |= {path: x for path, x in zip(plan.valid[:1], inputs.valid, strict=False) if path}
    if setup.mode == "batch":  # whose first record is on one of the devices only
        inputs = inputs._replace(seeds=np.full_like(inputs.seeds, inputs.seeds[0]))
    program = _on_devices(_sharding.local_part(sharding))
    mixed = program(plan.mixing, _sharding.to_program(sharding, inputs))
    mixed = {name: _sharding.to_global(sharding, x) for name, x in mixed.items()}
    # Copies, or CPU devices would share the memory that the next batch may be put into.
    copies = [np.array(value) for value in others.values()]
    passed = _sharding.to_devices(sharding, copies) if copies else []
    passed = [_sharding.to_global(sharding, x) for x in passed]
    return plan.put(_fields.replace(batch, dict(zip(others, passed, strict=True))), mixed)


def mix_batch(setup: Setup, batch: Any, key: Any) -> Any:
    """Mixes as a pure function of arrays, inside a user's `jit` or outside."""
    with into_jax():
        words = None if key is None else words_of_key(setup.caller, key)
        plan = plan_of(setup, batch, has_key=key is not None)
        seeds = None if words is None else _seeds_of_key(words, plan.size)
        inputs = plan.inputs(batch, seeds)
        plan.check_values(inputs)
        inputs = jax.tree.map(_sharding.as_array, inputs)
        mixed, lam = _anywhere(plan.mixing, inputs, plan.size, key is not None)
        _check_lam(plan, inputs, lam)
        return plan.put(batch, mixed)


def _check_lam(plan: Plan, inputs: Inputs, lam: Any) -> None:
    """Checks that all weights of a map were in [0, 1], where they are known."""
    if lam is not None and _fields.has_values(lam) and np.isnan(lam).any():
        setup = plan.mixing.setup
        _refuse_weights(setup, inputs.seeds, lam, plan.mixing.space.lengths)


def _refuse_weights(setup: Setup, seeds: Any, lam: Any, lengths: tuple[int, ...]) -> None:
    assert isinstance(setup.rule, ByMap)
    shared = share_seeds(setup.mode, _sharding.as_array(seeds))
    seed = shared[int(np.argmax(np.isnan(lam)))]
    got = f"weight_map gives weights outside for seed {seed}"
    if not setup.rule.reads:
        weights = np.asarray(setup.rule.maps(random_bits(seed[None], 1), lengths, ()))
        got = f"weight_map gives weights from {weights.min()} to {weights.max()} for seed {seed}"
    fix = "divide by the largest possible weight, or use jnp.clip"
    fail(ValueError, setup.caller, got, "weights from 0 to 1", fix)


def draw(
    setup: Setup,
    seeds: ArrayLike,
    image_shape: tuple[int, ...],
    valid: ArrayLike | None,
    fields: Mapping[Any, ArrayLike] | None,
) -> Draw:
    """The parameters that a batch with these seeds is mixed with."""
    caller = f"{setup.caller}.draw"
    if not is_array(seeds):
        fix = 'pass batch["mix_seed"], or np.arange(B, dtype=np.uint32)'
        fail(TypeError, caller, f"seeds is {describe(seeds)}", "an array", fix)
    size = check_seeds(caller, "seeds", seeds)
    fix = "pass that of the whole batch's images, B first, B the number of seeds"
    if not isinstance(image_shape, tuple | list) or not all(map(is_int, image_shape)):
        fail(TypeError, caller, f"image_shape={quote(image_shape)}", "a shape", fix)
    shape = tuple(map(int, image_shape))
    if shape[:1] != (size,) or min(shape) < 1:
        fail(ValueError, caller, f"image_shape={quote(shape)}", f"({size}, ...)", fix)
    if valid is not None:
        if not is_array(valid):
            fix = "pass np.asarray(valid)"
            fail(TypeError, caller, f"valid is {describe(valid)}", f"bool [{size}]", fix)
        check_valid(caller, "valid", valid, size)
    by_map = isinstance(setup.rule, ByMap)
    axes: tuple[int, ...] = ()
    if by_map or setup.rule.cuts:
        axes = axes_of(caller, setup.spatial_axes, "image_shape", shape)
    if setup.rule.has_papers_box:
        check_axes_to_cut(caller, axes, "image_shape", shape)
    lengths = tuple(shape[axis] for axis in axes)
    read = _fields_to_read(setup, fields or {}, size)
    with into_jax():
        specs = tuple((name, Spec(tuple(x.shape), x.dtype)) for name, x in read[0].items())
        _check_map(setup, lengths, specs)
        real = [] if valid is None else [_sharding.as_array(valid)]
        arrays = jax.tree.map(_sharding.as_array, read)
        drawn: Draw = _drawn(setup, _sharding.as_array(seeds), real, arrays, lengths)
        if by_map and _fields.has_values(drawn.lam) and np.isnan(drawn.lam).any():
            _refuse_weights(setup, seeds, drawn.lam, lengths)
    return drawn


def _fields_to_read(setup: Setup, fields: Mapping[Any, Any], size: int) -> list[dict[str, Any]]:
    """What a weight map reads: of the records, and of the partners that they bring."""
    caller, given = f"{setup.caller}.draw", {str(name): x for name, x in fields.items()}
    found: list[dict[str, Any]] = []
    for above in ("", *(f"{key}/" for key in setup.partner_keys)):
        found.append({})
        for name in setup.rule.reads:
            if above + name not in given:
                got = f"fields={sorted(map(str, fields))}"
                expected = f"{above + name!r}, which the map reads"
                fix = f"pass fields={{{above + name!r}: batch[...]}}"
                fail(KeyError, caller, got, expected, fix)
            x = given.pop(above + name)
            if not is_array(x) or x.shape[:1] != (size,):
                got = f"fields[{above + name!r}] is {describe(x)}"
                fail(ValueError, caller, got, f"an array [{size}, ...]", "take it from the batch")
            _fields.check_array(caller, above + name, x)
            own = found[0].get(name, x)
            if (own.shape, own.dtype) != (x.shape, x.dtype):
                got = f"fields[{name!r}] is {describe(own)}, but {above + name!r} is {describe(x)}"
                fail(ValueError, caller, got, "the same shape and dtype", "take both from a batch")
            found[-1][name] = x
    if given:
        got = f"fields={sorted(given)}, which nothing reads"
        fail(ValueError, caller, got, f"those of reads={setup.rule.reads}", "leave them out")
    return found


@functools.lru_cache(maxsize=256)
def _check_map(setup: Setup, lengths: tuple[int, ...], read: tuple[tuple[str, Spec], ...]) -> None:
    """Checks a weight map once for these lengths, and for fields like these."""
    if isinstance(setup.rule, ByMap):
        _map_functions.dtype_of(f"{setup.caller}.draw", setup.rule.function, lengths, dict(read))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _drawn(
    setup: Setup, seeds: jax.Array, valid: Any, fields: Any, lengths: tuple[int, ...]
) -> Draw:
    leaves, structure = jax.tree.flatten((valid, fields))

    def drawn(seeds: jax.Array, *leaves: jax.Array) -> Draw:
        valid, fields = jax.tree.unflatten(structure, leaves)
        return draw_fields(setup, Inputs(tuple(fields), seeds, tuple(valid)), lengths)

    out: Draw = _sharding.on_gathered(drawn, seeds, *leaves)
    return out

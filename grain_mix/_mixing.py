"""Mixing a batch: on the host, on devices, and inside a user's own `jit`."""

import functools
import threading
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding
from jax.typing import ArrayLike

from grain_mix import _draw, _fields, _maps, _place, _plan
from grain_mix._axes import axes_of
from grain_mix._calls import into_jax
from grain_mix._draw import Draw
from grain_mix._errors import describe, fail, is_array, is_int, quote
from grain_mix._plan import Arrays, Inputs, Plan, Setup

MOST_PROGRAMS = 256  # that are kept


class Mixer:
    """What a transform does. Those of transforms that are alike are equal, and share programs."""

    def __init__(self, identity: Any, setup: Setup) -> None:
        self.identity, self.setup = identity, setup
        self._hash = hash(identity)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mixer) and self.identity == other.identity


class Programs:
    """A plan, and its compiled programs; each is compiled when it is first called."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.anywhere = jax.jit(self._mix_by_shards)

    @functools.cached_property
    def on_host(self) -> Callable[[Inputs], tuple[Arrays, Any]]:
        """Mixes NumPy's arrays on the CPU device."""
        cpu = SingleDeviceSharding(_place.host())
        program: Callable[..., tuple[Arrays, Any]] = jax.jit(self._mix, in_shardings=cpu)
        return program

    @functools.cached_property
    def _on_devices(self) -> dict[NamedSharding, Callable[[Inputs], Arrays]]:
        return {}

    def on_devices(self, sharding: NamedSharding) -> Callable[[Inputs], Arrays]:
        """Mixes NumPy's arrays on the devices of this process, each its own part of the batch.

        No pair crosses a device, and none talks to another.
        """
        if sharding not in self._on_devices:

            def mix(inputs: Inputs) -> Arrays:
                return self._mix(inputs)[0]

            mesh, spec = sharding.mesh, sharding.spec
            by_shards = jax.shard_map(mix, mesh=mesh, in_specs=(spec,), out_specs=spec)

            def placed(inputs: Inputs) -> Arrays:
                return by_shards(_place.typed(sharding, inputs))

            program = jax.jit(placed, in_shardings=sharding)
            self._on_devices[sharding] = program
        return self._on_devices[sharding]

    def _mix(self, inputs: Inputs) -> tuple[Arrays, Any]:
        """The mixed fields and, with a weight map, λ `[B]`, which tells whether it is one."""
        mixed, draw = self.plan.mix(inputs)
        return mixed, None if draw.weights is None else draw.lam

    def _mix_by_shards(self, inputs: Inputs) -> tuple[Arrays, Any]:
        plan, setup = self.plan, self.plan.setup
        named = {**inputs.own, setup.seed_key: inputs.seeds}
        if plan.seeds is None:
            del named[setup.seed_key]  # made of a key, and not split yet
        named |= {f"{setup.partner_key}/{name}": x for name, x in inputs.partner.items()}
        split = _place.explicit_split(setup.where, named)
        if split is None:
            return self._mix(inputs)
        # Explicit axes leave nothing to the compiler, so each shard is mixed by itself.
        if not inputs.partner:
            shards = plan.size // split.shard_shape((plan.size,))[0]
            _place.check_pairs(setup.where, plan.size, shards)
        seeds = inputs.seeds
        if setup.mode == "batch":  # whose first record is in one of the shards only
            seeds = _place.gathered(functools.partial(_draw.share, "batch"), seeds)
        if plan.seeds is None:
            seeds = jax.sharding.reshard(seeds, split)
        mix = jax.shard_map(
            self._mix, mesh=split.mesh, in_specs=(split.spec,), out_specs=split.spec
        )
        mixed: tuple[Arrays, Any] = mix(inputs._replace(seeds=seeds))
        return mixed


# The last programs of this process, which all transforms and threads share.
_programs: dict[Any, Programs] = {}
_making = threading.Lock()


def programs_of(mixer: Mixer, batch: Any, *, has_key: bool = False) -> Programs:
    """The plan and the programs for batches of this structure, made once."""
    key = mixer, _fields.signature(batch), has_key
    found = _programs.get(key)
    if found is None:
        made = Programs(_plan.make(mixer.setup, batch, has_key=has_key))
        with _making:  # or two threads would keep, and compile, one each
            found = _programs.setdefault(key, made)
            while len(_programs) > MOST_PROGRAMS:
                del _programs[next(iter(_programs))]
    return found


def map_batch(mixer: Mixer, sharding: Sharding | None, batch: Any) -> Any:
    """Mixes a batch of NumPy's arrays, on the host or on the devices of a sharding."""
    with into_jax():
        programs = programs_of(mixer, batch)
        plan = programs.plan
        inputs = plan.inputs(batch, convert=_as_numpy)
        plan.check_values(inputs)
        valid = (
            inputs.valid if inputs.partner_valid is None else inputs.valid & inputs.partner_valid
        )
        _draw.warn_of_equal_seeds(inputs.seeds, valid)
        if sharding is not None:
            return _map_to_devices(programs, sharding, batch, inputs)
        mixed, lam = programs.on_host(_place.to_host(inputs))
        mixed = {name: np.asarray(x) for name, x in mixed.items()}
        _check_lam(plan, inputs.seeds, lam)
        return plan.put(batch, mixed)


def _as_numpy(name: str, x: Any) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, jax.core.Tracer):
        fix = "call mix inside jit, grad, vmap and shard_map; it does the same"
        came = f"under jit, where {name!r} is {describe(x)} without values"
        fail(TypeError, "map", came, "arrays with values", fix)
    return np.asarray(x)


def _map_to_devices(programs: Programs, sharding: Sharding, batch: Any, inputs: Inputs) -> Any:
    plan, where = programs.plan, programs.plan.setup.where
    slices = _place.local_slices(sharding)
    if plan.setup.partner_key is None:
        _place.check_pairs(where, plan.size, slices)
    else:
        _place.check_slices(where, plan.size, slices)
    others = plan.passed(batch)
    for path, value in others.items():
        _place.check_placeable(where, _fields.show(path), value, plan.size)
    if plan.valid is not None:
        others[plan.valid] = inputs.valid
    if plan.setup.mode == "batch":  # whose first record is on one of the devices only
        inputs = inputs._replace(seeds=np.full_like(inputs.seeds, inputs.seeds[0]))
    program = programs.on_devices(_place.local_part(sharding))
    mixed = program(_place.to_program(sharding, inputs))
    mixed = {name: _place.to_global(sharding, x) for name, x in mixed.items()}
    # Copies, or CPU devices would share the memory that the next batch may be put into.
    copies = [np.array(value) for value in others.values()]
    passed = _place.to_devices(sharding, copies) if copies else []
    passed = [_place.to_global(sharding, x) for x in passed]
    return plan.put(_fields.replace(batch, dict(zip(others, passed, strict=True))), mixed)


def mix_batch(mixer: Mixer, batch: Any, key: Any) -> Any:
    """Mixes as a pure function of arrays, inside a user's `jit` or outside."""
    with into_jax():
        where = mixer.setup.where
        words = None if key is None else _draw.words_of_key(where, key)
        programs = programs_of(mixer, batch, has_key=key is not None)
        plan = programs.plan
        seeds = None if words is None else _seeds_of_key(words, plan.size)
        inputs = plan.inputs(batch, seeds)
        plan.check_values(inputs)
        inputs = jax.tree.map(_place.as_array, inputs)
        mixed, lam = programs.anywhere(inputs)
        _check_lam(plan, inputs.seeds, lam)
        return plan.put(batch, mixed)


@functools.partial(jax.jit, static_argnums=1)
def _seeds_of_key(words: jax.Array, size: int) -> jax.Array:
    return _draw.seeds_of_key(words, size)


def _check_lam(plan: Plan, seeds: Any, lam: Any) -> None:
    """Checks that all weights of a map were in [0, 1], where they are known."""
    if lam is None or not _fields.has_values(lam) or not np.isnan(lam).any():
        return
    _refuse_weights(plan.setup, seeds, lam, plan.space.lengths)


def _refuse_weights(setup: Setup, seeds: Any, lam: Any, lengths: tuple[int, ...]) -> None:
    assert isinstance(setup.recipe, _draw.ByMap)
    shared = _draw.share(setup.mode, _place.as_array(seeds))
    seed = shared[int(np.argmax(np.isnan(lam)))]
    weights = np.asarray(setup.recipe.maps(_draw.random_bits(seed[None], 1), lengths))
    came = f"weight_map gives weights from {weights.min()} to {weights.max()} for seed {seed}"
    fix = "divide by the largest possible weight, or use jnp.clip"
    fail(ValueError, setup.where, came, "weights from 0 to 1", fix)


def draw(
    mixer: Mixer, seeds: ArrayLike, image_shape: tuple[int, ...], valid: ArrayLike | None
) -> Draw:
    """The parameters that a batch with these seeds is mixed with."""
    setup = mixer.setup
    where = f"{setup.where}.draw"
    if not is_array(seeds):
        fix = 'pass batch["mix_seed"], or np.arange(B, dtype=np.uint32)'
        fail(TypeError, where, f"seeds is {describe(seeds)}", "an array", fix)
    size = _draw.check_seeds(where, "seeds", seeds)
    fix = "pass that of the whole batch's images, B first, B the number of seeds"
    if not isinstance(image_shape, tuple | list) or not all(map(is_int, image_shape)):
        fail(TypeError, where, f"image_shape={quote(image_shape)}", "a shape", fix)
    shape = tuple(map(int, image_shape))
    if shape[:1] != (size,) or min(shape) < 1:
        fail(ValueError, where, f"image_shape={quote(shape)}", f"({size}, ...)", fix)
    if valid is not None:
        if not is_array(valid):
            fix = "pass np.asarray(valid)"
            fail(TypeError, where, f"valid is {describe(valid)}", f"bool [{size}]", fix)
        _draw.check_valid(where, "valid", valid, size)
    by_map = isinstance(setup.recipe, _draw.ByMap)
    axes: tuple[int, ...] = ()
    if by_map or setup.recipe.cuts:
        axes = axes_of(where, setup.spatial_axes, "image_shape", shape)
    lengths = tuple(shape[axis] for axis in axes)
    with into_jax():
        _check_map(mixer, lengths)
        real = None if valid is None else _place.as_array(valid)
        seeds = _place.as_array(seeds)
        drawn: Draw = _drawn(mixer, seeds, real, lengths)
        if by_map and _fields.has_values(drawn.lam) and np.isnan(drawn.lam).any():
            _refuse_weights(setup, seeds, drawn.lam, lengths)
    return drawn


@functools.lru_cache(maxsize=MOST_PROGRAMS)
def _check_map(mixer: Mixer, lengths: tuple[int, ...]) -> None:
    """Checks a weight map once for these lengths."""
    recipe = mixer.setup.recipe
    if isinstance(recipe, _draw.ByMap):
        _maps.dtype_of(f"{mixer.setup.where}.draw", recipe.weight_map, lengths)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _drawn(
    mixer: Mixer, seeds: jax.Array, valid: jax.Array | None, lengths: tuple[int, ...]
) -> Draw:
    setup = mixer.setup

    def drawn(seeds: jax.Array, *valid: jax.Array) -> Draw:
        return _draw.draw(
            setup.recipe,
            setup.prob,
            _draw.share(setup.mode, seeds),
            lengths,
            *valid,
            brings_partner=setup.partner_key is not None,
        )

    out: Draw = _place.gathered(drawn, seeds, *([] if valid is None else [valid]))
    return out


def output_spec(mixer: Mixer, input_spec: Any) -> Any:
    """The shapes and dtypes that come out of these, with lengths that may be unknown."""
    where = mixer.setup.where
    _fields.check_container(where, input_spec)
    # An unknown length is tried as two numbers: what differs then is unknown as well.
    first, second = (_spec_with(mixer, input_spec, unknown) for unknown in (8, 16))

    def merged(path: _fields.Path, one: Any, other: Any) -> Any:
        if not is_array(one):
            return one
        came = _fields.get(input_spec, path) if _fields.has(input_spec, path) else None
        before = came.shape if came is not None and len(came.shape) == len(one.shape) else one.shape
        shape = tuple(
            a if a == b and c is not None else None
            for a, b, c in zip(one.shape, other.shape, before, strict=True)
        )
        return grain.experimental.ShapeDtypeStruct(shape, one.dtype)

    twice = _fields.leaves(second)
    changes = {path: merged(path, x, twice[path]) for path, x in _fields.leaves(first).items()}
    return _fields.replace(first, changes)


def _spec_with(mixer: Mixer, input_spec: Any, unknown: int) -> Any:
    """What comes out where each unknown length is this one.

    In a field that has the image's lengths, where it has any, they are the image's.
    """
    path = _fields.locate(input_spec, mixer.setup.images[0])
    image = () if path is None else getattr(_fields.get(input_spec, path), "shape", ())
    axes = mixer.setup.spatial_axes or (1, 2)

    def known(spec: Any) -> Any:
        if not is_array(spec):
            return spec
        shape = list(spec.shape)
        if all(axis < min(len(shape), len(image)) for axis in axes) and all(
            shape[axis] in (None, image[axis]) for axis in axes
        ):
            for axis in axes:
                shape[axis] = image[axis]
        lengths = tuple(unknown if length is None else length for length in shape)
        return grain.experimental.ShapeDtypeStruct(lengths, np.dtype(spec.dtype))

    spec = _fields.convert(input_spec, known)
    with into_jax():
        programs = programs_of(mixer, spec)
        inputs = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)),
            programs.plan.inputs(spec),
            is_leaf=is_array,
        )
        mixed, _ = jax.eval_shape(programs._mix, inputs)
    out = {
        name: grain.experimental.ShapeDtypeStruct(x.shape, np.dtype(x.dtype))
        for name, x in mixed.items()
    }
    return programs.plan.put(spec, out)

"""Where mixing runs, and where its result is: on the host, or on the devices of this process."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import ArrayLike

from grain_mix._dtypes import check_narrow, native_fix
from grain_mix._errors import describe, fail, is_array, quote
from grain_mix._fields import check_array
from grain_mix._memory import ALIGNMENT, aligned_empty

SMALL = 1 << 25  # bytes that XLA copies faster itself: below, glibc keeps memory that is freed


def as_array(x: ArrayLike) -> jax.Array:
    """A JAX array, made by a transfer that `jax_transfer_guard` allows.

    NumPy's arrays are copied first: JAX would share their memory where it is aligned, and the
    caller may write to it while a device still reads it.
    """
    return x if isinstance(x, jax.Array) else jax.device_put(np.array(x))


@functools.cache
def host() -> jax.Device:
    """Returns the CPU device."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except (RuntimeError, AssertionError) as error:  # an assertion where cuda finds no GPU
        platforms = jax.config.values["jax_platforms"]
        raise RuntimeError(
            f"mixing on the host needs JAX's CPU platform, but jax_platforms is {platforms!r}; "
            f"add cpu to it (JAX_PLATFORMS={platforms},cpu)"
        ) from error


def to_host(arrays: Any) -> Any:
    """A tree of NumPy's arrays, in memory that the CPU device shares where that pays."""
    leaves, structure = jax.tree.flatten(arrays)
    return jax.tree.unflatten(structure, [_aligned(leaf) for leaf in leaves])


def _aligned(x: np.ndarray) -> Any:
    config: Any = jax.config
    if config.jax_disable_jit:  # what comes back unmixed would be the caller's own memory
        return jax.device_put(np.array(x), host())
    if x.nbytes < SMALL or (x.ctypes.data % ALIGNMENT == 0 and x.flags.c_contiguous):
        return x
    copy = aligned_empty(x.shape, x.dtype)
    copy[...] = x
    return copy


@functools.cache
def local_part(sharding: Sharding) -> NamedSharding:
    """The part of a sharding that is on this process's devices: over a mesh of these alone.

    Programs over this mesh never span hosts, so a loader may launch them from a thread, in any
    order: what spans hosts must be launched in the same order everywhere.
    """
    if (
        isinstance(sharding, NamedSharding)
        and sharding.is_fully_addressable
        and len(set(sharding.mesh.axis_types)) == 1  # `with_explicit_types` cannot name Auto axes
    ):
        return sharding
    rows = sharding.addressable_devices_indices_map((_slice_count(sharding),))
    slices: dict[int, list[jax.Device]] = {}
    for device, index in rows.items():
        assert index is not None
        slices.setdefault(index[0].start or 0, []).append(device)
    mesh = Mesh(np.array([slices[row] for row in sorted(slices)]), ("slices", "replicas"))
    return NamedSharding(mesh, PartitionSpec("slices"))


@functools.cache
def local_slices(sharding: Sharding) -> int:
    """The number of slices that a sharding makes of this process's batch."""
    return _slice_count(local_part(sharding))


def _slice_count(sharding: Sharding) -> int:
    """The number of slices that a sharding makes of the batch, on all hosts together."""
    devices = len(sharding.device_set)
    return devices // sharding.shard_shape((devices,))[0]


def slices_by_process(sharding: Sharding) -> dict[int, int]:
    """How many slices of the batch the devices of each process hold."""
    starts: dict[int, set[int]] = {}
    rows: Mapping[Any, Any] = sharding.devices_indices_map((_slice_count(sharding),))
    for device, index in rows.items():
        starts.setdefault(device.process_index, set()).add(index[0].start or 0)
    return {process: len(own) for process, own in starts.items()}


def to_devices(sharding: Sharding, arrays: Any) -> Any:
    """Sends each device its part of a process-local tree of arrays, without waiting."""
    return jax.device_put(arrays, local_part(sharding))


def to_program(sharding: Sharding, arrays: Any) -> Any:
    """NumPy's arrays for a program that is jitted for the devices of this process.

    Where it can, the program takes them there, in half of the time. It cannot where there are more
    processes, nor where there is no program.
    """
    config: Any = jax.config
    if config.jax_disable_jit or jax.process_count() > 1:
        return to_devices(sharding, arrays)
    return arrays


def global_rows(sharding: Sharding, local: int) -> int:
    """How many records all hosts have together, where this one has so many."""
    return local // local_slices(sharding) * _slice_count(sharding)


def with_explicit_types(sharding: NamedSharding, arrays: Any) -> Any:
    """What a program was given for a sharding, whose Explicit axes JAX wants in its type, too."""
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return arrays
    return jax.tree.map(lambda x: jax.sharding.reshard(x, sharding), arrays)


def to_global(sharding: Sharding, local: jax.Array) -> jax.Array:
    """One array over all hosts, made of the parts that lie on this one's devices already."""
    if local.sharding == sharding:
        return local
    rows = global_rows(sharding, local.shape[0])
    parts = [shard.data for shard in local.addressable_shards]
    return jax.make_array_from_single_device_arrays((rows, *local.shape[1:]), sharding, parts)


def on_gathered(function: Callable[..., Any], x: jax.Array, *others: jax.Array) -> Any:
    """`function(x, *others)`, where records of `x` may be anywhere.

    On a mesh of Explicit axes JAX leaves that to us: all is gathered, and what comes out is split
    as `x` was.
    """
    mesh = next((s.mesh for s in map(_explicit, (x, *others)) if s is not None), None)
    if mesh is None:
        return function(x, *others)
    everywhere = NamedSharding(mesh, PartitionSpec())
    result = function(*(jax.sharding.reshard(y, everywhere) for y in (x, *others)))
    split = _explicit(x)
    return result if split is None else jax.sharding.reshard(result, split)


def explicit_split(caller: str, fields: Mapping[str, jax.Array]) -> NamedSharding | None:
    """The split of axis 0 that the fields share on a mesh of Explicit axes; else `None`."""
    splits = {key: _explicit(x) for key, x in fields.items()}
    first = next((split for split in splits.values() if split is not None), None)
    if first is None:
        return None
    for key, split in splits.items():
        spec = () if split is None else split.spec
        if any(spec[1:]) or spec[:1] != first.spec[:1]:
            got = f"{key!r} is split as {PartitionSpec(*spec)} on a mesh of Explicit axes"
            fix = "bring it there with jax.sharding.reshard, or use a mesh of Auto axes"
            expected = f"{PartitionSpec(first.spec[0])}, the same split of axis 0 for all fields"
            fail(ValueError, caller, got, expected, fix)
    mapped = jax.sharding.get_abstract_mesh().manual_axes
    if mapped:
        got = f"a shard_map over {mapped}, whose shards {PartitionSpec(*first.spec)} splits further"
        fix = "name all axes that split the batch in axis_names and in_specs of the shard_map"
        fail(NotImplementedError, caller, got, "shards that are whole", fix)
    return NamedSharding(first.mesh, PartitionSpec(first.spec[0]))


def _explicit(x: jax.Array) -> NamedSharding | None:
    """The sharding that is part of an array's type on a mesh of Explicit axes, if it is split."""
    sharding = jax.typeof(x).sharding
    return sharding if any(sharding.spec) else None


# --- checks --------------------------------------------------------------------------------------


def check_sharding(caller: str, field: str, sharding: Any) -> Sharding:
    """Checks the `sharding` of a transform."""
    fix = 'pass NamedSharding(mesh, PartitionSpec("data")) with the mesh axis of the batch'
    if not isinstance(sharding, Sharding):
        got = f"sharding={quote(sharding)}"
        fail(TypeError, caller, got, "a jax.sharding.Sharding or None", fix)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        got = f"sharding={quote(sharding)}, which names no devices"
        fix = "build the mesh with jax.make_mesh, or pass sharding=None and call mix under jit"
        fail(ValueError, caller, got, "a sharding over a mesh of devices", fix)
    spec = sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()
    if isinstance(sharding, NamedSharding) and AxisType.Manual in sharding.mesh.axis_types:
        got, fix = f"sharding={quote(sharding)}", "build the mesh with jax.make_mesh"
        fail(ValueError, caller, got, "a mesh without Manual axes, which shard_map makes", fix)
    unreduced = getattr(spec, "unreduced", None)
    if unreduced or PartitionSpec.UNCONSTRAINED in tuple(spec):
        got = f"sharding with {spec}"
        fail(ValueError, caller, got, "axes that split the batch, or none", fix)
    if len(spec) > 1:  # labels [B] have no second axis, not even one to leave whole
        got = f"sharding with {spec}"
        fail(ValueError, caller, got, "a split of axis 0 alone, for fields of any rank", fix)
    if not sharding.addressable_devices:
        got = f"sharding={quote(sharding)}, none of whose devices is this process's"
        fail(ValueError, caller, got, "devices of this process", fix)
    devices: set[Any] = set(sharding.addressable_devices)
    usual = {device.default_memory().kind for device in devices}
    if sharding.memory_kind is not None and {sharding.memory_kind} != usual:
        got = f"sharding with memory_kind={sharding.memory_kind!r}"
        fix = "leave memory_kind out, and move what comes out with jax.device_put"
        fail(ValueError, caller, got, f"the devices' own memory, {sorted(usual)}", fix)
    # Batches of one size in slices of different sizes would be different arrays on each process.
    counts = slices_by_process(sharding)
    if len(set(counts.values())) > 1:
        got = f"sharding with these slices of the batch by process: {counts}"
        fix = "build the mesh of as many devices of each process"
        fail(ValueError, caller, got, "as many on each process", fix)
    return sharding


def refuse_pickling(caller: str) -> None:
    """Refuses to pickle a transform with devices, which is how it would enter a worker process."""
    got = "a transform with a sharding cannot be pickled, since a worker process has no devices"
    fix = (
        "let workers load and batch, and mix after them: take it out of operations and write\n"
        f"    dataset = gm.LoaderDataset(loader).map(gm.{caller}(..., sharding=sharding))\n"
        "    dataset = grain.experimental.ThreadPrefetchIterDataset("
        "dataset, prefetch_buffer_size=2)"
    )
    fail(TypeError, caller, got, "worker_count=0, or sharding=None in a worker", fix)


def check_groups(caller: str, size: int, slices: int, k: int) -> None:
    """Checks that a batch can be cut into slices of one size, and no group of k records with it."""
    if slices > 1 and size % (k * slices):
        got = f"a batch of {size} records in {slices} slices"
        fix = "set drop_remainder=True in Batch, and a batch_size that is such a multiple"
        whole = {1: "", 2: ", which keeps pairs whole"}.get(k, f", which keeps groups of {k} whole")
        fail(ValueError, caller, got, f"a multiple of {k * slices}{whole}", fix)


def check_placeable(caller: str, key: str, value: Any, size: int) -> None:
    """Checks that a field that is only passed on can be put on devices, without a loss."""
    got = f"{key!r} is {describe(value)}"
    if not is_array(value) or value.shape[:1] != (size,):
        fix = "drop the field before Batch, or let records hold it as a NumPy array"
        fail(TypeError, caller, got, f"an array [{size}, ...] to put on devices", fix)
    check_array(caller, key, value)
    native = getattr(value.dtype, "isnative", True)
    is_number = any(jnp.issubdtype(value.dtype, kind) for kind in (bool, np.number))
    if not native or not is_number or value.dtype.kind == "m":  # NumPy counts durations as numbers
        fix = native_fix(value.dtype) or "drop the field before Batch, or encode it as numbers"
        fail(TypeError, caller, got, "numbers to put on devices", fix)
    if isinstance(value, np.ndarray):
        check_narrow(caller, key, value)

"""Where mixing runs and where its result lies: on the host, or over this process's devices."""

import functools
import multiprocessing
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

ALIGNMENT = 64
SLICES = "slices"  # the axis of a local mesh that splits the batch; the other one repeats it


def spare_accelerators() -> None:
    """Tells JAX of the CPU alone in a Grain worker; comes first in all that may start JAX.

    JAX starts every platform it finds when the first is asked for, and a GPU's memory is taken
    then. A Grain worker has no business there:
    https://github.com/google/grain/issues/820, https://github.com/google/grain/issues/1199
    """
    if multiprocessing.current_process().name.startswith("grain-"):
        jax.config.update("jax_platforms", "cpu")


@functools.cache
def host() -> jax.Device:
    """Returns the CPU device."""
    spare_accelerators()
    try:
        return jax.local_devices(backend="cpu")[0]
    except (RuntimeError, AssertionError) as error:  # an assertion where cuda finds no GPU
        platforms = jax.config.values["jax_platforms"]
        raise RuntimeError(
            f"mixing on the host needs JAX's CPU platform, but jax_platforms is {platforms!r}; "
            f"add cpu to it (JAX_PLATFORMS={platforms},cpu)"
        ) from error


def to_host(fields: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Sends arrays to the CPU device, which shares their memory where it is aligned."""
    placed: dict[str, jax.Array] = jax.device_put(
        {key: _aligned(value) for key, value in fields.items()}, host()
    )
    return placed


def _aligned(x: np.ndarray) -> np.ndarray:
    """The array itself, or a copy, in memory that begins at a multiple of 64 bytes.

    NumPy's arrays begin 16 bytes behind one. XLA would copy them into fresh small pages, which for
    a large `float32` batch takes four times as long as this copy into NumPy's memory, of huge
    pages.
    """
    if x.ctypes.data % ALIGNMENT == 0 and x.flags.c_contiguous:
        return x
    memory = np.empty(x.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


@functools.cache
def local_mesh(sharding: Sharding) -> Mesh:
    """Returns this process's devices as `[slices of the batch, the devices that hold each]`.

    Programs over this mesh never span hosts, so a loader may launch them from a thread, in any
    order: what spans hosts must be launched in the same order everywhere.
    """
    rows = sharding.addressable_devices_indices_map((_slice_count(sharding),))
    slices: dict[int, list[jax.Device]] = {}
    for device, index in rows.items():
        assert index is not None
        slices.setdefault(index[0].start or 0, []).append(device)
    return Mesh(np.array([slices[row] for row in sorted(slices)]), (SLICES, "replicas"))


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


def to_devices(sharding: Sharding, fields: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Sends each device its part of a process-local batch, without waiting."""
    batch_axis = NamedSharding(local_mesh(sharding), PartitionSpec(SLICES))
    placed = jax.device_put([*fields.values()], batch_axis)
    return dict(zip(fields, placed, strict=True))


def to_global(sharding: Sharding, local: jax.Array) -> jax.Array:
    """One array over all hosts, made of the parts that lie on this one's devices already."""
    slices = local_mesh(sharding).shape[SLICES]
    rows = local.shape[0] // slices * _slice_count(sharding)
    parts = [shard.data for shard in local.addressable_shards]
    return jax.make_array_from_single_device_arrays((rows, *local.shape[1:]), sharding, parts)


def explicit(x: jax.Array) -> NamedSharding | None:
    """The split of axis 0 that is part of an array's type on a mesh of Explicit axes, or None."""
    sharding = jax.typeof(x).sharding
    if not any(sharding.spec[:1]):
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0]))

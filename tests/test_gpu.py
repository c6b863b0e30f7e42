"""What only a GPU can show; `python -m benchmarks gpu` runs it there before it measures.

With `GRAIN_MIX_GPU=cpu` a CPU device takes the GPU's place. There, what is said of drivers and of
copies back to the host cannot fail. The rest can.
"""

import dataclasses
import functools
import multiprocessing
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from programs import coins, fog

import grain_mix as gm

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
SIZE = 8
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "bfloat16", "float32"]
LAYOUTS: dict[str, Any] = {  # of a record, and the axes of its box
    "whole words": ((6, 8, 4), (1, 2)),
    "odd rows": ((5, 7, 3), (1, 2)),
    "channels first": ((3, 5, 4), (2, 3)),
    "a volume": ((3, 4, 2, 3), (1, 2, 3)),
}
DRIVERS = ("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/accel", "/dev/vfio")


TRANSFORMS: dict[str, Any] = {
    "mixup": gm.MixUpBatch,
    "cutmix": gm.CutMixBatch,
    "both": gm.MixBatch,
    "three": functools.partial(gm.MixUpBatch, sources=3),
    "mosaic": gm.MosaicBatch,
    "bool map": functools.partial(gm.WeightMapMixBatch, coins),
    "float map": functools.partial(gm.WeightMapMixBatch, fog),
    "class map": functools.partial(gm.WeightMapMixBatch, gm.maps.ClassMix("classes")),
}
# Each layout is a program with an image of each dtype, so for want of time these are not on all.
FEW = ["channels first", "a volume"]
NOT_ON = {"three": FEW, "mosaic": FEW, "class map": [*LAYOUTS]}
ON_LAYOUTS = [(x, kind) for x in LAYOUTS for kind in TRANSFORMS if x not in NOT_ON.get(kind, [])]


@pytest.fixture(scope="module")
def device() -> jax.Device:
    last = jax.devices()[-1]  # if it is a CPU, not the one that mixes for the host
    if last.platform == "cpu" and os.environ.get("GRAIN_MIX_GPU") != "cpu":
        pytest.skip("JAX sees no GPU or TPU")
    return last


def values(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    if "float" not in dtype:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, (SIZE, *shape), dtype, endpoint=True)
    odd = rng.choice([np.nan, np.inf, -np.inf, -0.0, 60000], (SIZE, *shape))
    normal = rng.normal(size=odd.shape)
    return np.where(rng.random(odd.shape) < 0.1, odd, normal).astype(jnp.dtype(dtype))


def batch_of(rng: np.random.Generator, side: int = 8, **fields: Any) -> dict[str, Any]:
    seeds, image = values(rng, "uint32"), values(rng, "uint8", side, side, 3)
    return {"image": image, "label": rng.integers(0, 5, SIZE), "mix_seed": seeds} | fields


# --- what the host and its workers do meanwhile ---------------------------------------------------


def test_map_returns_before_a_queued_step_ends(
    device: jax.Device, rng: np.random.Generator
) -> None:
    batch = batch_of(rng, side=64)
    mix = gm.MixBatch(num_classes=5, sharding=SingleDeviceSharding(device))
    entries = 2 ** (22 if device.platform == "cpu" else 28)
    weights = jax.device_put(np.zeros(entries, np.float32), device)
    step = jax.jit(lambda w: jax.lax.fori_loop(0, 300, lambda _, x: x * 0.9 + 1, w))
    expected = jax.device_get((step(weights), mix.map(batch)))[1]
    stepped = step(weights)
    mixed = mix.map(batch)
    assert not stepped.is_ready()
    if device.platform != "cpu":  # which may share the memory
        for field in batch.values():  # as by who loads the next batch into the same memory
            field[...] = 0
    check_bits(mixed, expected, device)
    assert stepped.is_ready()  # or it had not been queued before


def drivers_of(process: int | None) -> set[str]:
    """The drivers whose files a process has open."""
    found = set()
    for link in pathlib.Path(f"/proc/{process}/fd").iterdir():
        try:
            found.add(os.readlink(link))
        except FileNotFoundError:  # closed meanwhile
            continue
    return {name for name in found if name.startswith(DRIVERS)}


def test_workers_leave_the_gpu_alone(device: jax.Device) -> None:
    held = jax.block_until_ready(jax.device_put(np.ones(1000), device))
    loader = grain.DataLoader(
        data_source=[{"image": np.full((8, 8, 3), i, np.uint8), "label": i} for i in range(64)],
        sampler=grain.samplers.IndexSampler(64, seed=0),
        operations=[gm.RecordSeed(), grain.transforms.Batch(4), gm.MixBatch(num_classes=64)],
        worker_count=2,
    )
    batches = iter(loader)
    for _ in range(2):  # so both workers have mixed
        next(batches)
    workers = [process.pid for process in multiprocessing.active_children()]
    assert [drivers_of(process) for process in workers] == [set(), set()]
    # Or nothing would be seen of the workers either. A CPU has no driver.
    assert drivers_of(os.getpid()) or device.platform == "cpu"
    del held


def copies_back(function: Callable[[], Any], folder: pathlib.Path) -> list[str]:
    """What the profiler records of copies to the host."""
    with jax.profiler.trace(folder):
        jax.block_until_ready(function())
    (path,) = folder.rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    lines = [line for plane in planes if "/device:" in plane.name for line in plane.lines]
    names = [event.name for line in lines for event in line.events]
    return [name for name in names if re.search("d2h|dtoh", name, re.IGNORECASE)]


@pytest.mark.parametrize("kind", ["both", "float map"])
def test_nothing_is_copied_back(
    kind: str, device: jax.Device, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    batch, transform = batch_of(rng), TRANSFORMS[kind](num_classes=5)
    on_device = dataclasses.replace(transform, sharding=SingleDeviceSharding(device))
    mix, placed = jax.jit(transform.mix), jax.device_put(batch, device)
    mixed = jax.block_until_ready((mix(placed), on_device.map(batch)))  # compiled
    with jax.transfer_guard_device_to_host("disallow"):
        mix(placed)
    # `map` allows all transfers, so there only the profiler tells.
    assert copies_back(lambda: on_device.map(batch), tmp_path / "map") == []
    if device.platform == "cpu":
        pytest.skip("a CPU's memory is the host's, so nothing would be seen")
    assert copies_back(lambda: np.asarray(mixed[0]["image"]), tmp_path / "asked")


# --- the same bits as on the CPU ------------------------------------------------------------------


def check_bits(mixed: Any, expected: Any, device: jax.Device, *rounded: str) -> None:
    """All fields, since the GPU may not be there again. Those `rounded` may miss the last bit.

    A NaN that is computed may be any.
    """
    assert mixed.keys() == expected.keys()
    found = []
    for name in mixed:
        came, right = np.asarray(mixed[name]), np.asarray(expected[name])
        assert mixed[name].devices() == {device}
        assert (came.dtype, came.shape) == (right.dtype, right.shape), name
        bits = [x.view(f"int{8 * x.itemsize}").astype(np.int64) for x in (came, right)]
        wrong = abs(bits[0] - bits[1]) > (name in rounded)
        if "float" in str(right.dtype):
            wrong &= ~(np.isnan(came) & np.isnan(right))
        if wrong.any():
            pair = f"{came[wrong][0]!r} for {right[wrong][0]!r}"
            found.append(f"{name}: {wrong.sum()} of {wrong.size} differ, such as {pair}")
    if found:
        pytest.fail("\n".join(found), pytrace=False)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_every_kind_of_target(kind: str, device: jax.Device, rng: np.random.Generator) -> None:
    chances = rng.dirichlet(np.ones(5), SIZE)
    corners = np.sort(rng.integers(0, 9, (SIZE, 3, 2, 2)), axis=2).reshape(SIZE, 3, 4)
    fields: dict[str, Any] = {
        "label": (gm.OneHot(5, smoothing=0.1), rng.integers(0, 5, SIZE)),
        "tags": (gm.MultiHot(smoothing=0.1), rng.random((SIZE, 6))),
        "either": (gm.MultiHot(union=True), chances.astype(jnp.bfloat16)),
        "soft": (gm.Soft(smoothing=0.1), chances.astype(np.float32)),
        "number": (gm.Soft(), values(rng, "float32")),
        "breed": (gm.Sparse(5), rng.integers(0, 5, SIZE)),
        "caption": (gm.Stacked(), values(rng, "int32", 6)),
        "heat": (gm.ValueMap(), abs(values(rng, "float32", 8, 8))),
    }
    more = {}
    if kind != "float map":
        fields["classes"] = (gm.LabelMap(), values(rng, "uint8", 8, 8))
    if "map" not in kind:
        boxes = gm.Boxes("xyxy", fields=("class",), masks="masks")
        fields["boxes"] = (boxes, corners.astype(np.float32))
        more = {"class": values(rng, "int32", 3), "masks": values(rng, "uint8", 3, 8, 8)}
    batch = batch_of(rng, **{name: array for name, (_, array) in fields.items()}, **more)
    transform = TRANSFORMS[kind](targets={name: target for name, (target, _) in fields.items()})
    placed = dataclasses.replace(transform, sharding=SingleDeviceSharding(device))
    check_bits(placed.map(batch), transform.map(batch), device, *["heat"] * (kind == "float map"))


@pytest.mark.parametrize("how", ["pair", "batch", "partner", "valid", "key"])
def test_ways_to_mix(how: str, device: jax.Device, rng: np.random.Generator) -> None:
    batch, other = batch_of(rng), batch_of(rng)
    options: dict[str, Any] = {"mode": how} if how in ("pair", "batch") else {}
    if how in ("partner", "valid"):
        options = {f"{how}_key": how}
        batch[how] = other if how == "partner" else rng.random(SIZE) < 0.7
    arguments: Any = (batch, jax.random.key(7)) if how == "key" else (batch, None)
    if how == "key":
        del batch["mix_seed"]
    transform = gm.MixBatch(num_classes=5, prob=0.8, **options)
    mix = jax.jit(lambda batch, key: transform.mix(batch, key=key))
    expected = mix(*jax.device_put(arguments, jax.local_devices(backend="cpu")[0]))
    check_bits(mix(*jax.device_put(arguments, device)), expected, device)


@pytest.mark.parametrize(("layout", "kind"), ON_LAYOUTS)
def test_images_of_every_dtype(
    layout: str, kind: str, device: jax.Device, rng: np.random.Generator
) -> None:
    shape, axes = LAYOUTS[layout]
    rounded = DTYPES[-3:] if kind == "float map" else []
    images = {dtype: values(rng, dtype, *shape) for dtype in DTYPES}
    images |= {name: abs(images[name]) for name in rounded}  # or the last bit could be any
    batch = images | {"mix_seed": values(rng, "uint32")}
    transform = TRANSFORMS[kind](image_key=tuple(DTYPES), label_key=None, spatial_axes=axes)
    mixed = jax.jit(transform.mix)(jax.device_put(batch, device))
    check_bits(mixed, transform.map(batch), device, *rounded)

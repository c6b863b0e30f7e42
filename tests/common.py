"""Data, loaders and processes that several tests use."""

import contextlib
import functools
import itertools
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import grain
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import grain_mix as gm

Rng = np.random.Generator
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
nightly = functools.partial(pytest.param, marks=[pytest.mark.slow, pytest.mark.nightly])

KINDS = {"mixup": gm.MixUpBatch, "cutmix": gm.CutMixBatch, "both": gm.MixBatch}
each_kind = pytest.mark.parametrize("kind", KINDS)


def make_batch(
    rng: Rng, size: int, shape: tuple[int, ...] = (11, 9, 3), **fields: Any
) -> dict[str, Any]:
    """Small pictures of ten classes."""
    return {
        "image": rng.integers(256, size=(size, *shape), dtype=np.uint8),
        "label": rng.integers(0, 10, size),
        "mix_seed": rng.integers(2**32, size=size, dtype=np.uint32),
    } | fields


def assert_same(actual: Iterable[Any], expected: Iterable[Any]) -> None:
    """The same batches in the same order: fields, dtypes, shapes and bytes."""
    for a, b in itertools.zip_longest(actual, expected):
        assert a is not None, "fewer batches than expected"
        assert b is not None, "more batches than expected"
        a, b = (dict(jax.tree.leaves_with_path(batch)) for batch in (a, b))
        assert a.keys() == b.keys()
        for path, value in b.items():
            np.testing.assert_array_equal(a[path], value, jax.tree_util.keystr(path), strict=True)
            assert np.asarray(a[path]).tobytes() == np.asarray(value).tobytes()


def over(count: int, axis_type: AxisType = AxisType.Auto) -> NamedSharding:
    """The batch split over so many devices."""
    mesh = jax.make_mesh((count,), ("data",), (axis_type,), devices=jax.devices()[:count])
    return NamedSharding(mesh, PartitionSpec("data"))


def everywhere(transform: Any, batch: Any) -> dict[str, np.ndarray]:
    """What `map` gives, after seeing that `jit` on two devices and a copy of it give the same."""
    mixed: dict[str, np.ndarray] = transform.map(batch)
    others = [
        jax.jit(transform.mix)(jax.device_put(batch, over(2))),
        pickle.loads(pickle.dumps(transform)).map(batch),
    ]
    assert_same(jax.device_get(others), [mixed] * len(others))
    return mixed


def data_loader(
    records: Any,
    *operations: Any,
    worker_count: int = 0,
    sampler: Any = None,
    shard: tuple[int, int] = (0, 1),
    **options: Any,
) -> grain.DataLoader:
    """Grain's loader, which reads few records ahead; the options are those of its sampler."""
    defaults = {"num_records": len(records), "num_epochs": 1, "seed": 0}
    return grain.DataLoader(
        data_source=records,
        sampler=sampler or grain.samplers.IndexSampler(**defaults | options),
        operations=operations,
        shard_options=grain.sharding.ShardOptions(*shard),
        worker_count=worker_count,
        read_options=grain.ReadOptions(num_threads=2, prefetch_buffer_size=4),
    )


@contextlib.contextmanager
def started(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Python with this grain_mix, in a process group of its own, of which nothing stays behind.

    The options are environment variables, and `cwd` and `prefix` of the command.
    """
    cwd, prefix = options.pop("cwd", None), options.pop("prefix", ())
    with subprocess.Popen(
        [*prefix, sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | options,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            with contextlib.suppress(ProcessLookupError):  # so that Python clears memory up
                os.killpg(process.pid, signal.SIGTERM)


def run_python(
    *arguments: object, status: int | None = 0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs it to its end, at which it must have this exit status; `None`: another one than 0."""
    with started(*arguments, **options) as process:
        out, err = process.communicate(timeout=300)
    assert (process.returncode != 0) if status is None else (process.returncode == status), err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)

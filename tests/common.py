"""Data that several tests use."""

import dataclasses
import itertools
import pickle
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import grain_mix as gm

KINDS = {"mixup": gm.MixUpBatch, "cutmix": gm.CutMixBatch, "both": gm.MixBatch}
each_kind = pytest.mark.parametrize("kind", KINDS)


def make_batch(
    rng: np.random.Generator, size: int, shape: tuple[int, ...] = (11, 9, 3), **fields: Any
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
            assert a[path].tobytes() == value.tobytes()


def over(count: int, axis_type: AxisType = AxisType.Auto) -> NamedSharding:
    """The batch split over so many devices."""
    mesh = jax.make_mesh((count,), ("data",), (axis_type,), devices=jax.devices()[:count])
    return NamedSharding(mesh, PartitionSpec("data"))


def everywhere(transform: Any, batch: Any) -> dict[str, np.ndarray]:
    """What `map` gives, after seeing that `jit`, two devices and a copy of it give the same."""
    mixed: dict[str, np.ndarray] = transform.map(batch)
    others = [
        jax.jit(transform.mix)(batch),
        dataclasses.replace(transform, sharding=over(2)).map(batch),
        pickle.loads(pickle.dumps(transform)).map(batch),
    ]
    assert_same(jax.device_get(others), [mixed] * len(others))
    return mixed

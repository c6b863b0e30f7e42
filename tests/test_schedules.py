"""The schedules of `docs/guides/schedules.md`, resumed from a checkpoint at each step."""

import pathlib
import re
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

pytestmark = pytest.mark.slow
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "guides" / "schedules.md"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def is_mixed(batch: dict[str, Any]) -> bool:
    return bool((np.asarray(batch["label"]).max(axis=1) < 1).any())


def assert_same(batch: dict[str, Any], other: dict[str, Any]) -> None:
    assert batch.keys() == other.keys()
    for key in other:
        np.testing.assert_array_equal(batch[key], other[key])


@pytest.mark.parametrize("name", ["dataset", "growing"])
def test_in_the_pipeline(name: str, page: dict[str, Any], tmp_path: pathlib.Path) -> None:
    dataset: grain.MapDataset = page[name]
    expected = [dataset[i] for i in range(len(dataset))]
    if name == "dataset":  # 8 epochs of 8 batches are mixed, 2 are not
        assert all(map(is_mixed, expected[:64]))
        assert not any(map(is_mixed, expected[64:]))
    else:
        weights = [np.sort(np.asarray(batch["label"]), axis=1)[:, -2] for batch in expected]
        third = len(weights) // 3
        assert np.mean(weights[:third]) < np.mean(weights[-third:])  # α grows
    with ocp.CheckpointManager(tmp_path) as manager:
        iterator = iter(dataset.to_iter_dataset())
        for step in range(len(expected)):
            if step in (3, 63, 64, 70):
                data = grain.checkpoint.CheckpointSave(iterator)
                manager.save(step, args=ocp.args.Composite(data=data))
            assert_same(next(iterator), expected[step])
        for step in (63, 64, 3, 70):
            fresh = iter(dataset.to_iter_dataset())
            data = grain.checkpoint.CheckpointRestore(fresh)
            manager.restore(step, args=ocp.args.Composite(data=data))
            for i in range(step, min(step + 3, len(expected))):
                assert_same(next(fresh), expected[i])


def test_in_the_train_step(page: dict[str, Any], tmp_path: pathlib.Path) -> None:
    """The step is part of the train state, so it is saved with it."""
    loader, train_step, expected = page["loader"], page["train_step"], page["batches"]
    assert all(map(is_mixed, expected[:61]))
    assert not any(map(is_mixed, expected[61:]))
    with ocp.CheckpointManager(tmp_path) as manager:
        iterator = iter(loader)
        for step in range(62):
            if step in (5, 60, 61):
                args = ocp.args.Composite(
                    state=ocp.args.StandardSave({"step": np.array(step)}),
                    data=grain.checkpoint.CheckpointSave(iterator),
                )
                manager.save(step, args=args)
            next(iterator)
        for saved in (60, 5, 61):
            fresh = iter(loader)
            args = ocp.args.Composite(
                state=ocp.args.StandardRestore({"step": np.array(0)}),
                data=grain.checkpoint.CheckpointRestore(fresh),
            )
            step = int(manager.restore(saved, args=args)["state"]["step"])
            for i in range(step, step + 3):
                assert_same(train_step(i, next(fresh)), expected[i])


def test_stages_in_the_train_step(page: dict[str, Any]) -> None:
    batch = next(iter(page["loader"]))
    for step, stage in ((0, 0), (19, 0), (20, 1), (50, 2), (80, 2)):
        mixed = page["train_step_with_stages"](step, batch)
        assert_same(jax.device_get(mixed), page["stages"][stage].map(batch))

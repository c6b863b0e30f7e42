"""The schedules of `docs/guides/schedules.md`, resumed from a checkpoint at each step."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from common import assert_same

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[1] / "docs" / "guides" / "schedules.md"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def is_mixed(batch: dict[str, Any]) -> bool:
    return bool((np.asarray(batch["label"]).max(axis=1) < 1).any())


def resumed(dataset: Any, steps: Iterable[int], folder: Path) -> Iterator[tuple[int, Any]]:
    """These steps, as they are saved with the train state, and an iterator restored from each."""
    with ocp.CheckpointManager(folder) as manager:
        iterator = iter(dataset)
        for step in range(max(steps) + 1):
            if step in steps:
                state = ocp.args.StandardSave({"step": np.array(step)})
                data = grain.checkpoint.CheckpointSave(iterator)
                manager.save(step, args=ocp.args.Composite(state=state, data=data))
            next(iterator)
        for saved in steps:
            fresh = iter(dataset)
            state = ocp.args.StandardRestore({"step": np.array(0)})
            data = grain.checkpoint.CheckpointRestore(fresh)
            restored = manager.restore(saved, args=ocp.args.Composite(state=state, data=data))
            yield int(restored["state"]["step"]), fresh


@pytest.mark.parametrize("name", ["dataset", "growing"])
def test_in_the_pipeline(name: str, page: dict[str, Any], tmp_path: Path) -> None:
    dataset: grain.MapDataset = page[name]
    expected = [dataset[i] for i in range(len(dataset))]
    if name == "dataset":  # 8 epochs of 8 batches are mixed, 2 are not
        assert all(map(is_mixed, expected[:64]))
        assert not any(map(is_mixed, expected[64:]))
    else:
        weights = [np.sort(np.asarray(batch["label"]), axis=1)[:, -2] for batch in expected]
        third = len(weights) // 3
        assert np.mean(weights[:third]) < np.mean(weights[-third:])  # α grows
    assert_same(dataset.to_iter_dataset(), expected)
    for step, fresh in resumed(dataset.to_iter_dataset(), (63, 64, 3, 70), tmp_path):
        for i in range(step, min(step + 3, len(expected))):
            assert_same([next(fresh)], [expected[i]])


def test_in_the_train_step(page: dict[str, Any], tmp_path: Path) -> None:
    """The step is part of the train state, so it is saved with it."""
    train_step, expected = page["train_step"], page["batches"]
    assert all(map(is_mixed, expected[:61]))
    assert not any(map(is_mixed, expected[61:]))
    for step, fresh in resumed(page["loader"], (60, 5, 61), tmp_path):
        for i in range(step, step + 3):
            assert_same([train_step(i, next(fresh))], [expected[i]])


def test_stages_in_the_train_step(page: dict[str, Any]) -> None:
    batch = next(iter(page["loader"]))
    for step, stage in ((0, 0), (19, 0), (20, 1), (50, 2), (80, 2)):
        mixed = page["train_step_with_stages"](step, batch)
        assert_same([jax.device_get(mixed)], [page["stages"][stage].map(batch)])

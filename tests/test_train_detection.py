"""The example that trains a detector: exact scenes, its measures, and the table that it writes."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import train_detection
from common import Rng
from flax import nnx
from train_detection import CELLS, MOST, NUM_CLASSES, SIDE, mean_average_precision, mean_iou


def cut_outs(rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Images that are bright everywhere, so that an object is its whole square."""
    return rng.integers(100, 256, (30, 8, 8, 1), np.uint8), rng.integers(NUM_CLASSES, size=30)


def test_scenes_are_exact_and_depend_on_their_index_alone(rng: Rng) -> None:
    images, labels = cut_outs(rng)
    source = train_detection.Scenes(images, labels, seed=int(rng.integers(100)))
    for index in range(20):
        scene, again = source[index], source[index]
        assert all(np.array_equal(scene[name], again[name]) for name in scene)
        masks, classes = scene["masks"], scene["class"]
        assert masks.sum(axis=0).max() == 1
        of_masks = (masks * classes[:, None, None]).sum(axis=0)
        np.testing.assert_array_equal(scene["map"], of_masks)
        [last, *_] = np.flatnonzero(classes)[::-1]  # which nothing hides
        rows, columns = np.nonzero(masks[last])
        assert 12 <= np.ptp(rows) + 1 == np.ptp(columns) + 1 == len(rows) ** 0.5 <= 24
        for mask, (top, left, bottom, right), kind in zip(
            masks, scene["boxes"], classes, strict=True
        ):
            assert (kind > 0) == mask.any() == (bottom > top)
            if kind:
                rows, columns = np.nonzero(mask)
                assert (rows.min(), columns.min()) == (top, left)
                assert (rows.max() + 1, columns.max() + 1) == (bottom, right)


def objects(rng: Rng, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and classes, of objects in different cells."""
    corners = rng.integers(0, SIDE - 12, (count, MOST, 2))
    boxes = np.concatenate([corners, corners + rng.integers(6, 13, (count, MOST, 2))], axis=-1)
    return boxes, rng.integers(1, NUM_CLASSES + 1, (count, MOST))


def answers(boxes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A network's answer that has each object in a cell of its own, with the chance 0.9."""
    chances = np.zeros((len(boxes), CELLS, CELLS, NUM_CLASSES))
    corners = np.zeros((len(boxes), CELLS, CELLS, 4))
    for i, k in np.ndindex(classes.shape):
        chances[i, k, k, classes[i, k] - 1] = 0.9
        corners[i, k, k] = boxes[i, k]
    return chances, corners


def test_precision_of_all_and_of_some(rng: Rng) -> None:
    boxes, classes = objects(rng, 40)
    classes[0], classes[1], classes[2, :2] = [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]  # each is there
    chances, corners = answers(boxes, classes)
    assert mean_average_precision(chances, corners, boxes, classes) == pytest.approx(1)
    # Those of the last 20 images are not found: recall is what the others are of all.
    chances[20:] = 0
    recall = [(classes[:20] == k).sum() / (classes == k).sum() for k in range(1, NUM_CLASSES + 1)]
    found = mean_average_precision(chances, corners, boxes, classes)
    assert found == pytest.approx(np.mean(recall))
    # What is said of nothing with a smaller chance costs nothing, with a larger one it does.
    corners[:, 8, 8], chances[:, 8, 8] = [0, 0, 1, 1], 0.5
    assert mean_average_precision(chances, corners, boxes, classes) == pytest.approx(found)
    chances[:, 8, 8] = 0.95
    assert mean_average_precision(chances, corners, boxes, classes) < 0.9 * found


def test_an_object_is_found_once() -> None:
    boxes = np.zeros((1, MOST, 4), int)
    boxes[0, :2] = [10, 10, 20, 20], [30, 30, 40, 40]
    classes = np.array([[1, 1, 0, 0]])
    chances, corners = answers(boxes, classes)
    corners[0, 1, 1] = [10, 10, 20, 18]  # the first again, and not the second
    # One right of two found, the first: the area is half of the recall.
    assert mean_average_precision(chances, corners, boxes, classes) == pytest.approx(
        0.5 / NUM_CLASSES
    )


def test_iou_of_pixels(rng: Rng) -> None:
    true, said = rng.integers(0, NUM_CLASSES + 1, (2, 5, 9, 9))
    shares = []
    for k in range(1, NUM_CLASSES + 1):
        a, b = set(np.flatnonzero(true == k)), set(np.flatnonzero(said == k))
        shares.append(len(a & b) / len(a | b))
    assert mean_iou(said, true) == pytest.approx(np.mean(shares))
    assert mean_iou(true, true) == 1


@pytest.mark.slow
def test_what_is_hidden_costs_nothing(rng: Rng) -> None:
    """Rows of zeros, as the mixing leaves them, change no loss, whatever else they hold."""
    net = train_detection.Detector(nnx.Rngs(0))
    source = train_detection.Scenes(*cut_outs(rng))
    records = [source[i] for i in range(4)]
    batch = {name: np.stack([record[name] for record in records]) for name in records[0]}
    batch["boxes_weight"] = np.float32(batch["class"] > 0)
    more = dict(batch)
    for name in ("boxes", "class", "boxes_weight"):
        more[name] = np.concatenate([batch[name], np.zeros_like(batch[name])], axis=1)
    more["class"][:, MOST:] = 3
    loss = jax.jit(lambda batch: train_detection.loss_of(net, batch))
    np.testing.assert_allclose(loss(more), loss(batch), rtol=1e-5)


@pytest.mark.slow
def test_the_table_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    mark = "digits 3 steps of detection"
    page.write_text(f"<!-- {mark} -->\nold\n<!-- /{mark} -->\n")
    counts = {"scenes": 24, "tests": 10, "seeds": 2, "steps": 3, "page": page}
    options = [str(part) for name, value in counts.items() for part in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["program", "--data-dir", str(tmp_path), *options])
    train_detection.main(train_detection.parse_arguments())
    written = page.read_text()
    assert "24 training scenes of `digits`, 3 steps of 16; 10 test scenes" in written
    for name in ("none", "mosaic", "copy-paste", "mosaic less none", "copy-paste less none"):
        assert f"\n| {name} | " in written
    assert "--scenes 24 --tests 10 --seeds 2 --steps 3 --batch-size 16\n" in written
    assert written.splitlines()[1:-2] == capsys.readouterr().out.splitlines()[:-1]

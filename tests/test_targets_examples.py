"""The examples of detection, segmentation and mosaics: exact scenes, a falling loss, figures."""

import pathlib
import re

import detection
import mosaic
import numpy as np
import pytest
import scenes
import segmentation
from PIL import Image


def test_scenes_are_exact_and_depend_on_their_index_alone() -> None:
    source = scenes.Scenes(40)
    for index in range(40):
        scene = source[index]
        for box, kind in zip(scene["boxes"], scene["class"], strict=True):
            top, left, bottom, right = box
            assert (kind > 0) == (bottom > top)
            inside = scene["map"][top:bottom, left:right]
            if kind:  # a class that shows in each row and column at the box's edges
                for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                    assert (edge == kind).any()
        again = scenes.Scenes(50)[index]
        assert all(np.array_equal(scene[key], again[key]) for key in scene)


@pytest.mark.slow
@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("example", [detection, segmentation])
def test_the_loss_falls(
    example: object,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "figure.png"
    monkeypatch.setattr("sys.argv", ["example", "--steps", "15", "--output", str(output)])
    example.main()  # type: ignore[attr-defined]
    printed = capsys.readouterr().out
    found = re.search(r"^loss (\d+\.\d+) at first, (\d+\.\d+) at last$", printed, re.MULTILINE)
    assert found, printed
    assert float(found[2]) < 0.9 * float(found[1])
    with Image.open(output) as image:
        assert image.width > 900


@pytest.mark.slow
def test_mosaics_are_drawn(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "mosaic.png"
    monkeypatch.setattr("sys.argv", ["example", "--output", str(output)])
    mosaic.main()
    with Image.open(output) as image:
        assert image.width > 900

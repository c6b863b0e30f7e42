"""The gallery: every recipe and map on the same photographs."""

import pathlib
import sys

import gallery
import pytest
import weight_maps
from PIL import Image


@pytest.mark.slow
def test_both_figures_are_drawn(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib warns, and so fails, where titles leave no room for the photographs."""
    monkeypatch.setattr(sys, "argv", ["gallery.py", "--output", str(tmp_path)])
    gallery.main()
    for name, rows in {
        "gallery_recipes.png": gallery.recipes(10),
        "gallery_maps.png": gallery.maps(10),
    }.items():
        with Image.open(tmp_path / name) as figure:
            assert figure.width == 1365
            assert figure.height == pytest.approx(256.75 * (len(rows) + 1), abs=2)
    assert len(gallery.maps(10)) == len(weight_maps.RECIPES)

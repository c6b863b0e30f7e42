"""The gallery: every line of code of the page, on the same photographs."""

import pathlib
import sys

import gallery
import pytest
import weight_maps
from PIL import Image

import grain_mix as gm


@pytest.mark.slow
@pytest.mark.usefixtures("plain")
def test_every_card_is_drawn(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib warns, and so fails, where titles leave no room for the photographs."""
    monkeypatch.setattr(sys, "argv", ["gallery.py", "--output", str(tmp_path)])
    gallery.main()
    stored = gallery.PAGE.parent / "images" / "gallery"
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in stored.iterdir()}
    assert drawn == {"records.png", *gallery.cards(10)}
    for name in drawn:
        with Image.open(tmp_path / name) as new, Image.open(stored / name) as old:
            assert new.size == old.size == (600, 195)
    maps = [card for card in gallery.cards(10).values() if isinstance(card, gm.WeightMapMixBatch)]
    assert {card.weight_map for card in maps} == set(weight_maps.RECIPES.values())

"""How the examples store what they draw."""

import io
import pathlib

from matplotlib.figure import Figure
from PIL import Image


def save(figure: Figure, path: pathlib.Path) -> Image.Image:
    """Writes a PNG file, which a notebook shows when it's the last thing in a cell."""
    drawn = io.BytesIO()
    figure.savefig(drawn)
    # 256 colours, hardly to be told from all of them, make the file a third as large.
    image = Image.open(drawn).convert("RGB").quantize(256, kmeans=2)
    image.save(path, optimize=True)
    return image

"""The cards of docs/gallery.md: each line of code there, and what it does to four photographs.

    python examples/gallery.py

writes the pictures that the page shows into `docs/images/gallery`; the first run also prepares the
photographs.
"""

import argparse
import pathlib
import re
from typing import Any

import data
import grain
import numpy as np
import picture
import quickstart
from absl import flags
from matplotlib.figure import Figure

import grain_mix as gm

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "gallery.md"
SEED = 129  # starts with varied records, as in the quickstart


def cards(num_classes: int) -> dict[str, Any]:
    """The transforms of the page, by the names of their pictures."""
    found = re.findall(
        r"```python\n(gm\..*?)```\n\n!\[.*?\]\(images/gallery/(.*?)\)", PAGE.read_text(), re.DOTALL
    )
    known = {"gm": gm, "K": num_classes}
    return {name: eval(code, known) for code, name in found}


def main() -> None:
    """Draws all cards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=PAGE.parent / "images" / "gallery")
    args = parser.parse_args()
    records, names = data.photographs()
    loader = grain.DataLoader(
        data_source=records,
        sampler=grain.samplers.IndexSampler(len(records), shuffle=True, seed=SEED, num_epochs=1),
        operations=[gm.RecordSeed(), grain.transforms.Batch(8)],
    )
    batch = next(iter(loader))
    one_hot = np.eye(len(names))[batch["label"]]
    args.output.mkdir(parents=True, exist_ok=True)
    draw({**batch, "label": one_hot}, names, args.output / "records.png")
    for name, transform in cards(len(names)).items():
        draw(transform.map(batch), names, args.output / name)
    print(f"wrote {args.output}")


def draw(batch: Any, names: tuple[str, ...], path: pathlib.Path) -> None:
    """Draws two pairs of records under their labels."""
    figure = Figure((6, 1.95), dpi=100, layout="constrained")
    for i, axis in enumerate(figure.subplots(1, 4)):
        axis.imshow(batch["image"][i])
        axis.set_title(quickstart.describe(batch["label"][i], names), fontsize=9)
        axis.axis("off")
    picture.save(figure, path)


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags
    main()

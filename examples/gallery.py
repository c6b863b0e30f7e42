"""Every transform and recipe on the same photographs.

    python examples/gallery.py

writes `gallery_recipes.png` and `gallery_maps.png`; the first run also prepares the photographs.
"""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

import data
import grain
import numpy as np
import quickstart
import weight_maps
from absl import flags

import grain_mix as gm

SEED = 129  # starts with varied records, as in the quickstart


def recipes(num_classes: int) -> Mapping[str, Any]:
    """Those that `docs/guides/alpha.md` names."""
    return {
        "MixUp paper, big_vision: MixUpBatch(0.2, mode='batch')": gm.MixUpBatch(
            alpha=0.2, num_classes=num_classes, mode="batch"
        ),
        "CutMix paper: CutMixBatch(1.0, mode='batch')": gm.CutMixBatch(
            alpha=1.0, num_classes=num_classes, mode="batch"
        ),
        "CIFAR: CutMixBatch(1.0, prob=0.5)": gm.CutMixBatch(
            alpha=1.0, num_classes=num_classes, prob=0.5
        ),
        "DeiT, ConvNeXt: MixBatch(0.8, 1.0, label_smoothing=0.1)": gm.MixBatch(
            mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=num_classes, label_smoothing=0.1
        ),
        "RSB: MixBatch(0.1, 1.0)": gm.MixBatch(
            mixup_alpha=0.1, cutmix_alpha=1.0, num_classes=num_classes
        ),
    }


def maps(num_classes: int) -> Mapping[str, Any]:
    """Those of `weight_maps.py`."""
    return {
        f"WeightMapMixBatch({recipe.__name__})": gm.WeightMapMixBatch(
            recipe, num_classes=num_classes
        )
        for recipe in weight_maps.RECIPES.values()
    }


def main() -> None:
    """Draws both figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=".", help="a folder")
    args = parser.parse_args()
    records, names = data.photographs()
    loader = grain.DataLoader(
        data_source=records,
        sampler=grain.samplers.IndexSampler(len(records), shuffle=True, seed=SEED, num_epochs=1),
        operations=[gm.RecordSeed(), grain.transforms.Batch(8)],
    )
    batch = next(iter(loader))
    one_hot = np.eye(len(names))[batch["label"]]
    for file, transforms in {
        "gallery_recipes.png": recipes(len(names)),
        "gallery_maps.png": maps(len(names)),
    }.items():
        rows = {"Records, each next to its partner": {**batch, "label": one_hot}}
        rows |= {title: transform.map(batch) for title, transform in transforms.items()}
        quickstart.draw_picture(rows, names, args.output / file)
        print(f"wrote {args.output / file}")


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags
    main()

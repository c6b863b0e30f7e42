"""Data that several tests use."""

import numpy as np
import pytest

import grain_mix as gm

KINDS = {"mixup": gm.MixUpBatch, "cutmix": gm.CutMixBatch, "both": gm.MixBatch}
each_kind = pytest.mark.parametrize("kind", KINDS)


def make_batch(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Small pictures of ten classes."""
    return {
        "image": rng.integers(256, size=(size, 11, 9, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, size),
        "mix_seed": rng.integers(2**32, size=size, dtype=np.uint32),
    }

"""Records that are mixed of more than two: who they are, what is drawn for them, and where."""

import dataclasses
import zlib
from typing import Any

import grain
import jax
import numpy as np
import pytest
import reference
from common import Rng, assert_same, data_loader, nightly, over, slow
from programs import all_kinds, batch_of
from scipy import stats

import grain_mix as gm

MOSAIC, THREE = gm.MosaicBatch(prob=0.8), gm.MixUpBatch(1.0, sources=3, prob=0.8)
SEEDS = np.arange(1000, dtype=np.uint32)
ALWAYS = 1e-7  # a test of a law fails by chance once in ten million runs


def draws(transform: Any, seeds: np.ndarray, sides: tuple[int, int] = (20, 30)) -> gm.Draw:
    return jax.device_get(transform.draw(seeds, (len(seeds), *sides, 3)))


def fresh(rng: Rng, size: int) -> np.ndarray:
    return rng.integers(2**32, size=size, dtype=np.uint32)


# --- who, and where ------------------------------------------------------------------------------


def test_groups() -> None:
    """Each record is first; the seventh takes the last three records of the batch as its group."""
    found = gm.MixUpBatch(sources=3).draw(SEEDS[:7], (7, 5)).sources
    expected = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [3, 4, 5], [4, 5, 3], [5, 3, 4], [6, 4, 5]]
    np.testing.assert_array_equal(found, expected)
    few = draws(MOSAIC, SEEDS[:3])
    np.testing.assert_array_equal(few.sources, np.repeat(np.arange(3)[:, None], 4, axis=1))
    np.testing.assert_array_equal(few.shares, [[1, 0, 0, 0]] * 3)


@pytest.mark.parametrize(
    ("transform", "devices"),
    [(MOSAIC, [8]), (THREE, [2]), slow(MOSAIC, [2, 4]), nightly(THREE, [4, 8])]
    + [slow(gm.MixUpBatch(0.4, sources=8), [2])]
    + [nightly(gm.MixUpBatch(0.4, sources=k), [2]) for k in range(4, 8)],
)
def test_anywhere(transform: Any, devices: list[int], rng: Rng) -> None:
    """With all kinds of targets: as the reference says, on devices and under `jit`."""
    transform, fields = all_kinds(transform, 1)
    batch = batch_of(rng, max(devices) * reference.sources_of(transform), fields)
    mixed = transform.map(batch)
    reference.check_mixed(transform, batch, mixed)
    sharded = [dataclasses.replace(transform, sharding=over(count)) for count in devices]
    found = [each.map(batch) for each in sharded] + [jax.jit(transform.mix)(batch)]
    assert_same(jax.device_get(found), [mixed] * len(found))


def test_the_formula_of_mosaics(rng: Rng) -> None:
    """`gm.mosaic` with the parameters that the transform draws."""
    batch = {"image": rng.normal(size=(9, 3, 8, 7)).astype(np.float32), "mix_seed": fresh(rng, 9)}
    transform = gm.MosaicBatch(spatial_axes=(3, 2), label_key=None, prob=0.8)
    draw = transform.draw(batch["mix_seed"], batch["image"].shape)
    mixed = gm.mosaic(batch["image"], draw.tiles, draw.shift, draw.sources, spatial_axes=(3, 2))
    np.testing.assert_array_equal(mixed, transform.map(batch)["image"])


@pytest.mark.parametrize("size", [12, 20, slow(15)])
def test_slices_of_groups_that_are_not_whole(size: int, rng: Rng) -> None:
    transform = gm.MosaicBatch(label_key=None, sharding=over(2))
    batch = batch_of(
        rng, size, {"image": ("any", (4, 4, 1), "uint8"), "mix_seed": ("any", (), "uint32")}
    )
    message = (
        rf"{size} records in 2 slices; expected a multiple of 8, which keeps groups of 4 whole"
    )
    with pytest.raises(ValueError, match=message):
        transform.map(batch)


def test_in_a_worker_process(rng: Rng) -> None:
    images = rng.integers(256, size=(8, 6, 5, 3), dtype=np.uint8)
    records = [{"image": image, "label": i} for i, image in enumerate(images)]
    operations = gm.RecordSeed(), grain.transforms.Batch(4), gm.MosaicBatch(num_classes=8)
    loaders = [data_loader(records, *operations, worker_count=count) for count in (0, 1)]
    assert_same(*loaders)


# --- what is drawn --------------------------------------------------------------------------------


def test_known_draws() -> None:
    """Numbers that never change, on any platform."""
    mosaic, of_three = draws(gm.MosaicBatch(), SEEDS), draws(gm.MixUpBatch(0.4, sources=3), SEEDS)
    found = [mosaic.shares, mosaic.tiles, mosaic.shift, of_three.shares]
    expected = [1459964359, 551091689, 2410920910, 1112998363]
    assert [zlib.crc32(np.ascontiguousarray(x).tobytes()) for x in found] == expected


@pytest.mark.parametrize("split", [(0.25, 0.75), (0, 1), (0.4, 0.45)])
def test_the_centre_is_uniform_and_so_is_the_corner(split: tuple[float, float], rng: Rng) -> None:
    """The centre of 20 x 30 pixels; the record's own corner does not depend on it."""
    draw = draws(gm.MosaicBatch(split=split), fresh(rng, 40_000))
    centre = draw.shift.max(1)  # of the far side
    is_far = draw.shift[:, 0] == centre
    counts = []
    for axis, length in enumerate((20, 30)):
        low, high = int(np.ceil(split[0] * length)), int(split[1] * length)
        counts.append(np.bincount(centre[:, axis] - low, minlength=high - low + 1))
        assert len(counts[-1]) == high - low + 1
    corner = 2 * is_far[:, 0] + is_far[:, 1]
    counts.append(np.bincount(corner, minlength=4))
    counts.append(np.bincount(4 * (centre[:, 0] % 2 + 2 * (centre[:, 1] % 2)) + corner))
    assert min(stats.chisquare(each).pvalue for each in counts[:3] if len(each) > 1) > ALWAYS
    assert stats.chi2_contingency(counts[3].reshape(-1, 4)).pvalue > ALWAYS


@pytest.mark.parametrize(("k", "alpha"), [(3, 1.0), (4, 0.2), slow(5, 3.0), slow(8, 0.6)])
def test_shares_are_dirichlets(k: int, alpha: float, rng: Rng) -> None:
    """Each share is Beta(α, (k-1)·α), the sum of two Beta(2·α, (k-2)·α); all sum to 1 exactly."""
    draw = gm.MixUpBatch(alpha, sources=k).draw(seeds := fresh(rng, 20_000), (20_000, 3))
    units = np.float64(draw.shares) * 2**24
    np.testing.assert_array_equal(units % 1, 0)
    np.testing.assert_array_equal(units.sum(1), 2**24)
    shares = units / 2**24
    several = [(r,) for r in range(k)] + [(r, (r + 1) % k) for r in range(k)]
    for each in several:
        law = stats.beta(len(each) * alpha, (k - len(each)) * alpha)
        # Twentieths of probability, which end between two whole numbers of 2⁻²⁴.
        ends = np.floor(law.ppf(np.arange(1, 20) / 20) * 2**24).clip(0, 2**24 - 1)
        ends = (np.unique(ends) + 0.5) / 2**24
        counts = np.bincount(np.searchsorted(ends, shares[:, each].sum(1)), minlength=len(ends) + 1)
        expected = np.diff([0, *law.cdf(ends), 1]) * len(shares)
        assert stats.chisquare(counts, expected).pvalue > ALWAYS
    # The first stick has the bits of λ.
    lam = gm.MixUpBatch(gm.Beta(alpha, (k - 1) * alpha)).draw(seeds, (20_000, 3)).lam
    np.testing.assert_array_equal(draw.shares[:, 0], lam)


@pytest.mark.skipif(not hasattr(gm, "Larger"), reason="no laws yet")
def test_the_largest_share_is_the_records_own() -> None:
    """It changes places with the first one, and nothing else changes."""
    law = gm.Larger(gm.Beta(0.4, 0.4))
    larger, shares = (
        np.array(gm.MixUpBatch(alpha, sources=4).draw(SEEDS, (1000, 3)).shares)
        for alpha in (law, 0.4)
    )
    for before, after in zip(shares, larger, strict=True):
        largest = before.argmax()
        before[[0, largest]] = before[[largest, 0]]
        np.testing.assert_array_equal(after, before)

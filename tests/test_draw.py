"""Draws from seeds: their distributions, their independence, and that only the record matters."""

import dataclasses
import fractions
import zlib
from typing import Any

import grain
import jax
import numpy as np
import pytest
import scipy.stats
from common import Rng, data_loader

import grain_mix as gm
from grain_mix import _laws, _rules

N = 100_000
ALPHAS = [0.05, 0.2, 1.0, 8.0]
# Two samples of N or one against its law: 1e-7 to exceed this by chance, and tests are many.
KS_LIMIT = 3 / np.sqrt(N)


@pytest.fixture
def seeds(rng: Rng) -> np.ndarray:
    return rng.integers(2**32, size=N, dtype=np.uint32)


def draw(transform: Any, seeds: np.ndarray, *shape: int) -> gm.Draw:
    return jax.tree.map(np.asarray, transform.draw(seeds, (len(seeds), *shape)))


def distance(lam: np.ndarray, law: Any, tail: float = 2.0**-20) -> float:
    """The Kolmogorov–Smirnov test without the ends, where float32 cannot tell λ from 1."""
    lam = np.sort(lam.astype(np.float64))
    inside = (lam > tail) & (lam < 1 - tail)
    steps = np.arange(len(lam) + 1) / len(lam)
    apart = law.cdf(lam[inside]) - np.stack([steps[:-1], steps[1:]])[:, inside]
    return float(np.abs(apart).max(initial=0))


def is_chance(count: int, probability: float) -> bool:
    return bool(scipy.stats.binomtest(count, N, probability).pvalue > 1e-7)


def is_uniform(values: np.ndarray, low: int, high: int) -> bool:
    """Whether whole numbers are uniform from low to high."""
    counts = np.bincount(values - low, minlength=high - low + 1)
    possible = len(counts) == high - low + 1
    return possible and (low == high or bool(scipy.stats.chisquare(counts).pvalue > 1e-7))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_lambda_is_beta_distributed(alpha: float, seeds: np.ndarray) -> None:
    lam = draw(gm.MixUpBatch(alpha=alpha), seeds, 4, 4, 3).lam
    assert lam.dtype == np.float32
    assert lam.min() >= 0
    assert lam.max() <= 1
    law = scipy.stats.beta(alpha, alpha)
    assert distance(lam, law) < KS_LIMIT
    assert distance(1 - lam, law) < KS_LIMIT  # no side is preferred, the tails included
    assert is_chance(int((lam < 0.5).sum()), 0.5)


# The same parameter twice; those of the issues and of published recipes; the ends of the range.
LAWS = [*((alpha, alpha) for alpha in (1e-3, *ALPHAS, 30, 200, 1e4)), (0.05, 200), (200, 0.05)]
LAWS += [(2, 8), (8, 2), (0.3, 1.7)]


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(("a", "b"), LAWS)
def test_the_table_has_no_error_of_its_own(a: float, b: float) -> None:
    """All 2²⁰ values that λ can take, once each: the exact distribution, not a sample."""
    bits = np.arange(2**20, dtype=np.uint32) << 12
    lam = np.asarray(jax.jit(_laws.sample, static_argnums=1)(bits, gm.Beta(a, b))) / 2**24
    assert (np.diff(lam) >= 0).all()
    law = scipy.stats.beta(a, b)
    for tail in (2.0**-20, 2.0**-10):
        assert distance(lam, law, tail) < 0.002
    assert abs(lam.mean() - law.mean()) < (1e-6 if a == b else 1e-3)
    # The ends, where most of a law with small parameters is.
    assert abs((lam <= 2.0**-20).mean() - law.cdf(2.0**-20)) < 0.002
    assert abs((lam >= 1 - 2.0**-20).mean() - law.sf(1 - 2.0**-20)) < 0.002


def test_a_law_takes_the_place_of_any_alpha(rng: Rng) -> None:
    seeds = rng.integers(2**32, size=500, dtype=np.uint32)
    for make in (
        lambda alpha: gm.MixUpBatch(alpha),
        lambda alpha: gm.CutMixBatch(alpha),
        lambda alpha: gm.MixBatch(mixup_alpha=alpha),
        lambda alpha: gm.MixBatch(cutmix_alpha=alpha),
    ):
        same, equal, other = (
            draw(make(alpha), seeds, 20, 30, 3) for alpha in (0.4, gm.Beta(0.4, 0.4), gm.Beta(2, 8))
        )
        jax.tree.map(np.testing.assert_array_equal, same, equal)
        assert (same.lam != other.lam).any()
    # The law is that of the record's own weight: mean a / (a + b).
    own = draw(gm.MixUpBatch(gm.Beta(2, 8)), seeds, 20, 30, 3).lam
    assert abs(own.mean() - 0.2) < 0.05
    kept = draw(gm.CutMixBatch(gm.Beta(200, 20)), seeds, 20, 30, 3).lam
    assert kept.mean() > 0.8


@dataclasses.dataclass(frozen=True)
class Stairs(gm.Law):
    """Each of `heights` with the same chance."""

    heights: tuple[float, ...]

    def quantile(self, p: np.ndarray) -> np.ndarray:
        return np.array(self.heights)[(p * len(self.heights)).astype(int)]


@pytest.mark.parametrize(
    ("law", "reference"),
    [
        (gm.Uniform(0.3, 0.6), scipy.stats.uniform(0.3, 0.3)),
        (gm.Uniform(0, 1), scipy.stats.uniform(0, 1)),
        (Stairs((0.1, 0.5)), None),
        (gm.Larger(gm.Uniform(0.1, 0.8)), None),
    ],
)
def test_other_laws(law: Any, reference: Any) -> None:
    """All 2²⁰ values that λ can take, once each."""
    bits = np.arange(2**20, dtype=np.uint32) << 12
    lam = np.asarray(jax.jit(_laws.sample, static_argnums=1)(bits, law)) / 2**24
    if isinstance(law, Stairs):
        heights = np.rint(np.array(law.heights) * 2**24) / 2**24
        assert np.isin(lam, heights).mean() > 0.999
        assert abs((lam < 0.3).mean() - 0.5) < 1e-3
    elif reference is None:
        inner = np.asarray(jax.jit(_laws.sample, static_argnums=1)(bits, law.law)) / 2**24
        np.testing.assert_array_equal(lam, np.maximum(inner, 1 - inner))
    else:
        assert distance(lam, reference) < 0.0005
        assert abs(lam.mean() - reference.mean()) < 1e-6
    np.testing.assert_allclose(law.quantile(np.array([0.5])), np.quantile(lam, 0.5), atol=1e-3)


def test_laws_in_a_transform(seeds: np.ndarray) -> None:
    constant = draw(gm.MixUpBatch(gm.Uniform(0.75, 0.75)), seeds, 4, 4, 3).lam
    assert (constant == 0.75).all()
    lam, larger = (
        draw(gm.MixUpBatch(law), seeds, 4, 4, 3).lam for law in (0.2, gm.Larger(gm.Beta(0.2, 0.2)))
    )
    np.testing.assert_array_equal(larger, np.maximum(lam, 1 - lam))


@pytest.mark.parametrize("lengths", [(1000,), (224, 160), (30, 50, 40)])
def test_the_box_has_the_papers_sides(lengths: tuple[int, ...], seeds: np.ndarray) -> None:
    """⌊L·(1-λ)^(1/n)⌋, for the λ that MixUp draws from the same seed with the same α."""
    n = len(lengths)
    seeds = seeds[:20_000]
    transform = gm.CutMixBatch(alpha=1.0, spatial_axes=tuple(range(1, n + 1)))
    box = draw(transform, seeds, *lengths, 3).box
    lam = draw(gm.MixUpBatch(alpha=1.0), seeds, *lengths, 3).lam
    for k, length in enumerate(lengths):
        start, stop = box[:, k].T
        clipped = (start == 0) | (stop == length)
        side = np.floor(length * (1 - lam.astype(np.float64)) ** (1 / n) + 1e-9)
        np.testing.assert_array_equal((stop - start)[~clipped], side[~clipped])
        assert ((stop - start)[clipped] <= side[clipped]).all()
        assert (~clipped).sum() > 1000


def test_sides_are_exact_where_a_root_would_round() -> None:
    """For every λ at which a side begins, and the one just before."""
    for length, n in ((224, 2), (7, 3), (48_000, 1)):
        for side in {1, 2, length // 3, length // 2, length - 1, length}:
            begin = -(-(2**24) * fractions.Fraction(side, length) ** n // 1)
            weights = np.array([int(begin) - 1, int(begin)], np.uint32)
            centre = np.full(2, length // 2, np.uint32)
            box = np.asarray(_rules.box_about(centre, length, weights, n))
            assert (box[:, 1] - box[:, 0]).tolist() == [side - 1, side]


def test_a_long_axis_costs_no_table() -> None:
    """100 seconds of audio: a table of all sides took 2 seconds, and 600 MiB."""
    transform = gm.CutMixBatch(spatial_axes=(1,), label_key=None)
    draw = jax.jit(lambda seeds: transform.draw(seeds, (2, 4_800_000)).box)
    program = draw.lower(np.zeros(2, np.uint32)).as_text()
    assert len(program) < 2**18


def test_the_centre_is_uniform_over_the_image(seeds: np.ndarray) -> None:
    """Large α gives all boxes half the area, so the centre shows from the edge not clipped."""
    height, width = 60, 100
    box = draw(gm.CutMixBatch(alpha=1e7), seeds, height, width, 3).box
    for k, length in enumerate((height, width)):
        start, stop = box[:, k].T
        side = int(np.floor(length * 0.5**0.5))
        centre = np.where(start > 0, start + side // 2, stop - side + side // 2)
        assert is_uniform(centre, 0, length - 1)


@pytest.mark.parametrize("minmax", [(0.14, 0.58), (0.0, 1.0), (0.5, 0.5), (0.1, 0.101)])
def test_minmax_is_uniform_and_wholly_inside(
    minmax: tuple[float, float], seeds: np.ndarray
) -> None:
    lengths = (30, 50)
    drawn = draw(gm.CutMixBatch(minmax=minmax), seeds, *lengths, 3)
    for k, length in enumerate(lengths):
        start, stop = drawn.box[:, k].T
        side = stop - start
        smallest = int(np.ceil(round(minmax[0] * length, 6)))
        largest = max(int(np.floor(round(minmax[1] * length, 6))), smallest)
        assert (start >= 0).all()
        assert (stop <= length).all()
        assert is_uniform(side, smallest, largest)
        for fixed in {smallest, (smallest + largest) // 2} - {0}:
            assert is_uniform(start[side == fixed], 0, length - fixed)


@pytest.mark.parametrize("probability", [0.0, 0.01, 0.3, 0.99, 1.0])
def test_prob_and_switch_prob(probability: float, seeds: np.ndarray) -> None:
    mixed = draw(gm.MixUpBatch(alpha=8.0, prob=probability), seeds, 32, 32, 3).lam < 1
    both = gm.MixBatch(cutmix_minmax=(0.5, 0.5), switch_prob=probability)
    box = draw(both, seeds, 32, 32, 3).box
    cut = (box[:, :, 0] < box[:, :, 1]).all(axis=1)
    for count in (int(mixed.sum()), int(cut.sum())):
        assert is_chance(count, probability)  # which for 0 and 1 says none and all


def test_decisions_are_independent(seeds: np.ndarray) -> None:
    """λ, box, choice and chance, of one record and of the records with the seeds next to it."""
    near = np.arange(N, dtype=np.uint32) + seeds[0]
    for some in (seeds, near):
        cut = draw(gm.CutMixBatch(minmax=(0.3, 0.6)), some, 64, 64, 3)
        lam = draw(gm.MixUpBatch(alpha=1.0), some, 64, 64, 3).lam
        chance = draw(gm.MixUpBatch(alpha=8.0, prob=0.5), some, 64, 64, 3).lam < 1
        choice = draw(gm.MixBatch(cutmix_alpha=8.0), some, 64, 64, 3).box[:, 0, 1] > 0
        columns = [lam, chance, choice, *cut.box.reshape(N, 4)[:, ::2].T, *np.diff(cut.box).T[0]]
        columns += [np.roll(column, 1) for column in columns]
        correlation = np.corrcoef(np.stack(columns).astype(np.float64))
        inherent = {(3, 5), (4, 6), (10, 12), (11, 13)}  # a wide box has to start early
        for i in range(len(columns)):
            for j in range(i):
                if (j, i) not in inherent:
                    assert abs(correlation[i, j]) < 6 / np.sqrt(N), (i, j)


def test_a_draw_is_the_records_own(rng: Rng) -> None:
    """In "elem" mode neither the batch's size nor its order matter; nor do other parameters."""
    seeds = rng.integers(2**32, size=50, dtype=np.uint32)
    order = rng.permutation(50)
    for transform in (gm.MixUpBatch(), gm.CutMixBatch(), gm.MixBatch(prob=0.7)):
        whole = draw(transform, seeds, 20, 30, 3)
        for some in (order, np.arange(7)):
            part = draw(transform, seeds[some], 20, 30, 3)
            np.testing.assert_array_equal(whole.lam[some], part.lam)
            if whole.box is not None:
                np.testing.assert_array_equal(whole.box[some], part.box)
    always, sometimes = (draw(gm.MixBatch(prob=prob), seeds, 20, 30, 3) for prob in (1, 0.5))
    mixed = sometimes.lam < 1
    assert mixed.any()
    np.testing.assert_array_equal(sometimes.lam[mixed], always.lam[mixed])
    np.testing.assert_array_equal(sometimes.box[mixed], always.box[mixed])


def test_modes_share_the_first_records_draw(rng: Rng) -> None:
    seeds = rng.integers(2**32, size=7, dtype=np.uint32)
    elem, pair, batch = (
        draw(gm.MixBatch(mode=mode), seeds, 20, 30, 3) for mode in ("elem", "pair", "batch")
    )
    for field in ("lam", "box"):
        own = getattr(elem, field)
        np.testing.assert_array_equal(getattr(pair, field), own[[0, 0, 2, 2, 4, 4, 6]])
        np.testing.assert_array_equal(getattr(batch, field), own[[0] * 7])


def on_grid(lam: np.ndarray) -> list[int]:
    return (lam.astype(np.float64) * 2**24).astype(int).tolist()


@pytest.mark.usefixtures("optimised")
def test_known_answers() -> None:
    """These numbers must never change, on any platform or in any version: users' runs need them."""
    seeds = np.array([0, 1, 2, 3, 2**31, 2**32 - 1], np.uint32)
    lam = draw(gm.MixUpBatch(alpha=0.2), seeds, 224, 224).lam
    assert on_grid(lam) == [195289, 6010292, 29878, 5983067, 16777216, 16663394]
    box = draw(gm.CutMixBatch(), seeds, 224, 160, 3).box
    assert box[:3].tolist() == [[[0, 140], [0, 114]], [[63, 224], [20, 138]], [[69, 224], [0, 128]]]
    assert box[3:].tolist() == [[[0, 133], [0, 86]], [[183, 205], [135, 151]], [[0, 90], [0, 61]]]
    both = draw(gm.MixBatch(prob=0.7), seeds, 32, 32, 3)
    assert on_grid(np.asarray(both.outside_box()[:, 0])) == [
        3084064,
        2**24,
        1941958,
        2**24,
        2**24,
        2**24,
    ]
    assert both.box[1].tolist() == [[6, 29], [4, 27]]


CHECKSUMS: list[tuple[Any, tuple[int, ...], int]] = [
    (gm.MixUpBatch(alpha=0.05), (), 1_694_300_989),
    (gm.MixUpBatch(alpha=0.2), (), 1_170_031_304),
    (gm.MixUpBatch(alpha=0.4), (), 3_044_266_586),
    (gm.MixUpBatch(alpha=1, prob=0.9), (), 2_472_950_669),
    (gm.MixUpBatch(alpha=8), (), 4_254_448_801),
    (gm.MixUpBatch(gm.Beta(2, 8)), (), 554_630_689),
    (gm.CutMixBatch(), (224, 160, 3), 17_619_842),
    (gm.CutMixBatch(alpha=0.3, spatial_axes=(1,)), (48_000,), 1_107_665_631),
    (gm.CutMixBatch(spatial_axes=(1, 2, 3)), (16, 112, 96), 1_267_448_785),
    (gm.CutMixBatch(minmax=(0.1, 0.8), spatial_axes=(1, 2, 3)), (16, 112, 96), 515_195_767),
    (gm.CutMixBatch(minmax=(0.25, 0.75), spatial_axes=(1,)), (48_000,), 1_698_020_332),
    (gm.MixBatch(), (33, 31, 3), 2_936_143_229),
    (gm.MixBatch(prob=0.7), (32, 32, 3), 906_818_348),
]


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(("transform", "lengths", "expected"), CHECKSUMS)
def test_known_checksums(transform: Any, lengths: tuple[int, ...], expected: int) -> None:
    """The same for many seeds and laws, so that rare cases of rounding are seen as well."""
    drawn = draw(transform, np.arange(2**16, dtype=np.uint32) * np.uint32(40_503), *lengths)
    weights = (
        [] if type(transform) is gm.CutMixBatch else on_grid(np.asarray(drawn.outside_box()[:, 0]))
    )
    boxes = [] if drawn.box is None else drawn.box.ravel()
    assert zlib.crc32(np.array([*weights, *boxes], "<u4").tobytes()) == expected


@pytest.mark.usefixtures("optimised")
def test_known_answers_of_keys() -> None:
    """The seeds of a step's key must never change either."""
    batch = {"image": np.arange(4 * 5).reshape(4, 5).astype(np.uint8) * 12}
    for key, expected in (
        (jax.random.key(7), 3_302_341_434),
        (jax.random.PRNGKey(7), 3_302_341_434),
        (jax.random.key(7, impl="rbg"), 3_361_996_869),
    ):
        mixed = gm.MixUpBatch(1.0, label_key=None).mix(batch, key=key)["image"]
        assert zlib.crc32(np.asarray(mixed).tobytes()) == expected, key


def test_known_seeds() -> None:
    """Fails if Grain's order or NumPy's generator changes. The third record is of epoch two."""
    records = [{"label": i} for i in range(100)]
    loader = data_loader(records, gm.RecordSeed(), seed=42, shuffle=True, num_epochs=2)
    dataset = grain.MapDataset.source(records).seed(42).shuffle().random_map(gm.RecordSeed())
    for found, expected in (
        (list(loader), [(14, 1298302990), (24, 1439606394), (74, 125185458)]),
        (dataset, [(84, 1556735165), (47, 4291102566), (16, 1524194391)]),
    ):
        some = [found[i] for i in (0, 1, 100)]
        assert [(int(each["label"]), int(each["mix_seed"])) for each in some] == expected

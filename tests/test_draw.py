"""Draws from seeds: their distributions, their independence, and that only the record matters."""

import fractions
import zlib
from typing import Any

import grain
import jax
import numpy as np
import pytest
import scipy.stats

import grain_mix as gm
from grain_mix import _draw, _laws

N = 100_000
ALPHAS = [0.05, 0.2, 1.0, 8.0]
# Two samples of N or one against its law: 5e-7 to exceed this by chance, and tests are many.
KS_LIMIT = 2.75 / np.sqrt(N)


@pytest.fixture
def seeds(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(2**32, size=N, dtype=np.uint32)


def draw(transform: Any, seeds: np.ndarray, *shape: int) -> _draw.Draw:
    return jax.tree.map(np.asarray, transform.draw(seeds, (len(seeds), *shape)))


def distance(lam: np.ndarray, alpha: float, tail: float = 2.0**-20) -> float:
    """The Kolmogorov–Smirnov test without the ends, where float32 cannot tell λ from 1."""
    lam = np.sort(lam.astype(np.float64))
    inside = (lam > tail) & (lam < 1 - tail)
    law = scipy.stats.beta(alpha, alpha).cdf(lam[inside])
    steps = np.arange(len(lam) + 1) / len(lam)
    return max(np.abs(law - steps[:-1][inside]).max(), np.abs(law - steps[1:][inside]).max())


@pytest.mark.parametrize("alpha", ALPHAS)
def test_lambda_is_beta_distributed(alpha: float, seeds: np.ndarray) -> None:
    lam = draw(gm.MixUpBatch(alpha=alpha), seeds, 4, 4, 3).lam
    assert lam.dtype == np.float32
    assert lam.min() >= 0
    assert lam.max() <= 1
    assert distance(lam, alpha) < KS_LIMIT
    # No side is preferred, the tails included.
    assert distance(1 - lam, alpha) < KS_LIMIT
    ends = scipy.stats.binomtest(int((lam < 0.5).sum()), N)
    assert ends.pvalue > 1e-6


@pytest.mark.parametrize("alpha", [*ALPHAS, 1e-3, 30.0, 1e4])
def test_the_table_has_no_error_of_its_own(alpha: float) -> None:
    """All 2²⁰ values that λ can take, once each: the exact distribution, not a sample."""
    bits = np.arange(2**20, dtype=np.uint32) << 12
    lam = np.asarray(jax.jit(_laws.draw, static_argnums=1)(bits, gm.Beta(alpha, alpha))) / 2**24
    assert (np.diff(lam) >= 0).all()
    assert distance(lam, alpha) < 0.002
    assert abs(lam.mean() - 0.5) < 1e-6


# Laws with two parameters: those of the issues, of published recipes, and the ends of the range.
LAWS = [(0.05, 0.05), (0.05, 200), (200, 0.05), (200, 200), (2, 8), (8, 2), (0.3, 1.7), (1, 1)]


@pytest.mark.parametrize(("a", "b"), LAWS)
def test_the_table_of_other_laws(a: float, b: float) -> None:
    """All values that λ can take against SciPy's Beta(a, b), wherever float32 can tell them."""
    bits = np.arange(2**20, dtype=np.uint32) << 12
    lam = np.asarray(jax.jit(_laws.draw, static_argnums=1)(bits, gm.Beta(a, b))) / 2**24
    assert (np.diff(lam) >= 0).all()
    law = scipy.stats.beta(a, b)
    for tail in (2.0**-20, 2.0**-10):
        inside = (lam > tail) & (lam < 1 - tail)
        steps = np.arange(len(lam)) / len(lam)
        if inside.any():
            assert np.abs(law.cdf(lam[inside]) - steps[inside]).max() < 0.002
    assert abs(lam.mean() - law.mean()) < 1e-3
    # The ends, where most of a law with small parameters is.
    assert abs((lam <= 2.0**-20).mean() - law.cdf(2.0**-20)) < 0.002
    assert abs((lam >= 1 - 2.0**-20).mean() - law.sf(1 - 2.0**-20)) < 0.002


def test_a_law_takes_the_place_of_any_alpha(rng: np.random.Generator) -> None:
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


def test_known_answers_of_keys() -> None:
    """The seeds of a step's key must never change either."""
    batch = {"image": np.arange(4 * 5).reshape(4, 5).astype(np.uint8) * 12}
    for key, expected in (
        (jax.random.key(7), KNOWN["key"]),
        (jax.random.PRNGKey(7), KNOWN["key"]),
        (jax.random.key(7, impl="rbg"), KNOWN["rbg"]),
    ):
        mixed = gm.MixUpBatch(1.0, label_key=None).mix(batch, key=key)["image"]
        assert zlib.crc32(np.asarray(mixed).tobytes()) == expected, key


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
            bits = np.full((2, 2), length // 2, np.uint32)
            box = np.asarray(_draw._paper_side(length, bits, weights, n))
            assert (box[:, 1] - box[:, 0]).tolist() == [side - 1, side]


def test_the_centre_is_uniform_over_the_image(seeds: np.ndarray) -> None:
    """Large α gives all boxes half the area, so the centre shows from the edge not clipped."""
    height, width = 60, 100
    box = draw(gm.CutMixBatch(alpha=1e7), seeds, height, width, 3).box
    for k, length in enumerate((height, width)):
        start, stop = box[:, k].T
        side = int(np.floor(length * 0.5**0.5))
        centre = np.where(start > 0, start + side // 2, stop - side + side // 2)
        counts = np.bincount(centre, minlength=length)
        assert len(counts) == length
        assert scipy.stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("minmax", [(0.2, 0.8), (0.0, 1.0), (0.5, 0.5), (0.1, 0.101)])
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
        counts = np.bincount(side - smallest, minlength=largest - smallest + 1)
        assert len(counts) == largest - smallest + 1
        assert len(counts) == 1 or scipy.stats.chisquare(counts).pvalue > 1e-6
        for fixed in {smallest, (smallest + largest) // 2}:
            starts = np.bincount(start[side == fixed], minlength=length - fixed + 1)
            if starts.sum() and 0 < fixed < length:
                assert len(starts) == length - fixed + 1
                assert scipy.stats.chisquare(starts).pvalue > 1e-6


@pytest.mark.parametrize("probability", [0.0, 0.01, 0.3, 0.99, 1.0])
def test_prob_and_switch_prob(probability: float, seeds: np.ndarray) -> None:
    mixed = draw(gm.MixUpBatch(alpha=8.0, prob=probability), seeds, 32, 32, 3).lam < 1
    both = gm.MixBatch(cutmix_minmax=(0.5, 0.5), switch_prob=probability)
    box = draw(both, seeds, 32, 32, 3).box
    cut = (box[:, :, 0] < box[:, :, 1]).all(axis=1)
    for count in (int(mixed.sum()), int(cut.sum())):
        if probability in (0, 1):
            assert count == N * probability
        else:
            assert scipy.stats.binomtest(count, N, probability).pvalue > 1e-6


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


def test_a_draw_is_the_records_own(rng: np.random.Generator) -> None:
    """In "elem" mode neither the batch's size nor its order matter; nor do other parameters."""
    seeds = rng.integers(2**32, size=50, dtype=np.uint32)
    order = rng.permutation(50)
    for transform in (gm.MixUpBatch(), gm.CutMixBatch(), gm.MixBatch(prob=0.7)):
        whole = draw(transform, seeds, 20, 30, 3)
        shuffled = draw(transform, seeds[order], 20, 30, 3)
        np.testing.assert_array_equal(whole.lam[order], shuffled.lam)
        some = draw(transform, seeds[:7], 20, 30, 3)
        np.testing.assert_array_equal(whole.lam[:7], some.lam)
        if whole.box is not None:
            np.testing.assert_array_equal(whole.box[order], shuffled.box)
            np.testing.assert_array_equal(whole.box[:7], some.box)
    always = draw(gm.MixBatch(), seeds, 20, 30, 3)
    sometimes = draw(gm.MixBatch(prob=0.5), seeds, 20, 30, 3)
    mixed = sometimes.lam < 1
    assert mixed.any()
    np.testing.assert_array_equal(sometimes.lam[mixed], always.lam[mixed])
    np.testing.assert_array_equal(sometimes.box[mixed], always.box[mixed])


def test_modes_share_the_first_records_draw(rng: np.random.Generator) -> None:
    seeds = rng.integers(2**32, size=7, dtype=np.uint32)
    elem, pair, batch = (
        draw(gm.MixBatch(mode=mode), seeds, 20, 30, 3) for mode in ("elem", "pair", "batch")
    )
    for field in ("lam", "box"):
        own = getattr(elem, field)
        np.testing.assert_array_equal(getattr(pair, field), own[[0, 0, 2, 2, 4, 4, 6]])
        np.testing.assert_array_equal(getattr(batch, field), own[[0] * 7])


def test_known_answers() -> None:
    """These numbers must never change, on any platform or in any version: users' runs need them."""
    seeds = np.array([0, 1, 2, 3, 2**31, 2**32 - 1], np.uint32)
    for alpha, expected in KNOWN["mixup"].items():
        lam = draw(gm.MixUpBatch(alpha=alpha), seeds, 224, 224).lam
        assert (lam.astype(np.float64) * 2**24).astype(int).tolist() == expected, alpha
    assert draw(gm.CutMixBatch(), seeds, 224, 160, 3).box.reshape(6, 4).tolist() == KNOWN["cutmix"]
    video = gm.CutMixBatch(spatial_axes=(1, 2, 3))
    assert draw(video, seeds, 16, 112, 96).box.reshape(6, 6).tolist() == KNOWN["video"]
    audio = gm.CutMixBatch(alpha=0.3, spatial_axes=(1,))
    assert draw(audio, seeds, 48_000).box.reshape(6, 2).tolist() == KNOWN["audio"]
    minmax = gm.CutMixBatch(minmax=(0.25, 0.75), spatial_axes=(1,))
    assert draw(minmax, seeds, 48_000).box.reshape(6, 2).tolist() == KNOWN["minmax"]
    both = draw(gm.MixBatch(prob=0.7), seeds, 32, 32, 3)
    assert both.box.reshape(6, 4).tolist() == KNOWN["both"]
    assert (both.mixup_lam.astype(np.float64) * 2**24).astype(int).tolist() == KNOWN["outside"]


@pytest.mark.parametrize("case", range(5))
def test_known_checksums(case: int) -> None:
    """The same for many seeds, so that rare cases of rounding are seen as well."""
    transform, lengths, expected = CHECKSUMS[case]
    drawn = draw(transform, np.arange(2**16, dtype=np.uint32) * np.uint32(40_503), *lengths)
    weights = np.zeros(0) if drawn.mixup_lam is None else drawn.mixup_lam.astype(np.float64) * 2**24
    boxes = np.zeros(0) if drawn.box is None else drawn.box.ravel()
    numbers = np.concatenate([weights, boxes]).astype("<u4")
    assert zlib.crc32(numbers.tobytes()) == expected


def test_known_seeds() -> None:
    """Fails if Grain's order or NumPy's generator changes."""
    records = [{"label": i} for i in range(100)]
    sampler = grain.samplers.IndexSampler(100, shuffle=True, seed=42, num_epochs=2)
    loader = grain.DataLoader(
        data_source=records, sampler=sampler, operations=[gm.RecordSeed()], worker_count=0
    )
    dataset = grain.MapDataset.source(records).seed(42).shuffle().random_map(gm.RecordSeed())
    for found, expected in (
        (list(loader), KNOWN["seeds of a loader"]),
        ([dataset[i] for i in range(200)], KNOWN["seeds of a dataset"]),
    ):
        some = [found[i] for i in (0, 1, 2, 100, 101, 102)]  # of two epochs
        assert [(int(each["label"]), int(each["mix_seed"])) for each in some] == expected


CHECKSUMS: list[tuple[Any, tuple[int, ...], int]] = [
    (gm.MixUpBatch(alpha=0.2), (), 1_170_031_304),
    (gm.MixUpBatch(alpha=1, prob=0.9), (), 2_472_950_669),
    (gm.CutMixBatch(), (224, 160, 3), 17_619_842),
    (gm.CutMixBatch(minmax=(0.1, 0.8), spatial_axes=(1, 2, 3)), (16, 112, 96), 515_195_767),
    (gm.MixBatch(), (33, 31, 3), 2_936_143_229),
]
# fmt: off
KNOWN: dict[str, Any] = {
    "key": 3302341434,
    "rbg": 3361996869,
    "seeds of a loader": [
        (14, 1298302990), (24, 1439606394), (97, 3304361323), (74, 125185458), (46, 581384333),
        (38, 1065964367),
    ],
    "seeds of a dataset": [
        (84, 1556735165), (47, 4291102566), (28, 334274427), (16, 1524194391), (1, 761992003),
        (79, 3435374984),
    ],
    "mixup": {
        0.05: [1, 1990811, 0, 1947828, 16777216, 16777216],
        0.2: [195289, 6010292, 29878, 5983067, 16777216, 16663394],
        0.4: [1310285, 6969706, 521672, 6952904, 16776509, 15770321],
        1: [3628832, 7612800, 2489584, 7603504, 16600816, 13521904],
        8: [6733480, 8141198, 6204725, 8138221, 12908938, 10205243],
    },
    "video": [
        [2, 16, 40, 112, 0, 45], [0, 8, 0, 77, 38, 96], [5, 16, 0, 59, 40, 96],
        [0, 9, 0, 73, 44, 96], [1, 4, 51, 75, 22, 43], [5, 14, 0, 42, 24, 79],
    ],
    "audio": [[1121, 47089], [0, 25142], [0, 38694], [33008, 48000], [6306, 6306], [47041, 48000]],
    "cutmix": [
        [0, 140, 0, 114], [63, 224, 20, 138], [69, 224, 0, 128], [0, 133, 0, 86],
        [183, 205, 135, 151], [0, 90, 0, 61],
    ],
    "minmax": [
        [13513, 35242], [10854, 25672], [3928, 35344], [5608, 40302], [15757, 40477], [615, 24354],
    ],
    "both": [
        [0, 0, 0, 0], [6, 29, 4, 27], [0, 0, 0, 0], [0, 0, 0, 0], [1, 4, 14, 17], [2, 16, 19, 32],
    ],
    "outside": [3084064, 16777216, 1941958, 16777216, 16777216, 16777216],
}
# fmt: on

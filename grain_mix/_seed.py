"""Where the randomness comes from: one seed per record, taken before batching."""

import dataclasses
from typing import Any

import grain
import numpy as np

from grain_mix._errors import fail, kind, name


@dataclasses.dataclass(frozen=True)
class RecordSeed(grain.transforms.RandomMap):
    """Adds the seed that a record is later mixed with. Goes before `Batch`.

    The seed is one `uint32` from the generator that Grain's sampler gives each record, so it is
    the record's own: the same in any batch, on any host, in any worker and after any restart.

    Args:
        seed_key: name of the field to add; the transform behind `Batch` consumes it.

    Raises:
        ValueError: the sampler has no seed, so the record has no generator.
        KeyError: the record already has a field of that name.
        TypeError: the record is not a dict.

    >>> record = {"image": np.zeros((32, 32, 3), np.uint8), "label": 7}
    >>> RecordSeed().random_map(record, np.random.default_rng(0))["mix_seed"].dtype
    dtype('uint32')
    """

    seed_key: str = "mix_seed"

    def __post_init__(self) -> None:
        name("RecordSeed", "seed_key", self.seed_key)

    def random_map(self, element: Any, rng: np.random.Generator | None) -> dict[str, Any]:
        """Returns the record with `element[seed_key]`, a `uint32` scalar, added."""
        where = "RecordSeed"
        if not isinstance(element, dict):
            fix = 'make it one first, like {"image": image, "label": label}'
            fail(TypeError, where, f"a record that is {kind(element)}", "a dict", fix)
        if self.seed_key in element:
            fix = "pass another seed_key, here and after Batch, and use RecordSeed once"
            came = f"{self.seed_key!r} is taken in a record with {sorted(map(str, element))}"
            fail(KeyError, where, came, "a free name", fix)
        if not isinstance(rng, np.random.Generator):
            fix = "give the sampler one, like IndexSampler(..., seed=0)"
            came = (
                f"no generator for {self.seed_key!r}: the sampler has no seed, or a FlatMap lost it"
            )
            came = came if rng is None else f"rng is {kind(rng)}"
            fail(ValueError, where, came, "a numpy.random.Generator", fix)
        return {**element, self.seed_key: rng.integers(2**32, dtype=np.uint32)}

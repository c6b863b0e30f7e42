"""Where the randomness comes from: one seed per record, taken before batching."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, NoReturn

import grain
import numpy as np

from grain_mix import _fields
from grain_mix._chance import is_no_chance
from grain_mix._errors import (
    describe,
    did_you_mean,
    explains_mistakes,
    fail,
    is_array,
    is_int,
    kind,
    quote,
    warn_once,
)
from grain_mix._parameters import as_name, check_all, checked_by, name_or_names, optional, whole

Key = str | int  # the name of a field, or its position in a tuple
IDS = name_or_names("'index' or the like, or None for Grain's generator")


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class RecordSeed(grain.transforms.RandomMap):
    """Adds the seed that a record is later mixed with. Put it before `Batch`.

    Without `id_key` the seed is one `uint32` from the generator that Grain gives to the record. It
    is the record's own, the same in any batch, on any host, in any worker and after any restart, if
    Grain knows which record it is:

    - in a `grain.DataLoader` whose sampler has a seed, for any `shard_options` and workers;
    - in a `MapDataset`, `.seed(0).shuffle()...random_map(RecordSeed())...batch(...)`, as long as
      nothing is split off before `random_map`.

    Grain counts positions instead of records, and so every host draws the same seeds, after a split
    `dataset[host::hosts]`, after `.to_iter_dataset()`, and in datasets of single files that are
    interleaved. There, and after a `FlatMap`, use `id_key`.

    Args:
        seed_key: name of the field to add, a `uint32` scalar. The transform after `Batch` removes
            it. A tuple gets it in a dict at its end, `(image, label, {"mix_seed": seed})`; a
            NamedTuple becomes a plain tuple with that.
        id_key: name of a field, or a tuple of names, that tells records apart, such as an index or
            a file name. A path `"meta/index"` leads into nested dicts, an int into a tuple. The
            seed is then a hash of `seed` and these values, the same on every platform, and depends
            on nothing else. The values are `int`, `str`, `bytes`, or arrays of these; an integer
            counts by its value, whatever its dtype. Name a field with the epoch too, or every
            epoch mixes alike.
        seed: the seed of the run, an int ≥ 0. Runs with different ones share no draws, with and
            without `id_key`. 0 takes Grain's generator as it is.

    Raises:
        ValueError: the record has no generator, and there is no `id_key`.
        KeyError: the record already has a field `seed_key`, or has no field `id_key`.
        TypeError: the record is no dict or tuple, or an id is of another type.

    >>> record = {"image": np.zeros((32, 32, 3), np.uint8), "label": 7, "index": 3}
    >>> RecordSeed().random_map(record, np.random.default_rng(0))["mix_seed"].dtype
    dtype('uint32')
    >>> int(RecordSeed(id_key="index", seed=1).random_map(record)["mix_seed"])
    293291087
    """

    seed_key: str = field(default="mix_seed", metadata=checked_by(as_name))
    _: dataclasses.KW_ONLY
    id_key: Key | tuple[Key, ...] | None = field(default=None, metadata=checked_by(optional(IDS)))
    seed: int = field(default=0, metadata=checked_by(whole(0, "pass one like 0")))

    def __post_init__(self) -> None:
        caller = "RecordSeed"
        check_all(self)
        if self.seed_key in self._id_keys:
            got = f"{self.seed_key!r} named twice, by seed_key and id_key"
            fail(ValueError, caller, got, "different fields", "rename one")

    @property
    def _id_keys(self) -> tuple[str, ...]:
        keys: Any = self.id_key  # names by now
        return keys if isinstance(keys, tuple) else () if keys is None else (keys,)

    def random_map(self, element: Any, rng: np.random.Generator | None = None) -> Any:
        """Returns the record with its seed, a `uint32` scalar, added."""
        caller = "RecordSeed"
        if not isinstance(element, Mapping | tuple):
            fix = 'make it one first, like {"image": image, "label": label}'
            fail(TypeError, caller, f"a record that is {kind(element)}", "a dict or a tuple", fix)
        path = _fields.path_to_add(element, (self.seed_key,))
        beside = _fields.get(element, path[:-1]) if _fields.has(element, path[:-1]) else {}
        if any(not isinstance(key, str) for key in beside):
            got = f"{quote(list(beside))} as keys, beside which {self.seed_key!r} cannot be sorted"
            fix = "rename the fields, or make the record a tuple, tuple(record.values())"
            fail(TypeError, caller, got, "keys that are strings", fix)
        if _fields.has(element, path):
            names = sorted(_fields.show(path) for path in _fields.leaves(element))
            fix = "pass another seed_key, here and after Batch, and use RecordSeed once"
            got = f"{self.seed_key!r} is taken in a record with {names}"
            fail(KeyError, caller, got, "a free name", fix)
        return self._added(element, self._seed_of(element, rng))

    def _added(self, element: Any, seed: Any) -> Any:
        path = _fields.path_to_add(element, (self.seed_key,))
        return _fields.replace(element, {path: seed})

    def _seed_of(self, record: Any, rng: np.random.Generator | None) -> np.uint32:
        caller = "RecordSeed"
        if self.id_key is not None:
            ids = []
            for key in self._id_keys:
                path = _fields.locate(record, key)
                if path is None:
                    names = sorted(_fields.show(path) for path in _fields.leaves(record))
                    got = f"no field {key!r} among {names}"
                    fix = f"{did_you_mean(key, names)}pass the name as id_key"
                    lists = [k for k, v in _fields.leaves(record).items() if isinstance(v, list)]
                    if any(key.startswith(f"{_fields.show(path)}/") for path in lists):
                        fix = "lists are not looked into: let it be a tuple or a dict"
                    fail(KeyError, caller, got, f"a field {key!r} in the record", fix)
                ids.append(_encode(key, _fields.get(record, path)))
            return _hash(self.seed, *ids)
        if not isinstance(rng, np.random.Generator):
            fix = (
                "give the sampler a seed, like IndexSampler(..., seed=0); after a FlatMap use "
                "RecordSeed(id_key=...) with fields that tell its records apart"
            )
            got = (
                f"no generator for {self.seed_key!r}: the sampler has no seed, or a FlatMap lost it"
            )
            got = got if rng is None else f"rng is {kind(rng)}"
            fail(ValueError, caller, got, "a numpy.random.Generator", fix)
        drawn = rng.integers(2**32, dtype=np.uint32)
        return _hash(self.seed, _encode("", drawn)) if self.seed else drawn

    def output_spec(self, input_spec: Any) -> Any:
        """The shapes and dtypes that come out, for `grain.experimental.get_element_spec`."""
        seed = grain.experimental.ShapeDtypeStruct((), np.dtype(np.uint32))
        return self._added(input_spec, seed)

    def __call__(self, *_: Any) -> NoReturn:
        """Refuses to be called, as a function would be."""
        fix = "use .random_map(gm.RecordSeed()), which in a dataset needs a .seed(0) before it"
        fail(TypeError, "RecordSeed", "it was given to .map, or called", "a random_map", fix)


def _hash(seed: int, *values: bytes) -> np.uint32:
    """The first 32 bits of BLAKE2b over the run's seed and the values, each with its length."""
    digest = hashlib.blake2b(digest_size=4)
    for value in (str(seed).encode(), *values):
        digest.update(len(value).to_bytes(8, "little") + value)
    return np.uint32(int.from_bytes(digest.digest(), "little"))


def _encode(key: str, value: Any) -> bytes:
    """The bytes of an id, which differ where the ids do: its type, then its value."""
    if is_array(value) and value.dtype.kind in "iuSU" and not isinstance(value, np.generic):
        items = np.asarray(value)
        if items.ndim == 0:
            return _encode(key, items.item())
        parts: Iterable[bytes] = (_encode(key, item) for item in items.ravel().tolist())
        return f"array {items.shape}".encode() + b"".join(
            len(part).to_bytes(8, "little") + part for part in parts
        )
    if is_int(value):
        return f"int {int(value)}".encode()
    if isinstance(value, str):
        return b"str " + value.encode("utf-8", "surrogatepass")  # any file name
    if isinstance(value, bytes):
        return b"bytes " + bytes(value)
    expected = "an int, str or bytes, or an array of them"
    fix = "name a field that tells records apart, such as an index or a file name"
    return fail(TypeError, "RecordSeed", f"{key!r} is {describe(value)}", expected, fix)


EQUAL_SEEDS = (
    "several records of one batch have the same seed, more than chance explains, so "
    "they are mixed alike. It happens when datasets that each have the same .seed(...) are "
    "interleaved, when RecordSeed comes before a FlatMap, and when records are repeated or padded. "
    "Use gm.RecordSeed(id_key=...) with fields that tell the records apart, after the FlatMap; "
    "name padding with valid_key."
)


def warn_of_equal_seeds(seeds: np.ndarray, valid: Iterable[np.ndarray | None] = ()) -> None:
    """Warns where more real records of a batch have equal seeds than chance explains."""
    known = [real for real in valid if real is not None]
    seeds = seeds[np.logical_and.reduce(known)] if known else seeds
    equal = len(seeds) - len(set(seeds.tolist()))
    if equal and is_no_chance(equal, len(seeds) * (len(seeds) - 1) / 2**33):
        warn_once("equal seeds", EQUAL_SEEDS)

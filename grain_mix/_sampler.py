"""Which records are mixed with each other: the same ones on any number of hosts and workers."""

import bisect
import dataclasses
import functools
import sys
from dataclasses import field
from typing import Any, NoReturn

import grain

from grain_mix._errors import fail, quote
from grain_mix._parameters import check_all, checked_by, whole

LOADERS = "pass the number that the grain.DataLoader has"
MIXED = "pass how many records are mixed with each other, such as 4 for MosaicBatch"


@dataclasses.dataclass(frozen=True)
class PairedSampler:
    """Keeps neighbours together, on any number of hosts and workers.

    Records that follow one another in a batch are mixed with each other, in groups of k: pairs
    2i and 2i+1, or what `group` says. Which records these are depends on how Grain deals them out:
    with H hosts of W workers each (1 if there are none) it has G = H·W readers, and reader
    g = w·H + h, which is worker w of host h, gets the indices g, g + G, g + 2G, ... of the sampler.
    Through this sampler, each reader gets whole groups (kj, ..., kj + k-1) of the one that it
    wraps::

        PairedSampler[kG·b + G·m + g] = sampler[kG·b + k·g + m]    for b = 0, 1, ...
                                                    m = 0, ..., k - 1 and g = 0, ..., G - 1

    So the same records are mixed with the same partners, bit for bit, for all H and W. Each keeps
    the index and the generator, and with it the seed, that the wrapped sampler gave it. To a
    sampler all epochs are one sequence, and so they are here: an epoch that kG does not divide
    shares a block of kG with the next.

    The last block is incomplete if kG does not divide the length n, that of all epochs. It has
    t = n mod kG records, of which Grain gives each reader q = ⌊t / G⌋, and one more to the first
    p = t mod G of them. So readers g < p get q + 1, the others q, from sampler[n - t + q·g +
    min(g, p)] on: none is lost or comes twice, and whoever gets k has a whole group. (Grain itself
    drops the last n mod H indices: up to 0.2.18 always, later if the `shard_options` say
    `drop_remainder=True`.) Fewer than k are the reader's last, and are mixed with those before them
    in the batch, which ones that is depends on H and W; where it has fewer than k, they are not
    mixed. `Batch(..., drop_remainder=True)` never lets them through, but which records are dropped
    then depends on H and W, too. Nothing is left over if kG divides n or, with
    `drop_remainder=True`, if G times the batch size does.

    It takes a batch size that is a multiple of k, since others cut groups apart; no operation
    before `Batch` that drops or adds records; and not `mode="batch"`, where a record's draw comes
    from its batch.

    Args:
        sampler: any Grain sampler that does not shard by itself: `IndexSampler`,
            `SequentialSampler` or your own; finite or endless, with or without `__len__`.
        shard_count: H, that of the `shard_options` of the `grain.DataLoader`.
        worker_count: W, that of the `grain.DataLoader`.
        group: k, how many records are mixed with each other, from 2: 4 for `MosaicBatch`, and what
            `MixUpBatch` has as its `sources`.

    Raises:
        TypeError, ValueError: a parameter that cannot be, on construction.
        ValueError: a `grain.DataLoader` that has no `shard_options`.
        IndexError: an index below 0 or beyond the end.

    >>> sampler = grain.samplers.SequentialSampler(10)
    >>> [record.index for record in PairedSampler(sampler, shard_count=2)]
    [0, 2, 1, 3, 4, 6, 5, 7, 8, 9]

    Of these, host 0 gets every other, (0, 1), (4, 5) and 8; host 1 gets (2, 3), (6, 7) and 9. In
    groups of four, host 0 gets (0, 1, 2, 3) and 8, host 1 gets (4, 5, 6, 7) and 9:

    >>> [record.index for record in PairedSampler(sampler, shard_count=2, group=4)]
    [0, 4, 1, 5, 2, 6, 3, 7, 8, 9]

    >>> shard_options = grain.sharding.ShardByJaxProcess()
    >>> loader = grain.DataLoader(
    ...     data_source=range(10),
    ...     sampler=PairedSampler(sampler, shard_count=shard_options.shard_count, worker_count=2),
    ...     shard_options=shard_options,
    ...     worker_count=2,
    ... )
    """

    sampler: grain.samplers.Sampler
    _: dataclasses.KW_ONLY
    shard_count: int = field(metadata=checked_by(whole(1, LOADERS)))
    worker_count: int = field(default=0, metadata=checked_by(whole(0, LOADERS)))
    group: int = field(default=2, metadata=checked_by(whole(2, MIXED)))

    def __post_init__(self) -> None:
        caller, sampler = "PairedSampler", self.sampler
        unfit = isinstance(sampler, type | PairedSampler) or not hasattr(sampler, "__getitem__")
        if unfit or not _deals(sampler):
            fix = "pass one like grain.samplers.IndexSampler(num_records, shuffle=True, seed=0)"
            got = f"sampler={quote(sampler)}"
            fail(TypeError, caller, got, "a Grain sampler", fix)
        check_all(self)  # which makes ints of Python's, for no NumPy type overflows
        # Workaround, no public name: where Grain 0.2.18's own samplers keep it, and where its
        # DataLoader looks for it.
        own = getattr(sampler, "_shard_options", None)
        if isinstance(own, grain.sharding.ShardOptions) and own.shard_count > 1:
            fix = "give shard_options to the grain.DataLoader, and none to the sampler"
            got = f"sampler={quote(sampler)}, with shards of its own"
            fail(ValueError, caller, got, "a sampler of all records", fix)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> grain.RecordMetadata:
        if not 0 <= index < self._length:
            raise IndexError(f"PairedSampler: index {index}; expected 0 <= index < {self._length}")
        readers = self.shard_count * max(self.worker_count, 1)
        m, reader = divmod(index % (self.group * readers), readers)
        start = index - m * readers - reader
        # Of a block each reader gets `each` records, and the first ones another: none is left over
        # but in an incomplete last block.
        block = min(self._length - start, self.group * readers)
        each, more = divmod(block, readers)
        return self.sampler[start + each * reader + min(reader, more) + m]

    @property
    def _shard_options(self) -> NoReturn:
        """Workaround, no public name: Grain 0.2.18 asks for it where a loader has none itself."""
        expected = f"shard_options with shard_count={self.shard_count}"
        fix = (
            "pass shard_options=grain.sharding.NoSharding() to the grain.DataLoader, "
            "on several hosts grain.sharding.ShardByJaxProcess(drop_remainder=True)"
        )
        fail(ValueError, "PairedSampler", "a grain.DataLoader without shard_options", expected, fix)

    @functools.cached_property
    def _length(self) -> int:
        if hasattr(self.sampler, "__len__"):
            return len(self.sampler)
        return bisect.bisect_left(range(sys.maxsize), True, key=self._is_beyond)

    def _is_beyond(self, index: int) -> bool:
        try:
            self.sampler[index]
        except IndexError:
            return True
        return False


def _deals(sampler: Any) -> bool:
    """Whether it deals out indices, rather than the records that a data source has."""
    try:
        return isinstance(sampler[0], grain.RecordMetadata)
    except LookupError:
        return True  # it is empty


def check_agreement(loader: grain.DataLoader) -> None:
    """Checks that a loader has the hosts and workers that its `PairedSampler` pairs for."""
    # Workaround, no public names: where a loader of Grain 0.2.18 keeps them. Without these, nothing
    # can be compared.
    sampler = getattr(loader, "_sampler", None)
    shards = getattr(loader, "_shard_options", None)
    if not isinstance(sampler, PairedSampler) or shards is None:
        return
    workers = loader.multiprocessing_options
    ours = {"shard_count": sampler.shard_count, "worker_count": sampler.worker_count}
    theirs = {"shard_count": shards.shard_count, "worker_count": workers.num_workers}
    for name, count in ours.items():
        if max(count, 1) != max(theirs[name], 1):  # no worker deals out as one worker does
            got = f"a PairedSampler with {name}={count}"
            expected = f"{theirs[name]}, as the grain.DataLoader has"
            fix = "write the number once, as a variable, and pass it to both"
            fail(ValueError, "LoaderDataset", got, expected, fix)

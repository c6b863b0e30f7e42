"""A `DataLoader`, with its worker processes, as a dataset: for what comes after the workers."""

import json
from typing import Any, NoReturn

import grain

from grain_mix._errors import fail, kind
from grain_mix._sampler import check_agreement


class LoaderDataset(grain.IterDataset):
    """A `grain.DataLoader` as a `grain.IterDataset`, so that more can be done after its workers.

    Workers decode and batch; what needs the devices comes after, in this process, and Grain's
    prefetch does it ahead of the train step. Iterators save and restore the loader's state,
    also through prefetch, with `get_state` and `set_state`, or with `grain.checkpoint`.

    Iterators end their workers when they are closed or forgotten.

    Args:
        loader: what to iterate over. Each iterator starts workers of its own.

    Raises:
        TypeError: `loader` is no `grain.DataLoader`. Or the dataset is pickled, as `mp_prefetch`
            does.
        ValueError: the loader's `PairedSampler` was made for other numbers of hosts or workers.

    >>> import grain_mix as gm
    >>> import numpy as np
    >>> records = [{"image": np.full((8, 8, 3), i, np.uint8), "label": i} for i in range(8)]
    >>> loader = grain.load(
    ...     records,
    ...     seed=0,
    ...     num_epochs=1,
    ...     transformations=[gm.RecordSeed(), grain.transforms.Batch(4)],
    ...     worker_count=0,  # or more
    ... )
    >>> batches = LoaderDataset(loader).map(gm.MixUpBatch(num_classes=8))
    >>> batches = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2)
    >>> [batch["image"].shape for batch in batches]
    [(4, 8, 8, 3), (4, 8, 8, 3)]
    """

    def __init__(self, loader: grain.DataLoader) -> None:
        super().__init__()
        if not isinstance(loader, grain.DataLoader):
            fix = "pass what grain.DataLoader(...) or grain.load(...) returns; datasets go without"
            got = f"loader is {kind(loader)}"
            fail(TypeError, "LoaderDataset", got, "a grain.DataLoader", fix)
        check_agreement(loader)
        self._loader = loader

    def __iter__(self) -> grain.DatasetIterator:
        return _LoaderIterator(iter(self._loader))

    def __reduce__(self) -> NoReturn:
        got = "pickled, or copied, as mp_prefetch does"
        fix = (
            "for workers pass worker_count to the grain.DataLoader, and after it use "
            "grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2)"
        )
        fail(TypeError, "LoaderDataset", got, "one that stays in its process", fix)


class _LoaderIterator(grain.DatasetIterator):
    def __init__(self, batches: grain.DataLoaderIterator) -> None:
        super().__init__()
        self._batches = batches
        self._started = False
        self._open = True

    def __next__(self) -> Any:
        if not self._open:
            fix = "make a new one with iter(dataset)"
            fail(ValueError, "LoaderDataset", "a closed iterator", "an open one", fix)
        if not self._started:
            # Workaround: after get_state or set_state, Grain 0.2.18 would start a worker when its
            # turn comes, one after another.
            self.start_prefetch()
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._batches.get_state())
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(json.dumps(state).encode())
        self._started = False

    def start_prefetch(self) -> None:
        self._started = True
        self._batches.start_prefetch()

    def close(self) -> None:
        super().close()
        self._open = False
        # Workaround, no public name: as of Grain 0.2.18 only what it wraps can be closed.
        self._batches._iterator.close()

    def __str__(self) -> str:
        return "LoaderDatasetIterator"

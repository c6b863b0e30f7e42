"""What the package reads from private places of Grain: which of it is gone when Grain moves."""

import ast
import importlib
import inspect
import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
from common import data_loader

import grain_mix as gm
from grain_mix import _guards

PRIVATE = re.compile(r"_[a-z]\w*")
PREFETCH = "grain._src.python.dataset.transformations.process_prefetch"
SHARDED = grain.samplers.SequentialSampler(4, grain.sharding.ShardOptions(0, 2))


def workers_flag() -> Any:
    return importlib.import_module(PREFETCH)._is_in_worker_process


class InWorker(grain.transforms.Map):
    def map(self, element: Any) -> Any:
        name = multiprocessing.current_process().name
        return name.startswith("grain-process-prefetch-"), workers_flag(), _guards.is_grain_worker()


def in_worker() -> Any:
    dataset = grain.MapDataset.range(1).map(InWorker()).to_iter_dataset()
    return next(iter(dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=1))))


def loader() -> Any:
    return data_loader(range(4))


COMPARES = (
    "LoaderDataset compares a loader with its PairedSampler, which refuses samplers that shard"
)
WORKER = "a Grain worker leaves accelerators alone"
# Each name, the workaround that reads it, and how to see that it is still there.
PLACES: dict[str, tuple[str, Callable[[], bool]]] = {
    "_sampler": (COMPARES, lambda: isinstance(loader()._sampler, grain.samplers.IndexSampler)),
    "_shard_options": (
        COMPARES,
        lambda: (loader()._shard_options.shard_count, SHARDED._shard_options.shard_count) == (1, 2),
    ),
    "_iterator": (
        "LoaderDataset's iterators end their workers",
        lambda: callable(iter(loader())._iterator.close),
    ),
    PREFETCH: (WORKER, lambda: workers_flag() is False),
    "_is_in_worker_process": (WORKER, lambda: in_worker() == (True, True, True)),
}


def test_private_places_of_grain() -> None:
    gone = []
    for name, (use, is_there) in PLACES.items():
        try:
            there = is_there()
        except (AttributeError, ImportError):
            there = False
        if not there:
            gone.append(f"{name}: {use}")
    assert not gone


def names(path: Path) -> tuple[set[str], set[str]]:
    """The private names that a file reads, with `getattr` or without, and the names it defines."""
    read, defined = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(attr=name, ctx=ast.Load()):
                read |= {name} if PRIVATE.fullmatch(name) else set()
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=name), *_]):
                read |= {name} if PRIVATE.fullmatch(name) else set()
            case ast.Constant(value=str(name)):
                read |= {name} if "._src." in name else set()
            case ast.Call(func=ast.Attribute(attr="__setattr__"), args=[_, ast.Constant(name), _]):
                defined.add(name)
            case ast.Attribute(attr=name) | ast.FunctionDef(name=name) | ast.Name(id=name):
                defined.add(name)
    return read, defined


def test_the_list_is_complete() -> None:
    files = Path(inspect.getfile(gm)).parent.rglob("*.py")
    read, defined = (set().union(*sets) for sets in zip(*map(names, files), strict=True))
    defined -= {"_shard_options"}  # a PairedSampler has it too, for a loader that asks
    assert read - defined - {"_make", "_replace"} == set(PLACES)  # these two are NamedTuple's

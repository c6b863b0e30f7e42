"""Which parameters are alike, so that they share compiled programs."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from grain_mix._errors import fail


def identity(value: Any) -> Hashable:
    """A key that is equal for parameters that are alike: 1, 1.0 and True differ.

    Two `functools.partial` of the same function and arguments are alike, as copies in other
    processes are.
    """
    if isinstance(value, Mapping):
        return type(value), *((name, identity(below)) for name, below in value.items())
    if isinstance(value, functools.partial):
        named = tuple((name, identity(value.keywords[name])) for name in sorted(value.keywords))
        return type(value), identity(value.func), identity(value.args), named
    if isinstance(value, tuple):
        return type(value), *map(identity, value)
    if isinstance(value, int | float | complex | np.generic):
        return type(value), repr(value)
    params = getattr(type(value), "__dataclass_params__", None)
    if params is not None and params.frozen and not isinstance(value, type):
        names = sorted(_state(value))
        return type(value), *((name, identity(getattr(value, name))) for name in names)
    try:
        hash(value)
    except TypeError:  # an array in a partial, which holds it as long as it lives itself
        return "id", id(value)
    known: Hashable = value
    return known


def check_frozen(caller: str, got: str, value: Any) -> None:
    """Checks that a kind, a map or a law cannot change, and that its hash sees all that it holds.

    `got` says in an error what the user passed.
    """
    name = type(value).__name__
    params = vars(type(value)).get("__dataclass_params__")
    if params is None or not params.frozen:
        fix = f"decorate class {name} with @dataclasses.dataclass(frozen=True)"
        fail(TypeError, caller, got, "a frozen dataclass, which cannot change", fix)
    fix = "let its fields hold numbers, strings and tuples, no lists, dicts or arrays"
    check_hash(caller, got, value, fix)
    seen = {f.name for f in dataclasses.fields(value) if f.compare and f.hash is not False}
    hidden = sorted(_state(value) - seen)
    if hidden:
        got += f", whose hash does not see {' and '.join(map(repr, hidden))}"
        fix = f"let all that {name} holds be fields, without compare=False and hash=False"
        fail(TypeError, caller, got, "a hash that tells apart what differs", fix)


def check_hash(caller: str, got: str, value: Any, fix: str) -> None:
    """Checks that a parameter has a hash."""
    try:
        hash(value)
    except TypeError:
        fail(TypeError, caller, f"{got}, which has no hash", "one with a hash", fix)


def _state(value: Any) -> set[str]:
    """The names of all that an instance of a dataclass holds, but for what it has computed."""
    made = type(value)
    slots = [vars(each).get("__slots__", ()) for each in made.__mro__]
    names = {name for each in slots for name in ((each,) if isinstance(each, str) else each)}
    names = {name for name in names - {"__weakref__", "__dict__"} if hasattr(value, name)}
    names |= {*getattr(value, "__dict__", ()), *(f.name for f in dataclasses.fields(value))}
    computed = functools.cached_property
    return {name for name in names if not isinstance(getattr(made, name, None), computed)}

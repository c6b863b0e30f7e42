"""The parameters of a transform: each field names its own check."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from grain_mix._errors import did_you_mean, fail, is_int, kind, quote
from grain_mix._fields import as_name
from grain_mix._fields import as_names as as_names
from grain_mix._fixed_point import ONE
from grain_mix._identity import check_frozen
from grain_mix._identity import identity as identity
from grain_mix._laws import check_number
from grain_mix.targets import Target
from grain_mix.targets._labels import check_count, check_smoothing

MODES = ("elem", "pair", "batch")
MOST_SOURCES = 8
Check = Callable[[str, str, Any], Any]  # (transform, field, value) -> the value to keep
as_smoothing = check_smoothing
ONE_LABEL = 'for several labels pass targets={"breed": gm.OneHot(120), "age": gm.Soft()}'


def checked_by(check: Check) -> dict[str, Check]:
    """The metadata of a transform's field: what checks it."""
    return {"check": check}


def check_all(transform: Any) -> None:
    """Checks each field, and keeps its value as a plain float, int, string or tuple."""
    caller = type(transform).__name__
    for field in dataclasses.fields(transform):
        check = field.metadata.get("check")  # there is none in fields that a subclass adds
        if check is not None:
            checked = check(caller, field.name, getattr(transform, field.name))
            object.__setattr__(transform, field.name, checked)


def optional(check: Check) -> Check:
    """The same check, of what may be `None`."""
    return lambda caller, field, value: None if value is None else check(caller, field, value)


def as_chance(caller: str, field: str, value: Any) -> float:
    """A probability."""
    chance = check_number(caller, field, value, 1, "pass one like 0.5")
    if 0 < chance < 1 and round(chance * ONE) in (0, ONE):
        expected = f"0, 1, or a number from {1 / ONE:.0e} to 1 - {1 / ONE:.0e}"
        fix = f"chances count in steps of 1/{ONE}: round it"
        fail(ValueError, caller, f"{field}={quote(value)}", expected, fix)
    return chance


def as_mode(caller: str, field: str, value: Any) -> str:
    """Who shares a draw."""
    if not (isinstance(value, str) and value in MODES):
        fix = f"{did_you_mean(value, MODES)}see the docstring for what each does"
        fail(ValueError, caller, f"{field}={quote(value)}", f"one of {MODES}", fix)
    return value


def as_minmax(caller: str, field: str, value: Any) -> tuple[float, float]:
    """The fractions of an image's sides between which a box's sides are drawn."""
    got, fix = f"{field}={quote(value)}", "pass fractions of a side, like (0.2, 0.8)"
    if not isinstance(value, tuple | list) or len(value) != 2:
        fail(TypeError, caller, got, "a pair (lo, hi)", fix)
    try:
        lo, hi = (check_number(caller, field, bound, 1, fix) for bound in value)
    except (TypeError, ValueError) as error:
        fail(type(error), caller, got, "(lo, hi), numbers from 0 to 1", fix)
    if lo > hi:
        fail(ValueError, caller, got, "lo <= hi", f"swap them: {tuple(value)[::-1]!r}")
    return lo, hi


def as_split(caller: str, field: str, value: Any) -> tuple[float, float]:
    """The fractions of an image's sides between which the images of a mosaic meet."""
    lo, hi = as_minmax(caller, field, value)
    if hi == 0 or lo == 1:
        fix = "pass fractions of a side, like (0.25, 0.75)"
        fail(ValueError, caller, f"{field}={quote(value)}", "lo < 1 and hi > 0", fix)
    return lo, hi


def as_sources(caller: str, field: str, value: Any) -> int:
    """How many records are mixed into one."""
    if not is_int(value) or not 2 <= value <= MOST_SOURCES:
        error = ValueError if is_int(value) else TypeError
        fix = "pass 2 for pairs, or 3 for three records in one"
        fail(error, caller, f"{field}={quote(value)}", f"an int from 2 to {MOST_SOURCES}", fix)
    return int(value)


def as_partners(caller: str, field: str, value: Any) -> str | tuple[str, ...]:
    """The name of the partner that each record brings, or a tuple of names."""
    if not isinstance(value, tuple | list):
        return as_name(caller, field, value)
    if not value:
        fail(ValueError, caller, f"{field}=()", "at least one name", f"pass {field}='other'")
    return tuple(as_name(caller, field, name) for name in value)


def as_classes(caller: str, field: str, value: Any) -> int:
    """A number of classes."""
    if isinstance(value, tuple | list):
        fail(TypeError, caller, f"{field}={quote(value)}", "one int", ONE_LABEL)
    return check_count(caller, value)


def as_images(caller: str, field: str, value: Any) -> str | tuple[str, ...]:
    """The name of an image, or a tuple of names."""
    if not isinstance(value, tuple | list):
        return as_name(caller, field, value)
    if not value:
        fail(ValueError, caller, f"{field}=()", "at least one name", f"pass {field}='image'")
    return tuple(as_name(caller, field, name) for name in value)


def as_label(caller: str, field: str, value: Any) -> str:
    """The name of a label."""
    if isinstance(value, tuple | list):
        fail(TypeError, caller, f"{field}={quote(value)}", "one name, or None", ONE_LABEL)
    return as_name(caller, field, value)


class Targets(Mapping[str, Target]):
    """An immutable mapping from names to kinds; it compares and hashes as its tuple of items."""

    def __init__(self, items: Mapping[str, Target]) -> None:
        self._items = tuple(items.items())
        self._found = dict(self._items)

    def __getitem__(self, name: str) -> Target:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._items == tuple(other.items())

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return repr(self._found)


def as_targets(caller: str, field: str, value: Any) -> Targets:
    """What each field says about the image."""
    example = 'pass a dict like {"label": gm.OneHot(10), "map": gm.LabelMap()}'
    if not isinstance(value, Mapping):
        fail(TypeError, caller, f"{field}={quote(value)}", "a dict from name to kind", example)
    targets: dict[str, Target] = {}
    for key, target in value.items():
        name = as_name(caller, field, key)
        got = f"{field}={{{key!r}: {quote(target)}}}"
        if name in targets:
            fail(ValueError, caller, f"{got}, named twice", "each field once", "drop one")
        if isinstance(target, type) and issubclass(target, Target):
            fix = f"write {target.__name__}(...), with brackets"
            fail(TypeError, caller, f"{got}, a class", "a kind of target", fix)
        if not isinstance(target, Target):
            fail(TypeError, caller, f"{got}, {kind(target)}", "a kind of target", example)
        _check_kind(caller, got, target)
        targets[name] = target
    return Targets(targets)


def _check_kind(caller: str, got: str, target: Target) -> None:
    """Checks that a kind cannot change, that its hash tells it apart, and that it can mix."""
    made = type(target)
    check_frozen(caller, got, target)
    if made.mix is Target.mix and made.mix_batch is Target.mix_batch:
        fix = "write mix(self, sources, draw, space), for one record"
        fail(TypeError, caller, f"{got}, which has no mix", "a kind that mixes", fix)
    users = [*itertools.takewhile(lambda each: not _is_ours(each), made.__mro__)]
    parent = made.__mro__[len(users)]
    own = {name for each in users for name in vars(each)} & {"mix", "check", "adds", "reads"}
    if parent is not Target and own:
        got += f", which derives from {parent.__name__} and has its own {min(own)}"
        fix = f"derive {made.__name__} from gm.Target, and write all of its mix"
        fail(TypeError, caller, got, f"{parent.__name__} as it is, or a kind of its own", fix)
    for attribute in ("adds", "reads"):
        names = getattr(target, attribute)
        if not isinstance(names, tuple) or not all(isinstance(n, str) and n for n in names):
            fix = f"write {attribute} = ({names!r},)" if isinstance(names, str) else "pass one"
            got += f" with {attribute}={quote(names)}"
            fail(TypeError, caller, got, "a tuple of strings", fix)


def _is_ours(made: type) -> bool:
    return made.__module__.partition(".")[0] == "grain_mix"


def check_names(caller: str, names: list[tuple[str, str]]) -> None:
    """Checks that no field has two roles, by these pairs of a role and the field's name."""
    roles: dict[str, str] = {}
    for role, name in names:
        if name in roles:
            by = f"by {roles[name]} and {role}" if roles[name] != role else f"in {role}"
            got = f"{name!r} named twice, {by}"
            fail(ValueError, caller, got, "one role for each field", "rename one, or drop one")
        roles[name] = role

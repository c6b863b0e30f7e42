"""The parameters of a transform that are more than a number or a name, and their checks."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from grain_mix._errors import fail, kind, quote
from grain_mix._identity import check_frozen
from grain_mix._parameters import CLASSES, Check, as_name, bounds
from grain_mix.targets import Target

ONE_LABEL = 'for several labels pass targets={"breed": gm.OneHot(120), "age": gm.Soft()}'


def of_one_label(check: Check, expected: str) -> Check:
    """The same check, of what no list may be."""

    def checked(caller: str, name: str, value: Any) -> Any:
        if isinstance(value, tuple | list):
            fail(TypeError, caller, f"{name}={quote(value)}", expected, ONE_LABEL)
        return check(caller, name, value)

    return checked


as_classes = of_one_label(CLASSES, "one int")
as_label = of_one_label(as_name, "one name, or None")


def as_split(caller: str, name: str, value: Any) -> tuple[float, float]:
    """The fractions of an image's sides between which the images of a mosaic meet."""
    lo, hi = bounds(caller, name, value)
    if hi == 0 or lo == 1:
        fix = "pass fractions of a side, like (0.25, 0.75)"
        fail(ValueError, caller, f"{name}={quote(value)}", "lo < 1 and hi > 0", fix)
    return lo, hi


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

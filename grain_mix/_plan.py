"""Where the fields are in batches of one structure: found and checked once, and kept."""

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from grain_mix import _fields, _map_functions
from grain_mix._axes import axes_of, check_axes_to_cut
from grain_mix._dtypes import check_pixels, narrow_dtype
from grain_mix._errors import describe, fail, is_array
from grain_mix._errors import kind as kind_of
from grain_mix._fields import Path
from grain_mix._mixing import Arrays, Inputs, Mixing, Setup, as_dict, fields_of, one_record
from grain_mix._purity import check_pure
from grain_mix._rules import ByMap
from grain_mix.targets import Space, Target

MOST_PLANS = 256  # that are kept
LARGE = 1 << 15  # bytes of a record's field from which NumPy copies windows faster than XLA


class Spec(NamedTuple):
    """What a kind's `check` is first given: an array without values."""

    shape: tuple[int, ...]
    dtype: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How a transform mixes batches of one structure.

    Attributes:
        mixing: how the fields are mixed; all that is compiled.
        on_host: the same for the host, where NumPy copies what is large and is not averaged.
        own: where each field that mixing needs is in the batch.
        brought: the same, for each partner that records bring.
        seeds: where the seeds are; `None` where a key is given.
        valid: where the fields are that say which records, and which partners, are real.
        added: the path of each field that comes out and was not there.
        dropped: the paths of what is removed.
        size: how many records there are.
    """

    mixing: Mixing
    on_host: Mixing
    own: dict[str, Path]
    brought: tuple[dict[str, Path], ...]
    seeds: Path | None
    valid: tuple[Path | None, ...]
    added: dict[str, Path]
    dropped: tuple[Path, ...]
    size: int

    def inputs(
        self,
        batch: Any,
        seeds: Any = None,
        convert: Callable[[str, Any], Any] = lambda name, x: x,
    ) -> Inputs:
        """The arrays that mixing needs, converted by a function of name and array."""

        def get(name: str, path: Path) -> Any:
            value = batch
            for key in path:
                value = value[key]
            return convert(name, value)

        setup = self.mixing.setup
        return Inputs(
            tuple(
                {name: get(name, path) for name, path in paths.items()}
                for paths in (self.own, *self.brought)
            ),
            seeds if self.seeds is None else get(setup.seed_key, self.seeds),
            tuple(path and get(str(setup.valid_key), path) for path in self.valid),
        )

    def check_values(self, inputs: Inputs) -> None:
        """Checks values, where they are known."""
        setup = self.mixing.setup
        for name, kind in setup.kinds_of_targets:
            for fields, above in zip(inputs.fields, ("", *setup.partner_keys), strict=False):
                known = {
                    key: _fields.known(value)
                    for key, value in fields_of(kind, name, fields).items()
                }
                kind.check_fields(f"{above}/{name}" if above else name, known, self.mixing.space)

    def passed(self, batch: Any) -> dict[Path, Any]:
        """The fields that pass through, by their paths."""
        mixed = {*self.mixing.setup.kinds, *self._read_by_kinds}
        used = {*(path for name, path in self.own.items() if name in mixed), *self.dropped}
        used |= {path for path in self.valid[:1] if path is not None}
        return {
            path: value
            for path, value in _fields.leaves(batch).items()
            if not any(path[: len(other)] == other for other in used)
        }

    @property
    def _read_by_kinds(self) -> set[str]:
        return {name for kind in self.mixing.setup.targets.values() for name in kind.reads}

    def put(self, batch: Any, mixed: Mapping[str, Any]) -> Any:
        """The batch with what was mixed, and without what has been used up."""
        changes: dict[Path, Any] = dict.fromkeys(self.dropped, _fields.DROPPED)
        for name, value in mixed.items():
            changes[self.own[name] if name in self.own else self.added[name]] = value
        return _fields.replace(batch, changes)


# The last plans of this process, which all transforms and threads share.
_plans: dict[Any, Plan] = {}
_making = threading.Lock()


def plan_of(setup: Setup, batch: Any, *, has_key: bool = False) -> Plan:
    """The plan for batches of this structure, made once.

    Of fields that pass through only the names matter, and not what they hold.
    """
    _fields.check_container(setup.caller, batch)
    key = setup, _fields.signature(batch, setup.heads), has_key
    found = _plans.get(key)
    if found is None:
        made = make(setup, batch, has_key=has_key)
        with _making:
            found = _plans.setdefault(key, made)
            while len(_plans) > MOST_PLANS:
                del _plans[next(iter(_plans))]
    return found


def make(setup: Setup, batch: Any, *, has_key: bool = False) -> Plan:
    """Finds and checks the fields of a batch, of which only names, shapes and dtypes matter."""
    caller, rule = setup.caller, setup.rule

    # --- the partners that records bring ---------------------------------------------------------

    partners: list[Path] = []
    for key in setup.partner_keys:
        path = _fields.locate(batch, key)
        if path is None:
            names = sorted({_fields.show(path) for path in _fields.leaves(batch)})
            got = f"no field {key!r} among {names}"
            fix = f"let each record bring its partner, {{**record, {key!r}: other_record}}; pairs "
            fix += "of ZipMapDataset become that by "
            fix += f'.map(lambda pair: {{**pair[0], "{key}": pair[1]}})'
            fail(KeyError, caller, got, f"a nested record {key!r}", fix)
        record = _fields.get(batch, path)
        if not isinstance(record, Mapping | tuple):
            got = f"{key!r} is {describe(record)}"
            fix = 'bring the partner as a record with the same names, {"image": ..., "label": ...}'
            fail(TypeError, caller, got, "a dict or a tuple", fix)
        partners.append(path)

    # --- the fields of the record itself ---------------------------------------------------------

    fixes = dict.fromkeys(setup.images, "pass the name as image_key")
    fix = "name it in targets as the batch does, or leave it out of targets"
    if setup.is_short:
        fix = "pass the name as label_key, or label_key=None if there are no labels"
    fixes |= dict.fromkeys(setup.targets, fix)
    for kind in setup.targets.values():
        fix = f"{type(kind).__name__} reads it: pass its name"
        fixes |= {name: fix for name in kind.reads if name not in fixes}
    fix = "the weight map reads it: pass its name, as in the batch"
    fixes |= {name: fix for name in rule.reads if name not in fixes}
    if isinstance(batch, tuple):
        advice = "in a tuple names are positions, so pass image_key=0, label_key=1; "
        fixes = {
            name: fix if name.removeprefix("-").isdecimal() else advice + fix
            for name, fix in fixes.items()
        }
    own = {name: _fields.find(caller, batch, name, fix) for name, fix in fixes.items()}
    arrays = {name: _fields.get(batch, path) for name, path in own.items()}
    first = arrays[setup.images[0]]

    # --- seeds, and how many records there are ---------------------------------------------------

    seeds: Path | None = None
    if has_key:
        if _fields.locate(batch, setup.seed_key) is not None:
            fix = "drop the seeds where each step has a key, or leave key out"
            fail(
                ValueError,
                caller,
                f"{setup.seed_key!r} in the batch, and a key",
                "one of them",
                fix,
            )
        if first.shape[:1] in ((), (0,)):
            got = f"{setup.images[0]!r} is {describe(first)}"
            fix = "filter empty batches out before"
            fail(ValueError, caller, got, "[B, ...] with B > 0", fix)
        size, counted = first.shape[0], f"{first.shape[0]} images"
    else:
        fix = (
            f"put gm.RecordSeed(seed_key={setup.seed_key!r}) into the operations, before Batch; if "
            "another of these transforms comes first, it has used the seeds up: use one of them, "
            "such as MixBatch for MixUp and CutMix"
        )
        seeds = _fields.find(caller, batch, setup.seed_key, fix)
        size = check_seeds(caller, setup.seed_key, _fields.get(batch, seeds))
        counted = f"{size} seeds in {setup.seed_key!r}"
    if not isinstance(size, int):
        fix = "export a program for each batch size, with numbers in its shapes"
        fail(TypeError, caller, f"a batch of {size} records", "a number of records", fix)

    # --- which records are real ------------------------------------------------------------------

    valid: list[Path | None] = []
    if setup.valid_key is not None:
        fix = "pass the name as valid_key, or None if nothing is padded"
        path = _fields.find(caller, batch, setup.valid_key, fix)
        check_valid(caller, setup.valid_key, _fields.get(batch, path), size)
        valid.append(path)

    # --- each field once, with one entry for each record -----------------------------------------

    mixed = {name for kind in setup.targets.values() for name in kind.reads} | {*setup.kinds}
    roles = {name: path for name, path in own.items() if name in mixed}
    roles |= {} if seeds is None else {setup.seed_key: seeds}
    roles |= {str(setup.valid_key): path for path in valid if path is not None}
    names_by_path: dict[Path, str] = {}
    for name, path in roles.items():
        if path in names_by_path:
            got = f"{names_by_path[path]!r} and {name!r} are one field, {_fields.show(path)!r}"
            fail(ValueError, caller, got, "one role for each field", "name each field once")
        names_by_path[path] = name
    for name, path in {**own, **roles}.items():
        value = _fields.get(batch, path)
        if value.shape[:1] != (size,):
            got = f"{name!r} is {describe(value)}, but there are {counted}"
            fail(ValueError, caller, got, "as many seeds as records", "take both from one batch")
    if seeds is not None and seeds in own.values():
        got = f"{setup.seed_key!r} read by a weight map"
        fail(ValueError, caller, got, "fields other than the seeds", "use the map's key")

    # With `targets`, a label that they leave out would stay unmixed without a word.
    label = None if setup.unnamed is None else _fields.locate(batch, setup.unnamed)
    if label is not None:
        below = _fields.leaves(_fields.get(batch, label))
        left = [(*label, *path) for path in below if (*label, *path) not in names_by_path]
        if left:
            name = _fields.show(left[0])
            got = f"{name!r} is in the batch, and targets leaves it out"
            fix = f"put it into targets, {{{name!r}: gm.OneHot(K)}}, or pass label_key=None"
            fail(ValueError, caller, got, "it to be mixed, or left out on purpose", fix)

    # --- the partners' fields, which are like the record's ---------------------------------------

    brought: list[dict[str, Path]] = []
    for key, above in zip(setup.partner_keys, partners, strict=True):
        record = _fields.get(batch, above)
        paths: dict[str, Path] = {}
        for name, path in own.items():
            if path[: len(above)] == above:
                got = f"{name!r} is a field of {key!r}, which is removed"
                fix = f"leave {key!r} out of the name: its fields are found by the names of the "
                fail(ValueError, caller, got, "a field of the record itself", fix + "record's")
            under = _fields.locate(record, name)
            if under is None:
                names = sorted(f"{key}/{_fields.show(other)}" for other in _fields.leaves(record))
                got = f"no field {f'{key}/{name}'!r} among {names}, the partner of {name!r}"
                fix = "let the partner have each image and target that its record has"
                fail(KeyError, caller, got, f"a field {name!r} in {key!r}", fix)
            paths[name] = (*above, *under)
            mine, theirs = arrays[name], _fields.get(batch, paths[name])
            shown = f"{key}/{name}"
            if not is_array(theirs):
                got = f"{shown!r} is {kind_of(theirs)}"
                fail(TypeError, caller, got, "an array [B, ...]", "stack it")
            _fields.check_array(caller, shown, theirs)
            if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
                got = f"{name!r} is {describe(mine)}, but {shown!r} is {describe(theirs)}"
                fix = "let both have one shape and dtype: resize, pad or cast before Batch"
                fail(ValueError, caller, got, "the same shape and dtype", fix)
        brought.append(paths)
        real = None if setup.valid_key is None else _fields.locate(record, setup.valid_key)
        if real is not None:
            check_valid(caller, f"{key}/{setup.valid_key}", _fields.get(record, real), size)
        if setup.valid_key is not None:
            valid.append(None if real is None else (*above, *real))

    # --- the images, and the space that they span ------------------------------------------------

    function = rule.function if isinstance(rule, ByMap) else None
    needs_axes = rule.cuts or function is not None
    needs_axes = needs_axes or any(kind.positions for kind in setup.targets.values())
    name = setup.images[0]
    if 0 in first.shape:
        check_pixels(caller, name, first, rule.blends)
    axes = axes_of(caller, setup.spatial_axes, name, first.shape) if needs_axes else ()
    if rule.has_papers_box:
        check_axes_to_cut(caller, axes, name, first.shape)
    lengths = tuple(first.shape[axis] for axis in axes)
    read = {name: arrays[name] for name in rule.reads}
    map_dtype = (
        None if function is None else _map_functions.dtype_of(caller, function, lengths, read)
    )
    space = Space(axes, lengths, rule.blends, rule.cuts, map_dtype, rule.sources)
    for name in setup.images:
        check_pixels(caller, name, arrays[name], space.averages)
        fix = f"resize {name!r} to match, since all images are cut alike"
        space.axes_of(caller, name, Spec(*_spec(arrays[name])), None, fix)

    # --- what targets add, and what they take ----------------------------------------------------

    dropped = tuple(path for path in (seeds, *partners) if path is not None)
    added = {
        f"{name}{ending}": _fields.path_to_add(
            batch, (*own[name][:-1], f"{own[name][-1]}{ending}"), dropped
        )
        for name, kind in setup.targets.items()
        for ending in kind.adds
    }
    for name, path in added.items():
        taken = _fields.locate(batch, name) or (path if _fields.has(batch, path) else None)
        if taken is not None and not any(taken[: len(other)] == other for other in dropped):
            got = f"{_fields.show(taken)!r} is in the batch"
            expected = f"it free, since targets add {name!r}"
            fail(KeyError, caller, got, expected, "rename that field")
    mixing = Mixing(setup, space)
    specs = {name: Spec(*_spec(value)) for name, value in arrays.items()}
    for name, kind in setup.targets.items():
        kind.check_fields(name, fields_of(kind, name, specs), space)
        if type(kind).mix is not Target.mix:
            _check_users_kind(mixing, name, kind, specs)

    # --- what NumPy copies on the host ------------------------------------------------------------

    large = {name for name, value in specs.items() if _bytes_of_one(value) >= LARGE}
    copied = tuple(n for n, kind in setup.kinds.items() if n in large and kind.is_copied(space))
    on_host = dataclasses.replace(mixing, copied=copied) if copied else mixing
    return Plan(mixing, on_host, own, tuple(brought), seeds, tuple(valid), added, dropped, size)


def _bytes_of_one(spec: Spec) -> int:
    size: int = math.prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize
    return size


def _spec(value: Any) -> tuple[tuple[int, ...], Any]:
    return tuple(value.shape), value.dtype


def check_seeds(caller: str, key: str, value: Any) -> int:
    """Checks seeds, and returns how many there are."""
    expected = "uint32 [B], one seed per record"
    if value.shape == ():
        fix = (
            "the order is RecordSeed, grain.transforms.Batch, then this transform "
            "(batch_size= of grain.load batches last, so leave it out)"
        )
        fail(ValueError, caller, f"{key!r} is one seed", expected, fix)
    if str(value.dtype) == "uint32" and len(value.shape) > 1:
        got, fix = f"{key!r} is {describe(value)}", "use grain.transforms.Batch once"
        fail(ValueError, caller, f"{got}, as after two Batch", expected, fix)
    if str(value.dtype) != "uint32" or len(value.shape) != 1:
        fix = "let RecordSeed add it before Batch, or cast your own with .astype(np.uint32)"
        fail(TypeError, caller, f"{key!r} is {describe(value)}", expected, fix)
    if value.shape == (0,):
        fail(ValueError, caller, "an empty batch", "B > 0", "filter empty batches out before")
    size: int = value.shape[0]
    return size


def check_valid(caller: str, key: str, value: Any, size: int) -> None:
    """Checks the field that says which records are real and which are padding."""
    if str(value.dtype) != "bool" or value.shape != (size,):
        fix = "pass True for each real record and False for padding"
        fail(TypeError, caller, f"{key!r} is {describe(value)}", f"bool [{size}]", fix)


def _check_users_kind(mixing: Mixing, name: str, kind: Target, specs: Mapping[str, Any]) -> None:
    """Checks that a user's kind can be compiled, and returns what it says."""
    setup, method = mixing.setup, f"{type(kind).__name__}.mix"
    narrow = {
        key: jax.ShapeDtypeStruct(value.shape, narrow_dtype(value.dtype))
        for key, value in specs.items()
    }
    draw = one_record(mixing, (narrow,) * max(len(setup.partner_keys) + 1, 1))
    fields: Arrays = {
        key: jax.ShapeDtypeStruct(value.shape[1:], value.dtype)
        for key, value in fields_of(kind, name, narrow).items()
    }
    source, k = fields if kind.reads else fields[""], setup.rule.sources

    def mix(sources: Any, draw: Any) -> Any:
        try:
            return kind.mix(sources, draw, mixing.space)
        except ValueError as error:
            if k == 2 or "to unpack" not in str(error):  # as by `own, partner = sources`
                raise
        fix = "let it mix any number, for source in sources, or leave the field out"
        expected = f"a kind for {k} sources"
        return fail(TypeError, setup.caller, f"{method} mixes pairs", expected, fix)

    result = check_pure(
        setup.caller,
        method,
        mix,
        (source,) * k,
        draw,
        fix="draw from draw.lam or from a field with a random number for each record",
    )
    returned = as_dict(result)
    for key, value in returned.items():
        if not is_array(value):
            fix = "return an array, or a dict from ending to array"
            got = f"{method} returns {kind_of(value)} as {key!r}"
            fail(TypeError, setup.caller, got, "arrays", fix)
        if key not in ("", *kind.adds, *kind.reads):
            fix, expected = f"write adds = ({key!r},) in the class", f"one of {('', *kind.adds)}"
            fail(KeyError, setup.caller, f"{method} returns {key!r}", expected, fix)
    for key in ("", *kind.reads):
        if key not in returned:
            fix = f"return it too, sources[0][{key!r}] where it stays as it is"
            got = f"{method} returns {list(returned)}"
            fail(KeyError, setup.caller, got, f"{key!r} among them", fix)

"""What a transform does with batches of one structure: decided once, and kept.

A plan knows where each field is, the axes of the box, and that shapes and dtypes fit. For each
batch only its values are checked.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix import _draw, _fields, _maps
from grain_mix._axes import axes_in, axes_of, front_axes
from grain_mix._draw import Draw, Recipe
from grain_mix._dtypes import check_pixels, narrow_dtype
from grain_mix._errors import describe, fail, is_array, kind
from grain_mix._fields import Path
from grain_mix._formula import blend
from grain_mix._partners import swap
from grain_mix._trace import check_pure
from grain_mix.targets import Space, Target

Arrays = dict[str, Any]


class Spec(NamedTuple):
    """What a kind's `check` is first given: an array without values."""

    shape: tuple[int, ...]
    dtype: Any


class Inputs(NamedTuple):
    """The arrays of a batch that mixing needs, by their names.

    `partner` is empty where records are mixed with their neighbours.
    """

    own: Arrays
    partner: Arrays
    seeds: Any
    valid: Any = None
    partner_valid: Any = None


@dataclasses.dataclass(frozen=True)
class Setup:
    """What depends on a transform alone.

    `images` are the names of the images, `key` is whether a key takes the place of the seeds.
    """

    where: str
    recipe: Recipe
    prob: float
    mode: str
    images: tuple[str, ...]
    targets: Mapping[str, Target]
    spatial_axes: tuple[int, ...] | None
    seed_key: str
    valid_key: str | None
    partner_key: str | None
    is_short: bool  # whether the one target is that of label_key
    unnamed: str | None  # a field that `targets` must name, if the batch has it

    @property
    def fix_for_seeds(self) -> str:
        """What to do where there are no seeds."""
        return (
            f"put gm.RecordSeed(seed_key={self.seed_key!r}) into the operations, before Batch; if "
            "another of these transforms comes first, it has used the seeds up: use one of them, "
            "such as MixBatch for MixUp and CutMix"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How a transform mixes batches of one structure.

    Attributes:
        setup: what depends on the transform alone.
        own: where each image, target and what targets read is in the batch.
        partner: the same, of the partners that records bring.
        seeds: where the seeds are; `None` where a key is given.
        valid: where the fields are that say which records, and which partners, are real.
        axes: of the box, in each image.
        space: what targets know of the first image.
        added: the path of each field that comes out and was not there.
        dropped: the paths of what is removed.
        size: how many records there are.
    """

    setup: Setup
    own: dict[str, Path]
    partner: dict[str, Path]
    seeds: Path | None
    valid: Path | None
    partner_valid: Path | None
    axes: dict[str, tuple[int, ...]]
    space: Space
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

        valid = str(self.setup.valid_key)
        return Inputs(
            {name: get(name, path) for name, path in self.own.items()},
            {name: get(name, path) for name, path in self.partner.items()},
            seeds if self.seeds is None else get(self.setup.seed_key, self.seeds),
            None if self.valid is None else get(valid, self.valid),
            None if self.partner_valid is None else get(valid, self.partner_valid),
        )

    def passed(self, batch: Any) -> dict[Path, Any]:
        """The fields that pass through, by their paths."""
        used = {*self.own.values(), *self.dropped, self.valid}
        return {
            path: value
            for path, value in _fields.leaves(batch).items()
            if not any(path[: len(other)] == other for other in used if other is not None)
        }

    def put(self, batch: Any, mixed: Mapping[str, Any]) -> Any:
        """The batch with what was mixed, and without what has been used up."""
        changes: dict[Path, Any] = dict.fromkeys(self.dropped, _fields.DROPPED)
        for name, value in mixed.items():
            changes[self.own[name] if name in self.own else self.added[name]] = value
        return _fields.replace(batch, changes)

    def check_values(self, inputs: Inputs) -> None:
        """Checks values, where they are known."""
        for name, target in self.setup.targets.items():
            for arrays, above in ((inputs.own, ""), (inputs.partner, f"{self.setup.partner_key}/")):
                if arrays:
                    fields = _fields_of(target, name, arrays)
                    known = {key: _fields.known(value) for key, value in fields.items()}
                    target.check_fields(f"{above}{name}", known, self.space)

    def mix(self, inputs: Inputs) -> tuple[Arrays, Draw]:
        """Draws, and mixes each field with what was drawn: what is compiled."""
        setup, space = self.setup, self.space
        brings = setup.partner_key is not None
        draw = _draw.draw(
            setup.recipe,
            setup.prob,
            _draw.share(setup.mode, inputs.seeds),
            space.lengths if setup.recipe.cuts or space.map is not None else (),
            inputs.valid,
            inputs.partner_valid,
            brings_partner=brings,
        )
        mixed: Arrays = {}
        for name in setup.images:
            mixed[name] = blend(
                inputs.own[name],
                draw.mixup_lam,
                draw.box,
                self.axes[name],
                weights=draw.weights,
                other=inputs.partner[name] if brings else None,
            )
        partners = inputs.partner if brings else _Neighbours(inputs.own)
        for name, target in setup.targets.items():
            own, other = (_fields_of(target, name, side) for side in (inputs.own, partners))
            if not target.reads:
                own, other = own[""], other[""]
            result = target.mix_batch(own, other, draw, space)
            mixed |= {_name_of(target, name, key): x for key, x in _as_dict(result).items()}
        return mixed, draw


class _Neighbours(dict[str, Any]):
    """The partners of fields, where these are their neighbours in the batch."""

    def __init__(self, own: Arrays) -> None:
        super().__init__()
        self._own = own

    def __missing__(self, name: str) -> Any:
        return self.setdefault(name, swap(self._own[name]))


def _fields_of(target: Target, name: str, arrays: Mapping[str, Any]) -> Arrays:
    return {"": arrays[name], **{other: arrays[other] for other in target.reads}}


def _as_dict(result: Any) -> Arrays:
    return result if isinstance(result, dict) else {"": result}


def _name_of(target: Target, name: str, key: str) -> str:
    """The name of what a kind returns under a key: an ending, or the name of what it read."""
    return key if key in target.reads else f"{name}{key}"


# --- making a plan ----------------------------------------------------------------------------


def make(setup: Setup, batch: Any, *, has_key: bool = False) -> Plan:
    """Finds and checks the fields of a batch, of which only names, shapes and dtypes matter."""
    where = setup.where
    _fields.check_container(where, batch)
    brought = _brought(setup, batch)
    own = _locate(setup, batch)
    first = _fields.get(batch, own[setup.images[0]])
    seeds, size = _seeds(setup, batch, first, has_key)
    valid = None
    if setup.valid_key is not None:
        fix = "pass the name as valid_key, or None if nothing is padded"
        valid = _fields.find(where, batch, setup.valid_key, fix)
        _draw.check_valid(where, setup.valid_key, _fields.get(batch, valid), size)
    roles = dict(own)
    roles |= {} if seeds is None else {setup.seed_key: seeds}
    roles |= {} if valid is None else {str(setup.valid_key): valid}
    _check_roles(where, roles)
    _check_sizes(setup, batch, roles, size)
    _check_unnamed(setup, batch, roles)
    partner, partner_valid = _partner(setup, batch, brought, own, size)
    axes, space = _space(setup, {name: _fields.get(batch, own[name]) for name in setup.images})
    added = {
        f"{name}{ending}": _fields.path_to_add(batch, (*own[name][:-1], f"{own[name][-1]}{ending}"))
        for name, target in setup.targets.items()
        for ending in target.adds
    }
    for name, path in added.items():
        taken = _fields.locate(batch, name) or (path if _fields.has(batch, path) else None)
        if taken is not None:
            came = f"{_fields.show(taken)!r} is in the batch"
            expected = f"it free, since targets add {name!r}"
            fail(KeyError, where, came, expected, "rename that field")
    dropped = tuple(path for path in (seeds, brought) if path is not None)
    plan = Plan(setup, own, partner, seeds, valid, partner_valid, axes, space, added, dropped, size)
    _check_targets(plan, batch)
    return plan


def _locate(setup: Setup, batch: Any) -> dict[str, Path]:
    """Where images, targets and what targets read are."""
    fixes = dict.fromkeys(setup.images, "pass the name as image_key")
    fix = "name it in targets as the batch does, or leave it out of targets"
    if setup.is_short:
        fix = "pass the name as label_key, or label_key=None if there are no labels"
    for name, target in setup.targets.items():
        fixes[name] = fix
        fixes |= {
            other: f"{type(target).__name__} reads it: pass its name" for other in target.reads
        }
    if isinstance(batch, tuple):
        advice = "in a tuple names are positions, so pass image_key=0, label_key=1; "
        fixes = {
            name: fix if name.removeprefix("-").isdecimal() else advice + fix
            for name, fix in fixes.items()
        }
    return {name: _fields.find(setup.where, batch, name, fixes[name]) for name in fixes}


def _seeds(setup: Setup, batch: Any, image: Any, has_key: bool) -> tuple[Path | None, int]:
    """Where the seeds are, and how many records there are."""
    where, seed_key = setup.where, setup.seed_key
    if not has_key:
        path = _fields.find(where, batch, seed_key, setup.fix_for_seeds)
        return path, _draw.check_seeds(where, seed_key, _fields.get(batch, path))
    if _fields.locate(batch, seed_key) is not None:
        fix = "drop the seeds where each step has a key, or leave key out"
        fail(ValueError, where, f"{seed_key!r} in the batch, and a key", "one of them", fix)
    if image.shape[:1] in ((), (0,)):
        came = f"{setup.images[0]!r} is {describe(image)}"
        fail(ValueError, where, came, "[B, ...] with B > 0", "filter empty batches out before")
    return None, int(image.shape[0])


def _check_roles(where: str, roles: Mapping[str, Path]) -> None:
    names: dict[Path, str] = {}
    for name, path in roles.items():
        if path in names:
            came = f"{names[path]!r} and {name!r} are one field, {_fields.show(path)!r}"
            fail(ValueError, where, came, "one role for each field", "name each field once")
        names[path] = name


def _check_sizes(setup: Setup, batch: Any, paths: Mapping[str, Path], size: int) -> None:
    for name, path in paths.items():
        value = _fields.get(batch, path)
        if value.shape[:1] != (size,):
            by = (
                f"{size} seeds in {setup.seed_key!r}"
                if setup.seed_key in paths
                else f"{size} images"
            )
            came = f"{name!r} is {describe(value)}, but there are {by}"
            fix = "take both from one batch"
            fail(ValueError, setup.where, came, "as many seeds as records", fix)


def _check_unnamed(setup: Setup, batch: Any, roles: Mapping[str, Path]) -> None:
    """With `targets`, a label that they leave out would stay unmixed without a word."""
    name = setup.unnamed
    path = None if name is None else _fields.locate(batch, name)
    if path is not None and path not in roles.values():
        came = f"{name!r} is in the batch, and targets leaves it out"
        fix = f"put it into targets, {{{name!r}: gm.OneHot(K)}}, or pass label_key=None"
        fail(ValueError, setup.where, came, "it to be mixed, or left out on purpose", fix)


def _brought(setup: Setup, batch: Any) -> Path | None:
    """Where the partners are that records bring."""
    where, key = setup.where, setup.partner_key
    if key is None:
        return None
    path = _fields.locate(batch, key)
    if path is None:
        names = sorted({_fields.show(path) for path in _fields.leaves(batch)})
        came = f"no field {key!r} among {names}"
        fix = f"let each record bring its partner, {{**record, {key!r}: other_record}}; pairs of "
        fix += f'ZipMapDataset become that by .map(lambda pair: {{**pair[0], "{key}": pair[1]}})'
        fail(KeyError, where, came, f"a nested record {key!r}", fix)
    record = _fields.get(batch, path)
    if not isinstance(record, Mapping | tuple):
        came = f"{key!r} is {describe(record)}"
        fix = 'bring the partner as a record with the same names, {"image": ..., "label": ...}'
        fail(TypeError, where, came, "a dict or a tuple", fix)
    return path


def _partner(
    setup: Setup, batch: Any, above: Path | None, own: Mapping[str, Path], size: int
) -> tuple[dict[str, Path], Path | None]:
    """Where the partners' fields are, and their `valid_key`."""
    where, key = setup.where, setup.partner_key
    if above is None:
        return {}, None
    record = _fields.get(batch, above)
    partner: dict[str, Path] = {}
    for name, path in own.items():
        if path[: len(above)] == above:
            came = f"{name!r} is a field of {key!r}, which is removed"
            fix = (
                f"leave {key!r} out of the name: its fields are found by the names of the record's"
            )
            fail(ValueError, where, came, "a field of the record itself", fix)
        below = _fields.locate(record, name)
        if below is None:
            names = sorted(f"{key}/{_fields.show(other)}" for other in _fields.leaves(record))
            came = f"no field {f'{key}/{name}'!r} among {names}, the partner of {name!r}"
            fix = "let the partner have each image and target that its record has"
            fail(KeyError, where, came, f"a field {name!r} in {key!r}", fix)
        partner[name] = (*above, *below)
        mine, theirs = _fields.get(batch, path), _fields.get(batch, partner[name])
        shown = f"{key}/{name}"
        if not is_array(theirs):
            fail(TypeError, where, f"{shown!r} is {kind(theirs)}", "an array [B, ...]", "stack it")
        _fields.check_array(where, shown, theirs)
        if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            came = f"{name!r} is {describe(mine)}, but {shown!r} is {describe(theirs)}"
            fix = "let both have one shape and dtype: resize, pad or cast before Batch"
            fail(ValueError, where, came, "the same shape and dtype", fix)
    valid = None if setup.valid_key is None else _fields.locate(record, setup.valid_key)
    if valid is None:
        return partner, None
    _draw.check_valid(where, f"{key}/{setup.valid_key}", _fields.get(record, valid), size)
    return partner, (*above, *valid)


def _space(setup: Setup, images: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], Space]:
    """The axes of the box in each image, and what targets know of the first one."""
    where, recipe = setup.where, setup.recipe
    function = recipe.weight_map if isinstance(recipe, _draw.ByMap) else None
    parts = recipe.cuts or function is not None
    needed = parts or any(target.positions for target in setup.targets.values())
    name, first = next(iter(images.items()))
    if 0 in first.shape:
        check_pixels(where, name, first, recipe.blends)
    axes = axes_of(where, setup.spatial_axes, name, first.shape) if needed else ()
    lengths = tuple(first.shape[axis] for axis in axes)
    dtype = None if function is None else _maps.dtype_of(where, function, lengths)
    averaged = recipe.blends or (dtype is not None and dtype != np.bool_)
    for other, image in images.items():
        check_pixels(where, other, image, averaged)
    space = Space(axes, lengths, recipe.blends, recipe.cuts, dtype)
    if not parts:
        return dict.fromkeys(images, ()), space
    return {
        other: axes if image is first else axes_like_first(where, other, image, name, space)
        for other, image in images.items()
    }, space


def axes_like_first(where: str, name: str, image: Any, first: str, space: Space) -> tuple[int, ...]:
    """The axes of the box in a further image, which must be as long there."""
    axes = axes_in(len(image.shape), space.axes)
    if [image.shape[axis : axis + 1] for axis in axes] != [(n,) for n in space.lengths]:
        came = f"{name!r} is {describe(image)}, but {first!r} has {list(space.lengths)} along its "
        came += f"axes {space.axes}"
        fix = f"resize {name!r} to match, since both are cut with one box"
        fail(ValueError, where, came, f"the same lengths along axes {axes}", fix)
    return front_axes(where, "spatial_axes", axes, name, image.shape)


def _check_targets(plan: Plan, batch: Any) -> None:
    """Checks shapes and dtypes of targets, and what users' kinds return."""
    setup = plan.setup

    specs: Arrays = {}
    for name, path in plan.own.items():
        value = _fields.get(batch, path)
        specs[name] = Spec(tuple(value.shape), value.dtype)
    for name, target in setup.targets.items():
        fields = _fields_of(target, name, specs)
        target.check_fields(name, fields, plan.space)
        if type(target).mix is Target.mix:
            continue
        one: Any = {key: _one(value) for key, value in fields.items()}
        one = one if target.reads else one[""]
        draw = jax.eval_shape(lambda: _draw_of_one(plan))
        result = check_pure(
            setup.where,
            f"{type(target).__name__}.mix",
            lambda own, partner, draw, target=target: target.mix(own, partner, draw, plan.space),
            one,
            one,
            draw,
            fix="draw from draw.lam or from a field with a random number for each record",
        )
        _check_result(setup.where, target, result)


def _one(value: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape[1:], narrow_dtype(value.dtype))


def _draw_of_one(plan: Plan) -> Any:
    setup, space = plan.setup, plan.space
    lengths = space.lengths if setup.recipe.cuts or space.map is not None else ()
    brings = setup.partner_key is not None
    seeds = jnp.zeros(2, jnp.uint32)
    draw = _draw.draw(setup.recipe, setup.prob, seeds, lengths, brings_partner=brings)
    return jax.tree.map(lambda x: x[0], draw)


def _check_result(where: str, target: Target, result: Any) -> None:
    """Checks that a user's kind returns what it says."""
    name = f"{type(target).__name__}.mix"
    returned = _as_dict(result)
    for key, value in returned.items():
        if not is_array(value):
            fix = "return an array, or a dict from ending to array"
            fail(TypeError, where, f"{name} returns {kind(value)} as {key!r}", "arrays", fix)
        if key not in ("", *target.adds, *target.reads):
            fix = f"write adds = ({key!r},) in the class"
            fail(KeyError, where, f"{name} returns {key!r}", f"one of {('', *target.adds)}", fix)
    for key in ("", *target.reads):
        if key not in returned:
            fix = f"return it too, own[{key!r}] where it stays as it is"
            fail(KeyError, where, f"{name} returns {list(returned)}", f"{key!r} among them", fix)

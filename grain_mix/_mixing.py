"""The way of the data: bring, draw, move, mix. A pure function of arrays, and what is compiled."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grain_mix._draw import Draw
from grain_mix._fields import heads
from grain_mix._rules import Rule, draw_parameters, share_seeds
from grain_mix._sources import Source, neighbours
from grain_mix.targets import Space, Target, ValueMap

Arrays = dict[str, Any]


class Inputs(NamedTuple):
    """The arrays of a batch that mixing needs, by their names.

    Attributes:
        fields: those of the records and, where they bring their partners, those of each of these.
        seeds: `uint32 [B]`.
        valid: which records are real, and which of the partners that they bring: `bool [B]`, or
            `None` where all are.
    """

    fields: tuple[Arrays, ...]
    seeds: Any
    valid: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What depends on a transform alone. Those of transforms that are alike are equal.

    Attributes:
        identity: what tells transforms apart.
        caller: the transform's class, for errors.
        rule: what it draws.
        prob: the chance that a draw mixes at all.
        mode: who shares a draw.
        images: the names of the images.
        targets: the kinds of targets, by their names.
        spatial_axes: as the user said them.
        seed_key: the name of the seeds.
        valid_key: the name of the field that says which records are real.
        partner_keys: the names of the partners that records bring; none: neighbours are mixed.
        is_short: whether the one target is that of `label_key`.
        unnamed: a field that `targets` must name, if the batch has it.
    """

    identity: Hashable
    caller: str
    rule: Rule
    prob: float
    mode: str
    images: tuple[str, ...]
    targets: Mapping[str, Target]
    spatial_axes: tuple[int, ...] | None
    seed_key: str
    valid_key: str | None
    partner_keys: tuple[str, ...]
    is_short: bool
    unnamed: str | None

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Setup) and self.identity == other.identity)

    @property
    def group(self) -> int:
        """How many consecutive records must stay together."""
        return 1 if self.partner_keys else self.rule.sources

    @functools.cached_property
    def kinds(self) -> Mapping[str, Target]:
        """What each mixed field is: an image is what `ValueMap` is."""
        return {**dict.fromkeys(self.images, ValueMap()), **self.targets}

    @functools.cached_property
    def kinds_of_targets(self) -> tuple[tuple[str, Target], ...]:
        """The targets, as their items."""
        return tuple(self.targets.items())

    @functools.cached_property
    def heads(self) -> frozenset[str]:
        """The names of all fields that matter, and of all that they are in."""
        names = [*self.needed, self.seed_key, *filter(None, (self.valid_key, self.unnamed))]
        names += [f"{key}/{name}" for key in self.partner_keys for name in names]
        return heads(names)

    @functools.cached_property
    def needed(self) -> tuple[str, ...]:
        """The names of all fields that mixing needs."""
        reads = [name for kind in self.targets.values() for name in kind.reads]
        return tuple(dict.fromkeys([*self.kinds, *reads, *self.rule.reads]))


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How fields are mixed: all that is compiled, and the same for whatever else a batch holds.

    Attributes:
        setup: what depends on the transform.
        space: what kinds know of the images.
        copied: the names of fields that NumPy copies, and that are not mixed here.
    """

    setup: Setup
    space: Space
    copied: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.setup, self.space, self.copied))

    def mix(self, inputs: Inputs, first: Any = 0) -> tuple[Arrays, Draw]:
        """The mixed fields, and what was drawn.

        Args:
            inputs: the batch's fields, or those of one slice of it.
            first: the position of the slice's first record in the batch.
        """
        sources = bring(self.setup, inputs)
        lengths = self.space.lengths if self.space.has_pixel_weights else ()
        draw = draw_fields(self.setup, inputs, lengths)
        if draw.sources is not None and not isinstance(first, int):
            draw = dataclasses.replace(draw, sources=draw.sources + first)
        mixed: Arrays = {}
        for name, kind in self.setup.kinds.items():
            if name in self.copied:
                continue
            fields = [fields_of(kind, name, source) for source in sources]
            result = as_dict(kind.mix_batch(fields, draw, self.space))
            mixed |= {name_of(kind, name, key): value for key, value in result.items()}
        return mixed, draw


def bring(setup: Setup, inputs: Inputs) -> list[dict[str, Source]]:
    """For each source the fields of all records, by their names; the record itself first."""
    if setup.partner_keys:
        return [{name: Source(x) for name, x in each.items()} for each in inputs.fields]
    k = setup.rule.sources
    found = {name: neighbours(x, k) for name, x in inputs.fields[0].items()}
    return [{name: each[r] for name, each in found.items()} for r in range(k)]


def draw_fields(setup: Setup, inputs: Inputs, lengths: tuple[int, ...]) -> Draw:
    """The parameters of each record, with images of these lengths."""
    rule = setup.rule
    fields = [{name: source[name].value for name in rule.reads} for source in bring(setup, inputs)]
    return draw_parameters(
        rule,
        setup.prob,
        share_seeds(setup.mode, inputs.seeds),
        lengths,
        valid=inputs.valid,
        fields=fields if rule.reads else (),
        brings=bool(setup.partner_keys),
    )


def fields_of(kind: Target, name: str, fields: Mapping[str, Any]) -> Arrays:
    """What a kind is given: the field itself under `""`, and what it reads."""
    return {"": fields[name], **{other: fields[other] for other in kind.reads}}


def as_dict(result: Any) -> Arrays:
    """What a kind returns, from ending to array."""
    return result if isinstance(result, dict) else {"": result}


def name_of(kind: Target, name: str, key: str) -> str:
    """The name of what a kind returns under a key: an ending, or the name of what it read."""
    return key if key in kind.reads else f"{name}{key}"


def one_record(mixing: Mixing, fields: tuple[Arrays, ...]) -> Draw:
    """Shapes and dtypes of the draw of one record, which a kind of a user's is given."""
    k = mixing.setup.rule.sources
    if not mixing.setup.partner_keys:
        fields = tuple(fields[0] for _ in range(1))

    def drawn(fields: tuple[Arrays, ...]) -> Draw:
        inputs, space = Inputs(fields, jnp.zeros(k, jnp.uint32)), mixing.space
        drawn = draw_fields(mixing.setup, inputs, space.lengths if space.has_pixel_weights else ())
        first: Draw = jax.tree.map(lambda x: x[0], drawn)
        return first

    several = jax.tree.map(lambda x: jax.ShapeDtypeStruct((k, *x.shape[1:]), x.dtype), fields)
    spec: Draw = jax.eval_shape(drawn, several)
    return spec

"""What is mixed is a part. Here: what every part has, images and label maps.

A part knows the fields that it reads, checks them, and mixes them, given a draw. A new kind of
field is a new class of the same shape, and a line in `MixedBatch._parts`, in `_transforms`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from grain_mix._axes import axes_in, check_pixels
from grain_mix._blend import check_dtype
from grain_mix._boxes import check_instances, is_of_instances, mix_instances
from grain_mix._draw import Draw
from grain_mix._errors import describe, fail
from grain_mix._formula import blend
from grain_mix._swap import swap


class Part(Protocol):
    """What every part has.

    `option` is the parameter of a transform that names the fields, `keys` are the fields that the
    part reads and replaces, and `adds` are those that come out too: each with the field that it
    is put beside, or `None` for the outermost dict or tuple.
    """

    option: ClassVar[str]
    fix: ClassVar[str]

    @property
    def keys(self) -> tuple[str, ...]:
        """The fields that are read."""

    @property
    def adds(self) -> Mapping[str, str | None]:
        """The fields that are added."""

    def check(self, where: str, fields: Mapping[str, Any], axes: tuple[int, ...]) -> None:
        """Checks shapes and dtypes, which are known under `jit` too."""

    def check_values(self, where: str, fields: Mapping[str, Any]) -> None:
        """Checks values, where there are any."""

    def mix(
        self, fields: Mapping[str, jax.Array], draw: Draw, axes: tuple[int, ...]
    ) -> dict[str, jax.Array]:
        """Returns the mixed fields. `axes` are those of the box in the first image."""


@dataclasses.dataclass(frozen=True)
class Images:
    """Images `[B, ...]`, which share a draw and are blended and cut.

    `averaged` says whether a blend can occur, which not every dtype allows.
    """

    keys: tuple[str, ...]
    averaged: bool
    option: ClassVar[str] = "image_key"
    fix: ClassVar[str] = "pass the name as image_key"
    adds: ClassVar[Mapping[str, str | None]] = {}

    def check(self, where: str, fields: Mapping[str, Any], axes: tuple[int, ...]) -> None:
        first = fields[self.keys[0]]
        for key in self.keys:
            check_dtype(where, key, fields[key].dtype, self.averaged)
            check_pixels(where, key, fields[key].shape)
            check_sizes(where, key, fields[key], self.keys[0], first, axes)

    def check_values(self, where: str, fields: Mapping[str, Any]) -> None:
        pass

    def mix(
        self, fields: Mapping[str, jax.Array], draw: Draw, axes: tuple[int, ...]
    ) -> dict[str, jax.Array]:
        return {
            key: blend(
                fields[key],
                draw.outside,
                draw.box,
                axes_in(fields[key].ndim, axes),
                weights=draw.weights,
            )
            for key in self.keys
        }


@dataclasses.dataclass(frozen=True)
class LabelMaps:
    """Label maps `[B, ...]` of class ids, which are cut with the image's box and never averaged.

    Where the transform can blend (`in_pairs`), they come out as `[B, 2, ...]`, own (cut) and
    partner's, with weights beside them. For each pixel the weighted maps are what the image shows.
    Where there are `boxes`, a field with a map for each of them holds masks of instances.
    """

    keys: tuple[str, ...]
    image: str
    boxes: str | None
    in_pairs: bool
    option: ClassVar[str] = "mask_key"
    fix: ClassVar[str] = "pass the name as mask_key"

    @property
    def adds(self) -> Mapping[str, str | None]:
        return {f"{key}_weight": key for key in self.keys} if self.in_pairs else {}

    def check(self, where: str, fields: Mapping[str, Any], axes: tuple[int, ...]) -> None:
        for key in self.keys:
            check_dtype(where, key, fields[key].dtype, averaged=False)
            check_pixels(where, key, fields[key].shape)
            if not self._of_instances(key, fields, axes):
                if self.boxes is not None:
                    boxes, image = fields[self.boxes], fields[self.image]
                    check_instances(where, key, fields[key], boxes, image, axes)
                check_sizes(where, key, fields[key], self.image, fields[self.image], axes)

    def check_values(self, where: str, fields: Mapping[str, Any]) -> None:
        pass

    def mix(
        self, fields: Mapping[str, jax.Array], draw: Draw, axes: tuple[int, ...]
    ) -> dict[str, jax.Array]:
        mixed: dict[str, jax.Array] = {}
        for key in self.keys:
            own = fields[key]
            if self._of_instances(key, fields, axes):
                mixed[key] = mix_instances(own, draw, axes)
                continue
            ours = axes_in(own.ndim, axes)
            cut = blend(own, None, draw.box, ours, weights=draw.weights)
            mixed[key] = jnp.stack([cut, swap(own)], axis=1) if self.in_pairs else cut
            if self.in_pairs:
                outside = draw.outside
                assert outside is not None  # a transform that blends says how much
                mixed[f"{key}_weight"] = jnp.stack([outside, 1 - outside], axis=1)
        return mixed

    def _of_instances(self, key: str, fields: Mapping[str, Any], axes: tuple[int, ...]) -> bool:
        if self.boxes is None:
            return False
        return is_of_instances(fields[key], fields[self.boxes], fields[self.image], axes)


def check_sizes(
    where: str, key: str, value: Any, first_key: str, first: Any, axes: tuple[int, ...]
) -> None:
    """Checks that a field is as large as the first image along the axes of the box."""
    own = axes_in(len(value.shape), axes)
    sizes = [value.shape[axis : axis + 1] for axis in own]
    if sizes != [(first.shape[axis],) for axis in axes]:
        came = f"{key!r} is {describe(value)}, but {first_key!r} is {describe(first)}"
        fix = f"resize {key!r} to match, since both are cut with one box"
        fail(ValueError, where, came, f"the same sizes along axes {axes}", fix)

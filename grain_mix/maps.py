"""Maps of weights to import, for `gm.WeightMapMixBatch`.

Each is a frozen dataclass, and is called for one record as a function of your own is: with
`(key, lam, lengths)`, and with `(key, lam, lengths, own, partner)` if it reads fields. It returns
the weights of the record's own pixels, `bool` of shape `lengths`; `SmoothMix` floats.

FMix, GridMix, Patches, SaliencyMix and Stripe go by λ. ClassMix, CopyPaste, SmoothMix and SpecMix
do not: for them an `alpha` is an error.

ClassMix, CopyPaste and SaliencyMix read fields, and take any number of spatial axes. What they read
has the image's axes in the image's own order, `[H, W]`, also where `spatial_axes` names the columns
first. The order of `spatial_axes` changes nothing for these three.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix import _parameters
from grain_mix._bits import chance
from grain_mix._dtypes import is_integer, narrow_dtype
from grain_mix._errors import describe, explains_mistakes, fail, is_int
from grain_mix._fixed_point import ONE, to_fixed
from grain_mix._parameters import (
    COUNT,
    Parameter,
    above_zero,
    as_name,
    check_all,
    checked_by,
    optional,
)
from grain_mix._rules import box_about

__all__ = [
    "ClassMix",
    "CopyPaste",
    "FMix",
    "GridMix",
    "Patches",
    "SaliencyMix",
    "SmoothMix",
    "SpecMix",
    "Stripe",
]

Lengths = tuple[int, ...]
Fields = Mapping[str, jax.Array]

CLASS_ID = Parameter("a class id, an int, or None", "pass one like 255", is_int, int)


class _OfTwoAxes:
    """Maps that are made of λ and the key alone, over two axes."""

    uses_lam: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_all(self)

    def check_fields(self, caller: str, fields: Mapping[str, Any], lengths: Lengths) -> None:
        """Two axes that are long enough."""
        got = f"{self!r} for an image that is {list(lengths)} long along its spatial axes"
        if len(lengths) != 2:
            fix = "name two spatial_axes, or write a map of your own"
            fail(ValueError, caller, got, "two axes", fix)
        self._check_lengths(caller, got, lengths)

    def _check_lengths(self, caller: str, got: str, lengths: Lengths) -> None:
        pass


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class FMix(_OfTwoAxes):
    """FMix: the brightest pixels of random noise in which low frequencies dominate.

    Gaussian noise is divided by `frequency ** decay`, and turned into a grey image. Own are its
    ⌊λ·pixels⌋ brightest pixels. It goes by λ.

    Args:
        decay: above 0. Larger: fewer and smoother shapes.

    See Harris et al., https://arxiv.org/abs/2002.12047

    >>> import grain_mix as gm
    >>> seeds = np.arange(4, dtype=np.uint32)
    >>> draw = gm.WeightMapMixBatch(FMix(), alpha=1.0).draw(seeds, (4, 16, 16, 3))
    >>> draw.weights.shape, draw.weights.dtype
    ((4, 16, 16), dtype('bool'))
    """

    decay: float = field(default=3.0, metadata=checked_by(above_zero("pass one like 3.0")))

    def __call__(self, key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
        """The weights of one record's own pixels."""
        rows = np.fft.fftfreq(lengths[0]).astype("f4")
        columns = np.fft.rfftfreq(lengths[1]).astype("f4")
        y, x = jnp.meshgrid(rows, columns, indexing="ij")
        frequency = jnp.maximum(jnp.hypot(y, x), 1 / max(lengths))
        real, imaginary = jax.random.normal(key, (2, *frequency.shape))
        noise = jax.lax.complex(real, imaginary) / frequency**self.decay
        grey = jnp.fft.irfft2(noise, lengths)
        brightest_first = jnp.append(jnp.sort(grey.ravel(), descending=True), -jnp.inf)
        kept = jnp.floor(lam * grey.size).astype(int)
        return grey > brightest_first[kept]


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class GridMix(_OfTwoAxes):
    """GridMix: in each cell of a grid, a rectangle of 1 - λ of the cell is the partner's.

    Its sides are √(1-λ) of the cell's, rounded. The grid is shifted at random. It goes by λ.

    Args:
        cells: along each axis, above 0. A cell has at least two pixels.

    See Baek et al., https://doi.org/10.1016/j.patcog.2020.107594, here in the form of OpenMixup.

    >>> import grain_mix as gm
    >>> seeds = np.arange(4, dtype=np.uint32)
    >>> draw = gm.WeightMapMixBatch(GridMix(4), alpha=1.0).draw(seeds, (4, 16, 16, 3))
    >>> bool((draw.weights[:, :4, :4] == draw.weights[:, 4:8, 12:]).all())
    True
    """

    cells: int = field(default=5, metadata=checked_by(COUNT))

    def _check_lengths(self, caller: str, got: str, lengths: Lengths) -> None:
        if min(lengths) <= self.cells:
            fail(ValueError, caller, got, "at least two pixels in a cell", "pass fewer cells")

    def __call__(self, key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
        """The weights of one record's own pixels."""
        shifts = jax.random.uniform(key, (2,))
        in_hole = []
        for length, shift in zip(lengths, shifts, strict=True):
            cell = -(-length // self.cells)
            position = (jnp.arange(length) + jnp.floor(shift * cell)) % cell
            in_hole.append(position < jnp.round(cell * jnp.sqrt(1 - lam)))
        return ~(in_hole[0][:, None] & in_hole[1])


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class SmoothMix(_OfTwoAxes):
    """SmoothMix: the partner fades out around a random centre.

    The own weight is `1 - exp(-d²/(2σ²))`, a float. d is the distance from the centre in units of
    the image's sides, and σ is uniform from 1/4 to 1/2. It does not use λ.

    See Lee et al., https://openaccess.thecvf.com/content_CVPRW_2020/html/w45/Lee_SmoothMix_A_Simple_Yet_Effective_Data_Augmentation_to_Train_Robust_CVPRW_2020_paper.html

    >>> import grain_mix as gm
    >>> seeds = np.arange(4, dtype=np.uint32)
    >>> draw = gm.WeightMapMixBatch(SmoothMix()).draw(seeds, (4, 16, 16, 3))
    >>> draw.weights.dtype
    dtype('float32')
    """

    uses_lam: ClassVar[bool] = False

    def __call__(self, key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
        """The weights of one record's own pixels."""
        height, width = lengths
        y, x, spread = jax.random.uniform(key, (3,))
        dy = jnp.arange(height)[:, None] / height - y
        dx = jnp.arange(width) / width - x
        sigma = 0.25 + spread / 4
        return 1 - jnp.exp(-(dy**2 + dx**2) / (2 * sigma**2))


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class SpecMix(_OfTwoAxes):
    """SpecMix, for spectrograms: bands of time and of frequency are the partner's.

    Along each axis there are 0 to 3 bands, each with the same chance. A band is ⌊L/8⌋ wide in an
    axis of length L, at a random place; bands may overlap. It does not use λ. Each axis has at
    least 8 pixels.

    See Kim et al., https://arxiv.org/abs/2108.03020

    >>> import grain_mix as gm
    >>> spectrograms = (4, 64, 80)
    >>> mix = gm.WeightMapMixBatch(SpecMix(), spatial_axes=(1, 2))
    >>> mix.draw(np.arange(4, dtype=np.uint32), spectrograms).weights.shape
    (4, 64, 80)
    """

    uses_lam: ClassVar[bool] = False

    def _check_lengths(self, caller: str, got: str, lengths: Lengths) -> None:
        if min(lengths) < 8:
            fix = "leave such images unmixed: a band is an eighth of the image"
            fail(ValueError, caller, got, "at least 8 pixels along each", fix)

    def __call__(self, key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
        """The weights of one record's own pixels."""
        in_band = []
        for length, axis_key in zip(lengths, jax.random.split(key), strict=True):
            count, *starts = jax.random.uniform(axis_key, (4,))
            width = length // 8
            first = jnp.floor(jnp.array(starts) * (length - width + 1))[:, None]
            is_drawn = jnp.arange(3)[:, None] < jnp.floor(count * 4)
            position = jnp.arange(length)
            inside = is_drawn & (first <= position) & (position < first + width)
            in_band.append(inside.any(axis=0))
        return ~(in_band[0][:, None] | in_band[1])


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class Patches(_OfTwoAxes):
    """Random patches, such as the tokens of a ViT: each is wholly one record's.

    Of the ⌈H/side⌉·⌈W/side⌉ patches ⌊λ·patches⌋ are the record's own. It goes by λ.

    Args:
        side: of a patch, in pixels. There must be more than one patch.

    TokenMix mixes at this level: Liu et al., https://arxiv.org/abs/2207.08409

    >>> import grain_mix as gm
    >>> seeds = np.arange(4, dtype=np.uint32)
    >>> draw = gm.WeightMapMixBatch(Patches(4), alpha=1.0).draw(seeds, (4, 8, 8, 3))
    >>> set((draw.lam * 4).tolist()) <= {0, 1, 2, 3, 4}
    True
    """

    side: int = field(default=16, metadata=checked_by(COUNT))

    def _check_lengths(self, caller: str, got: str, lengths: Lengths) -> None:
        if max(lengths) <= self.side:
            fail(ValueError, caller, got, "more than one patch", "pass a shorter side")

    def __call__(self, key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
        """The weights of one record's own pixels."""
        rows, columns = (-(-length // self.side) for length in lengths)
        rank = jax.random.permutation(key, rows * columns).reshape(rows, columns)
        own = rank < jnp.floor(lam * rows * columns)
        return own.repeat(self.side, axis=0).repeat(self.side, axis=1)[: lengths[0], : lengths[1]]


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class Stripe(_OfTwoAxes):
    """A stripe: an interval of 1 - λ of the rows, or of the columns, is the partner's.

    Its width is (1-λ)·L, rounded, and its place uniform. Rows and columns have the same chance. It
    goes by λ.

    See Summers and Dinneen, https://arxiv.org/abs/1805.11272

    >>> import grain_mix as gm
    >>> seeds = np.arange(4, dtype=np.uint32)
    >>> weights = gm.WeightMapMixBatch(Stripe(), alpha=1.0).draw(seeds, (4, 16, 16, 3)).weights
    >>> same_rows = (weights == weights[:, :1]).all((1, 2))
    >>> same_columns = (weights == weights[:, :, :1]).all((1, 2))
    >>> bool((same_rows | same_columns).all())
    True
    """

    def __call__(self, key: jax.Array, lam: jax.Array, lengths: Lengths) -> jax.Array:
        """The weights of one record's own pixels."""
        start, direction = jax.random.uniform(key, (2,))
        inside = []
        for length in lengths:
            width = jnp.round((1 - lam) * length)
            first = jnp.floor(start * (length - width + 1))
            position = jnp.arange(length)
            inside.append((first <= position) & (position < first + width))
        return ~jnp.where(direction < 0.5, inside[0][:, None], inside[1])


# --- maps that read fields ------------------------------------------------------------------------


class _Reading:
    """Maps that read one field, which lies on the image.

    Attributes:
        in_image_order: `WeightMapMixBatch` calls it with the image's axes in their own order, and
            turns what it returns.
    """

    in_image_order: ClassVar[bool] = True
    uses_lam: ClassVar[bool] = False
    objects: ClassVar[bool] = False  # whether the field has an axis of objects before the image's
    other: ClassVar[str]  # what a field of another shape is for

    def __post_init__(self) -> None:
        check_all(self)

    @property
    def reads(self) -> tuple[str, ...]:
        """The name of the field that it reads."""
        raise NotImplementedError

    def check_fields(self, caller: str, fields: Mapping[str, Any], lengths: Lengths) -> None:
        """One value for each pixel of the image, or of each object."""
        [name] = self.reads
        x, who = fields[name], type(self).__name__
        got = f"{name!r} is {describe(x)}, which {who} reads, beside an image that is "
        got += f"{list(lengths)} long along its spatial axes"
        shape, before = tuple(x.shape), 2 if self.objects else 1
        if len(shape) != before + len(lengths) or shape[before:] != lengths:
            front = f"[B, {'N, ' * self.objects}"
            expected = f"{front}{', '.join(map(str, lengths))}], axes in the image's order"
            fix = "crop and resize it with its image, before Batch"
            if len(shape) != before + len(lengths):
                fix = "drop the axis of length 1, before Batch" if 1 in shape[1:] else self.other
            fail(ValueError, caller, got, expected, fix)
        self._check_dtype(caller, name, x)

    def _check_dtype(self, caller: str, name: str, x: Any) -> None:
        if str(x.dtype) == "complex64":
            fail(TypeError, caller, f"{name!r} is complex64", "real numbers", "take its magnitude")

    def axes_like_image(self, key: str, ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
        """The axes along which the field is as long as the image along `axes`."""
        return tuple(ndim - len(axes) + sorted(axes).index(axis) for axis in axes)


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class ClassMix(_Reading):
    """ClassMix: some of the classes in the partner's label map are pasted, wherever they are.

    Each class id has a coin of the record's key, with the chance 1/2. The partner's pixels of the
    classes whose coin says so are pasted. The coins are a table of 256, and the coin of a class is
    that of its id modulo 256, so ids that are equal modulo 256 share one. The paper instead takes
    half of the classes that are present. Of n classes here all or none are pasted with the chance
    2⁻ⁿ each; then the mixed record is its partner, or itself.

    It does not use λ.

    Args:
        name: of the field with the label maps, integers or `bool` `[B, H, W]`: class ids, or the
            numbers of objects, or of superpixels.
        ignore: an id that is never pasted, such as that of pixels without a class.

    See Olsson et al., ClassMix, https://arxiv.org/abs/2007.07936

    >>> import grain_mix as gm
    >>> mix = gm.WeightMapMixBatch(
    ...     ClassMix("map", ignore=255), targets={"map": gm.LabelMap()}, label_key=None
    ... )
    >>> batch = {
    ...     "image": np.arange(2, dtype=np.uint8).repeat(64).reshape(2, 8, 8, 1),
    ...     "map": np.array([[0, 1, 2, 255], [4, 5, 6, 255]], np.uint8).repeat(16).reshape(2, 8, 8),
    ...     "mix_seed": np.array([1, 2], np.uint32),
    ... }
    >>> mix.map(batch)["map"][:, ::2, 0].tolist()  # 5 goes into one record, 0 into the other
    [[0, 5, 2, 255], [0, 5, 6, 255]]
    """

    name: str = field(metadata=checked_by(as_name))
    _: dataclasses.KW_ONLY
    ignore: int | None = field(default=None, metadata=checked_by(optional(CLASS_ID)))
    other: ClassVar[str] = "masks of objects [B, N, H, W] are for gm.maps.CopyPaste"

    @property
    def reads(self) -> tuple[str, ...]:
        """The name of the label maps."""
        return (self.name,)

    def _check_dtype(self, caller: str, name: str, x: Any) -> None:
        got = f"{name!r} is {x.dtype}"
        if not is_integer(x.dtype) and str(x.dtype) != "bool":
            fix = "cast ids with .astype(np.int32); of scores take jnp.argmax"
            fail(TypeError, caller, f"{got}, which ClassMix reads", "class ids, integers", fix)
        low, high = 0, 1
        if is_integer(x.dtype):
            held = np.iinfo(narrow_dtype(x.dtype))
            low, high = int(held.min), int(held.max)
        if self.ignore is not None and not low <= self.ignore <= high:
            expected = f"an id from {low} to {high}"
            fix = f"pass what the id became in {x.dtype}, or cast the field to int32"
            fail(ValueError, caller, f"{got}, with {self!r}", expected, fix)

    def __call__(
        self, key: jax.Array, lam: jax.Array, lengths: Lengths, own: Fields, partner: Fields
    ) -> jax.Array:
        """The weights of one record's own pixels."""
        ids = partner[self.name]
        coins = jax.random.bits(key, (256,), "uint32") >> 31 == 1
        pasted = coins[ids.astype(jnp.int32) & 255]
        if self.ignore is not None:
            pasted &= ids.astype(jnp.int32) != np.int64(self.ignore).astype(np.int32)
        return ~pasted


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class CopyPaste(_Reading):
    """Copy-paste: each object of the partner is pasted with a chance, at its place.

    The pixels of an object are those where its mask is not 0. Masks of zeros, such as padding,
    paste nothing, and how many masks there are changes no coin of the others. What a pasted object
    overlaps of the partner's other objects is shown too. Where nothing is pasted the record is its
    own.

    It does not use λ. The paper also flips and resizes both images before: do that before `Batch`.

    Args:
        masks: name of the field with the masks, numbers or `bool` `[B, N, H, W]`.
        chance: in [0, 1], that an object is pasted.

    See Ghiasi et al., Simple Copy-Paste, https://arxiv.org/abs/2012.07177

    >>> import grain_mix as gm
    >>> mix = gm.WeightMapMixBatch(CopyPaste("masks", chance=1.0), label_key=None)
    >>> masks = np.zeros((2, 3, 8, 8), bool)
    >>> masks[0, 0, :2, :2] = masks[1, 0, 4:, 4:] = masks[1, 1, 6:, :] = True
    >>> seeds = np.array([1, 2], np.uint32)
    >>> weights = mix.draw(seeds, (2, 8, 8, 3), fields={"masks": masks}).weights
    >>> bool((weights == ~masks[::-1].any(1)).all())
    True
    """

    masks: str = field(metadata=checked_by(as_name))
    _: dataclasses.KW_ONLY
    chance: float = field(default=0.5, metadata=checked_by(_parameters.chance))
    objects: ClassVar[bool] = True
    other: ClassVar[str] = "one map of ids [B, H, W] is for gm.maps.ClassMix"

    @property
    def reads(self) -> tuple[str, ...]:
        """The name of the masks."""
        return (self.masks,)

    def __call__(
        self, key: jax.Array, lam: jax.Array, lengths: Lengths, own: Fields, partner: Fields
    ) -> jax.Array:
        """The weights of one record's own pixels."""
        masks = partner[self.masks] != 0
        each = jnp.arange(len(masks), dtype=jnp.uint32)
        bits = jax.vmap(lambda k: jax.random.bits(jax.random.fold_in(key, k), (), "uint32"))(each)
        pasted = chance(bits, self.chance).reshape(-1, *[1] * len(lengths))
        return ~(masks & pasted).any(axis=0)


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class SaliencyMix(_Reading):
    """SaliencyMix: CutMix's box about the pixel where the partner is most salient.

    The box has CutMix's sides ⌊L·(1-λ)^(1/n)⌋, and is clipped to the image. Its centre is the
    first, row by row, of the partner's pixels with the largest value. Where the partner's field is
    the same everywhere, or has NaN, it is uniform, as CutMix's is. It goes by λ.

    Args:
        name: of the field with the saliency, numbers or `bool` `[B, H, W]`: how much each pixel
            matters, by whichever method.

    See Uddin et al., SaliencyMix, https://arxiv.org/abs/2006.01791

    >>> import grain_mix as gm
    >>> mix = gm.WeightMapMixBatch(SaliencyMix("saliency"), alpha=1.0, label_key=None)
    >>> saliency = np.zeros((2, 8, 8), np.float32)
    >>> saliency[0, 2, 5] = saliency[1, 7, 0] = 1
    >>> seeds = np.array([1, 2], np.uint32)
    >>> weights = mix.draw(seeds, (2, 8, 8, 3), fields={"saliency": saliency}).weights
    >>> weights[0, 7, 0].item(), weights[1, 2, 5].item()
    (False, False)
    """

    name: str = field(metadata=checked_by(as_name))
    uses_lam: ClassVar[bool] = True
    other: ClassVar[str] = "of several channels take the mean or the largest"

    @property
    def reads(self) -> tuple[str, ...]:
        """The name of the saliency."""
        return (self.name,)

    def __call__(
        self, key: jax.Array, lam: jax.Array, lengths: Lengths, own: Fields, partner: Fields
    ) -> jax.Array:
        """The weights of one record's own pixels."""
        saliency = partner[self.name]
        largest, size = saliency.max(), math.prod(lengths)
        has_peak = largest > saliency.min()  # false where both are NaN, as one NaN makes them
        # With argmax the whole of mixing took a third longer on a CPU.
        place = jnp.where(saliency == largest, jnp.arange(size).reshape(lengths), size).min()
        peak = jnp.unravel_index(place, lengths)
        uniform = jax.random.bits(key, (len(lengths),), "uint32")
        box_weight = ONE - to_fixed(lam).astype(jnp.uint32)
        inside = jnp.ones(lengths, bool)
        for axis, length in enumerate(lengths):
            centre = jnp.where(has_peak, peak[axis], uniform[axis] % np.uint32(length))
            [[start, stop]] = box_about(centre[None], length, box_weight[None], len(lengths))
            position = jax.lax.broadcasted_iota(jnp.int32, lengths, axis)
            inside &= (start <= position) & (position < stop)
        return ~inside

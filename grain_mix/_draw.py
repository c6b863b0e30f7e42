"""The parameters that records are mixed with."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from grain_mix._errors import describe, fail
from grain_mix._guards import into_jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Draw:
    """The parameters of one mixed batch of B records, each with k sources; a JAX pytree.

    A record that is not mixed has the shares (1, 0, ...) and an empty box. A kind of target gets
    the draw of one record: the same fields, without the axis B.

    Attributes:
        shares: `float32 [B, k]`, the weights of the sources in a label, the record's own first.
            They are also the fractions of the pixels that show each source (CutMix), or the weights
            of its pixels (MixUp). They sum to 1: exactly for MixUp, else up to float32's rounding.
            They are NaN for a record whose weight map has values outside [0, 1].
        sources: `int32 [B, k]`, the batch positions of the records that each is mixed of, itself
            first; `None` with a `partner_key`.
        box: `int32 [B, n, 2]`, `(start, stop)` along each of the n spatial axes of the box that
            comes from the partner, empty where a record is not cut; `None` where nothing is cut.
        weights: `[B, *lengths]`, `bool` or `float32`, the weight map that each record is mixed
            with: the weights of its own pixels along the spatial axes; `None` without a map.
        tiles: `int32 [B, 4, 2, 2]`, where in the mixed image each source is shown: `(start, stop)`
            along each spatial axis; `None` but for mosaics.
        shift: `int32 [B, 4, 2]`, how far each source is moved along each spatial axis; `None` but
            for mosaics.
    """

    shares: jax.Array
    sources: jax.Array | None = None
    box: jax.Array | None = None
    weights: jax.Array | None = None
    tiles: jax.Array | None = None
    shift: jax.Array | None = None

    @property
    def lam(self) -> jax.Array:
        """`float32 [B]`: a record's own share, `shares[..., 0]`."""
        return self.shares[..., 0]

    @property
    def partner(self) -> jax.Array | None:
        """`int32 [B]`: the second of two sources, `sources[..., 1]`."""
        if self.shares.shape[-1] != 2:
            raise AttributeError(
                f"Draw.partner: a draw of {self.shares.shape[-1]} sources; expected 2; use "
                "sources, of which [..., 0] is the record itself"
            )
        return None if self.sources is None else self.sources[..., 1]

    def weights_at(self, points: ArrayLike) -> jax.Array:
        """The weights of the sources at pixel positions of the mixed image, under every transform.

        Args:
            points: `[..., n]`, whole numbers or floats, along the n axes of the box or the map;
                for the draw of a batch `[B, ..., n]`. A pixel reaches from its position to the
                next whole number.

        Returns:
            `float32 [..., k]`: the shares of a blend; (0, 1) in a box and (1, 0) outside; (w, 1-w)
            under a map; 1 for the source of a mosaic's tile. Points outside the image are in no
            box; under maps and mosaics they count as the nearest pixel.

        >>> import grain_mix as gm
        >>> import numpy as np
        >>> draw = gm.CutMixBatch().draw(np.array([5, 6], np.uint32), (2, 8, 8, 3))
        >>> draw.box[0].tolist()
        [[3, 8], [0, 7]]
        >>> draw.weights_at(np.array([[[0.0, 0.0], [7.5, 6.0]]] * 2))[0].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        """
        with into_jax():
            positions = self._checked("weights_at", points).astype(jnp.float32)
            of_each = Draw._weights_at if self.shares.ndim == 1 else jax.vmap(Draw._weights_at)
            weights: jax.Array = of_each(self, positions)
        return weights

    def _weights_at(self, positions: jax.Array) -> jax.Array:
        """The same for one record and `float32`."""
        everywhere = jnp.broadcast_to(self.shares, (*positions.shape[:-1], *self.shares.shape))
        if self.tiles is not None:
            # The first tile that is the image has the others empty, so a point is in one tile.
            stop = self.tiles[:, :, 1].max(0).astype(jnp.float32)
            pixels = jnp.clip(jnp.floor(positions), 0, _same_rank(stop, positions) - 1)
            tiles = [_is_inside(tile, pixels) for tile in self.tiles]
            return jnp.stack(tiles, axis=-1).astype(jnp.float32)
        if self.weights is not None:
            last = np.array(self.weights.shape, np.float32) - 1
            pixels = jnp.clip(jnp.floor(positions), 0, _same_rank(last, positions))
            own = self.weights[tuple(jnp.moveaxis(pixels.astype(jnp.int32), -1, 0))]
            own = own.astype(jnp.float32)
            return jnp.stack([own, 1 - own], axis=-1)
        if self.box is None:
            return everywhere
        inside = _is_inside(self.box, positions)[..., None]
        partner = jnp.broadcast_to(np.array([0, 1], np.float32), everywhere.shape)
        return jnp.where(inside, partner, jnp.broadcast_to(self.outside_box(), everywhere.shape))

    def moved(self, points: ArrayLike, r: int) -> jax.Array:
        """Where points of source r lie in the mixed image.

        Args:
            points: `[..., n]`; for the draw of a batch `[B, ..., n]`, as in `weights_at`.
            r: the number of the source, 0 for the record itself.

        Returns:
            `float32 [..., n]`: `points + shift[r]`; without a mosaic the same points. A point is
            shown where it then lies in the image, and `weights_at` gives its source more than 0.
        """
        k = self.shares.shape[-1]
        if not (isinstance(r, int) and 0 <= r < k):
            fail(ValueError, "Draw.moved", f"r={r!r}", f"0 to {k - 1}", "0 is the record itself")
        with into_jax():
            positions = self._checked("moved", points).astype(jnp.float32)
            if self.shift is None:
                return positions
            shift = self.shift[..., r, :].astype(jnp.float32)
            between = positions.ndim - shift.ndim
            return positions + shift.reshape(*shift.shape[:-1], *[1] * between, shift.shape[-1])

    def outside_box(self) -> jax.Array:
        """`float32 [..., k]`: the weights of the sources outside the box; the shares of a blend."""
        if self.box is None:
            return self.shares
        with into_jax():
            is_cut = (self.box[..., 0] < self.box[..., 1]).all(-1)[..., None]
            own = jnp.broadcast_to(np.array([1, 0], np.float32), self.shares.shape)
            return jnp.where(is_cut, own, self.shares)

    def _checked(self, method: str, points: ArrayLike) -> jax.Array:
        positions = jnp.asarray(points)
        size, axes = self.shares.shape[:-1], None
        if self.box is not None:
            axes = self.box.shape[-2]
        elif self.shift is not None:
            axes = self.shift.shape[-1]
        elif self.weights is not None:
            axes = self.weights.ndim - len(size)
        if positions.shape[: len(size)] != size or positions.ndim <= len(size):
            fix = "give each record its points; jax.vmap gives the draw of one record"
            got = f"points is {describe(positions)} for the draw of {size[0]} records"
            fail(ValueError, f"Draw.{method}", got, f"[{size[0]}, ..., n]", fix)
        if axes is not None and positions.shape[-1] != axes:
            fix = "give the position along each axis of the box, in the order of spatial_axes"
            got = f"points is {describe(positions)}"
            fail(ValueError, f"Draw.{method}", got, f"[..., {axes}]", fix)
        return positions


def _same_rank(x: Any, like: jax.Array) -> jax.Array:
    return jnp.asarray(x).reshape(*[1] * (like.ndim - 1), -1)


def _is_inside(box: jax.Array, positions: jax.Array) -> jax.Array:
    """`bool [...]`: whether positions `[..., n]` are in a box `[n, 2]`."""
    start, stop = (_same_rank(bound, positions).astype(jnp.float32) for bound in box.T)
    return ((start <= positions) & (positions < stop)).all(-1)

"""Two maps of weights, as cheap as maps get, so that what is measured is the mixing."""

from typing import Any

import jax.numpy as jnp


def band(key: Any, lam: Any, lengths: tuple[int, ...]) -> Any:
    """`bool`: the lower part is the partner's."""
    rows = jnp.arange(lengths[0])[:, None] < lam * lengths[0]
    return jnp.broadcast_to(rows, lengths)


def fade(key: Any, lam: Any, lengths: tuple[int, ...]) -> Any:
    """Floats: the partner's weight grows to the right."""
    return jnp.broadcast_to(jnp.arange(lengths[1]) * (lam / lengths[1]), lengths)

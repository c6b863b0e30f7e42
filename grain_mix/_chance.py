"""Whether rare events are more than chance explains."""

import math

RAREST = 1e-7  # what is less likely is no chance


def is_no_chance(count: int, expected: float) -> bool:
    """Whether `count` rare events are more than chance explains, where so many are `expected`."""
    # Their number is about Poisson distributed. This bounds the probability of so many.
    return count > 0 and count * math.log(expected) - math.lgamma(count + 1) < math.log(RAREST)

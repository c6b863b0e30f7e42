"""What a field says about the image: one class for each kind."""

from grain_mix.targets._boxes import Boxes
from grain_mix.targets._labels import MultiHot, OneHot, Soft, Sparse, Stacked
from grain_mix.targets._maps import LabelMap, ValueMap
from grain_mix.targets._target import Space, Target

__all__ = [
    "Boxes",
    "LabelMap",
    "MultiHot",
    "OneHot",
    "Soft",
    "Space",
    "Sparse",
    "Stacked",
    "Target",
    "ValueMap",
]

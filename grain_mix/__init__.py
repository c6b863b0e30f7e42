"""MixUp and CutMix for Grain: mixed batches with soft labels, from the sampler's seeds alone.

The modules, in the order in which a batch meets them:

- `_sampler`: partners that do not depend on the number of hosts and workers
- `_seed`: one `uint32` per record, from Grain's generator or from the record's own values
- `_loader`: a DataLoader with its workers, before the devices
- `_transforms`, `_options`: the four transforms, and their parameters, checked when they are made
- `_mixing`: a batch is mixed: on the host, on devices, or inside a user's `jit`
- `_plan`: what a transform does with batches of one structure, decided once
- `_draw`, `_laws`, `_maps`: from seeds to λ, partner and box, or map
- `_partners`: neighbours in the batch
- `_formula`: the two formulas, as one, in the form that each platform runs best
- `_weigh`, `_words`: exact weighted means, for every dtype; in words of 32 bits for GPUs
- `maps`: maps of weights to import
- `targets`: what a field says about the image, one class for each kind
- `_functions`: the two formulas as public functions
- `_place`, `_stack`: on the host, or over the devices of a sharding; memory that XLA shares
- `_fields`, `_axes`, `_dtypes`, `_grid`: names, axes, dtypes, and the grid of λ
- `_trace`: what a user's function does when it is compiled
- `_calls`: what surrounds each call into JAX
- `_errors`: how an error reads
"""

from grain_mix import maps
from grain_mix._draw import Draw
from grain_mix._functions import cutmix, mixup
from grain_mix._laws import Beta, Larger, Law, Uniform
from grain_mix._loader import LoaderDataset
from grain_mix._memory import aligned_stack
from grain_mix._sampler import PairedSampler
from grain_mix._seed import RecordSeed
from grain_mix._transforms import CutMixBatch, MixBatch, MixUpBatch, MosaicBatch, WeightMapMixBatch
from grain_mix._version import __version__
from grain_mix.targets import (
    Boxes,
    LabelMap,
    MultiHot,
    OneHot,
    Soft,
    Space,
    Sparse,
    Stacked,
    Target,
    ValueMap,
)

__all__ = [
    "Beta",
    "Boxes",
    "CutMixBatch",
    "Draw",
    "LabelMap",
    "Larger",
    "Law",
    "LoaderDataset",
    "MixBatch",
    "MixUpBatch",
    "MosaicBatch",
    "MultiHot",
    "OneHot",
    "PairedSampler",
    "RecordSeed",
    "Soft",
    "Space",
    "Sparse",
    "Stacked",
    "Target",
    "Uniform",
    "ValueMap",
    "WeightMapMixBatch",
    "__version__",
    "aligned_stack",
    "cutmix",
    "maps",
    "mixup",
]

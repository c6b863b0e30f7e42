"""MixUp and CutMix for Grain: mixed batches with soft labels, from the sampler's seeds alone.

The modules, in the order in which a batch meets them:

- `_sampler`: groups of records that do not depend on the number of hosts and workers
- `_seed`: one `uint32` per record, from Grain's generator or from the record's own values
- `_loader`: a DataLoader with its workers, before the devices
- `_transforms`, `_options`: the transforms, and their parameters, checked when they are made
- `_run`: a batch is mixed: on the host, on devices, or inside a user's `jit`
- `_plan`, `_spec`: where the fields are in batches of one structure, found once; what comes out
- `_mixing`: bring, draw, move, mix; all that is compiled
- `_sources`: bring: who is mixed with whom
- `_rules`, `_laws`, `_bits`: draw: from seeds to a `Draw`, which is in `_draw`
- `_map_functions`, `_weight_maps`: a map's function is checked, and run; `maps`: those to import
- `_move`: move: images of a mosaic
- `_blend`, `_arithmetic`, `_packed`: mix: one formula, exact for every dtype, in three forms
- `targets`: what a field says about the image, one class for each kind
- `_functions`: the formulas as public functions; `_measures`: what to measure on mixed labels
- `_sharding`, `_memory`: on the host, or over the devices of a sharding; memory that XLA shares
- `_fields`, `_axes`, `_dtypes`, `_fixed_point`: names, axes, dtypes, and weights as whole numbers
- `_purity`, `_identity`: what a user's function does, and which parameters are alike
- `_guards`: what surrounds each call into JAX
- `_errors`, `_chance`: how an error reads, and what is no chance
"""

from grain_mix import maps
from grain_mix._draw import Draw
from grain_mix._functions import cutmix, mixup, mosaic
from grain_mix._laws import Beta, Larger, Law, Uniform
from grain_mix._loader import LoaderDataset
from grain_mix._measures import label_entropy, mixed_accuracy
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
    "label_entropy",
    "maps",
    "mixed_accuracy",
    "mixup",
    "mosaic",
]

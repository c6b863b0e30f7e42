"""MixUp and CutMix for Grain: mixed batches with soft labels, from the sampler's seeds alone.

The modules, in the order in which a batch meets them:

- `_sampler`: partners that do not depend on the number of hosts and workers
- `_seed`: one `uint32` per record, from Grain's generator or from the record's own values
- `_loader`: a DataLoader with its workers, before the devices
- `_transforms`: MixUpBatch, CutMixBatch, MixBatch: what is drawn, which parts are mixed, and where
- `_options`: the parameters of a transform, checked when it is made
- `_fields`: finding and replacing the fields of a batch
- `_maps`: maps of weights, from a user's function
- `_draw`: from seeds to λ, partner and box, or map
- `_parts`, `_labels`, `_boxes`: images and label maps, labels and pairs, boxes and instance masks:
  each checks its fields and mixes them
- `_formula`: the two formulas, as one, in the form that each platform runs best
- `_swap`: partners, and each record replaced by its partner
- `_weigh`, `_words`: exact weighted means, for every dtype; in words of 32 bits for GPUs
- `_blend`: the two formulas as public functions
- `_axes`: which axes of an image a box spans
- `_stack`: memory on the host that XLA shares
- `_place`: on the host, or over the devices of a sharding
- `_calls`: what surrounds each call into JAX
- `_errors`: how an error reads
"""

from grain_mix._blend import cutmix, mixup
from grain_mix._draw import Draw
from grain_mix._loader import LoaderDataset
from grain_mix._sampler import PairedSampler
from grain_mix._seed import RecordSeed
from grain_mix._stack import aligned_stack
from grain_mix._transforms import CutMixBatch, MixBatch, MixUpBatch, WeightMapMixBatch
from grain_mix._version import __version__

__all__ = [
    "CutMixBatch",
    "Draw",
    "LoaderDataset",
    "MixBatch",
    "MixUpBatch",
    "PairedSampler",
    "RecordSeed",
    "WeightMapMixBatch",
    "__version__",
    "aligned_stack",
    "cutmix",
    "mixup",
]

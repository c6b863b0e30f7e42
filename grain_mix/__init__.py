"""MixUp and CutMix for Grain: mixed batches with soft labels, from the sampler's seeds alone.

The modules, in the order in which a batch meets them:

- `_sampler`: partners that do not depend on the number of hosts and workers
- `_seed`: one `uint32` per record, from Grain's own generator
- `_loader`: a DataLoader with its workers, ahead of the devices
- `_draw`: from seeds to λ, partner and box
- `_blend`: from these to pixels and labels
- `_place`: on the host, or over the devices of a sharding
- `_batch`: the Grain transforms that string these together
- `_check`: what a user can get wrong, said clearly
"""

from grain_mix._blend import cutmix, mixup
from grain_mix._draw import Draw
from grain_mix._loader import LoaderDataset
from grain_mix._sampler import PairedSampler
from grain_mix._seed import RecordSeed
from grain_mix._transforms import CutMixBatch, MixBatch, MixUpBatch
from grain_mix._version import __version__

__all__ = [
    "CutMixBatch",
    "Draw",
    "LoaderDataset",
    "MixBatch",
    "MixUpBatch",
    "PairedSampler",
    "RecordSeed",
    "__version__",
    "cutmix",
    "mixup",
]

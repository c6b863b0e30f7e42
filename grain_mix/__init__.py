"""MixUp and CutMix for Grain: mixed batches with soft labels, from the sampler's seeds alone.

A batch takes these steps, one module each:

`_seed`  one `uint32` per record, from Grain's own generator
`_draw`  seeds to λ, partner and box
`_blend` partner and weights to pixels and labels
`_place` on the host, or over the devices of a sharding
`_check` what a user can get wrong, said clearly
`_batch` the Grain transforms that string these together
"""

from grain_mix._batch import CutMixBatch, MixBatch, MixUpBatch
from grain_mix._blend import cutmix, mixup
from grain_mix._draw import Draw
from grain_mix._seed import RecordSeed
from grain_mix._version import __version__

__all__ = [
    "CutMixBatch",
    "Draw",
    "MixBatch",
    "MixUpBatch",
    "RecordSeed",
    "__version__",
    "cutmix",
    "mixup",
]

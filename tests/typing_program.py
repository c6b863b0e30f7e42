"""A user's program that uses every public name, which mypy and pyright accept and Python runs."""

import dataclasses
from typing import Any

import grain
import jax
import numpy as np

import grain_mix as gm

version: str = gm.__version__


class Records:
    """Any data source of Grain's will do."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": np.full((8, 6, 3), index, np.uint8), "label": index}


sampler = grain.samplers.IndexSampler(16, shuffle=True, seed=0, num_epochs=1)
paired = gm.PairedSampler(sampler, shard_count=1, worker_count=0)
length: int = len(paired)
first: int = paired[0].index

seeded = gm.RecordSeed("mix_seed", id_key=("label",), seed=3)
mixup_batch = gm.MixUpBatch(alpha=0.4, num_classes=16, label_smoothing=0.1, mode="pair")
cutmix_batch = gm.CutMixBatch(1.0, minmax=(0.2, 0.8), num_classes=16, prob=0.5)
mix_batch = gm.MixBatch(
    0.8, 1.0, switch_prob=0.5, image_key=("image",), targets={"label": gm.Sparse(16)}
)


def halves(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    return jax.numpy.broadcast_to(jax.numpy.arange(lengths[1]) < lam * lengths[1], lengths)


by_map = gm.WeightMapMixBatch(halves, alpha=0.5, num_classes=16)
by_objects = gm.WeightMapMixBatch(gm.maps.CopyPaste("masks", chance=0.5), num_classes=16)
by_classes = gm.WeightMapMixBatch(gm.maps.ClassMix("map", ignore=255), num_classes=16)

detection = gm.MixBatch(
    image_key="inputs/image",
    targets={
        "objects/bbox": gm.Boxes("rel_yxyx", fields=("objects/label",), masks="m", min_visible=0.2)
    },
)
segmentation = gm.CutMixBatch(
    targets={"mask": gm.LabelMap(), "depth": gm.ValueMap(axes=(1, 2)), "caption": gm.Stacked()},
    label_key=None,
)
several = gm.MixUpBatch(
    gm.Beta(2, 8),
    image_key=0,
    targets={1: gm.OneHot(16, smoothing=0.1), 2: gm.Soft(), 3: gm.MultiHot(union=True)},
    valid_key=-2,
    partner_key="other",
)


@dataclasses.dataclass(frozen=True)
class Flags(gm.Target):
    """A kind of one's own."""

    adds = ("_weight",)

    def mix(self, sources: Any, draw: gm.Draw, space: gm.Space) -> Any:
        own, partner = sources
        """Both, weighted; `space.axes` are those of the box."""
        return {"": own | partner, "_weight": draw.weights_at(np.zeros(2))}


own_kind = gm.MixUpBatch(targets={"flags": Flags()}, label_key=None)

loader = grain.DataLoader(
    data_source=Records(),
    sampler=paired,
    shard_options=grain.sharding.NoSharding(),
    operations=[gm.RecordSeed(), grain.transforms.Batch(4, batch_fn=gm.aligned_stack)],
    worker_count=0,
)
dataset = gm.LoaderDataset(loader).map(mix_batch)
batch: dict[str, Any] = next(iter(dataset))
weights = batch["label_weight"]


def unmixed() -> dict[str, Any]:
    record: dict[str, Any] = next(iter(gm.LoaderDataset(loader)))
    return record


for transform in (mixup_batch, cutmix_batch):
    mixed: dict[str, Any] = transform.map(unmixed())
    again: dict[str, Any] = jax.jit(transform.mix)(dict(unmixed()))

drawn: gm.Draw = mixup_batch.draw(np.arange(4, dtype=np.uint32), (4, 8, 6, 3))
lam: jax.Array = drawn.lam
partner = drawn.partner
assert partner is not None
images = np.zeros((4, 8, 6, 3), np.float32)
blended: jax.Array = gm.mixup(images, lam, partner)
box = cutmix_batch.draw(np.arange(4, dtype=np.uint32), images.shape).box
if box is not None:
    pasted: jax.Array = gm.cutmix(images, box, partner, spatial_axes=(1, 2))
logits = np.zeros((4, 16), np.float32)
accuracy: jax.Array = gm.mixed_accuracy(logits, mixed["label"])
entropy: jax.Array = gm.label_entropy(mixed["label"])

print(version, length, first, weights.shape, blended.shape)

"""One of the processes that `test_multihost.py` starts: trains in a loop and tells what it saw.

python multihost_worker.py '{"count": 1, "output": "seen.json", ...}'
"""

import functools
import hashlib
import json
import pathlib
import sys
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from common import data_loader
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import grain_mix as gm

RECORDS = 320
BATCH_SIZE = 32  # of all processes together
CLASSES = 10


class Records:
    """Tiny random images; at module level, where Grain's worker processes find it."""

    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        image = rng.integers(256, size=(8, 6, 3), dtype=np.uint8)
        corners = np.sort(rng.integers(0, 7, (3, 2, 2)), axis=1).reshape(3, 4).astype(np.int32)
        return {
            "image": image,
            "label": index % CLASSES,
            "map": image[..., 0] // 64,
            "targets": {"boxes": corners, "class": rng.integers(0, 9, 3), "caption": index},
        }


def main(config: dict[str, Any]) -> None:
    if config["count"] > 1:
        jax.distributed.initialize(config["coordinator"], config["count"], config["id"])
    assert jax.process_count() == config["count"]

    devices = np.array(jax.devices())
    if config["count"] > 1:
        uneven = jax.sharding.Mesh(devices[:-1], "data")
        with pytest.raises(ValueError, match=r"slices .* by process: .* as many on each"):
            gm.MixBatch(sharding=NamedSharding(uneven, PartitionSpec("data")))
    if config["interleaved"]:  # so that each process has slices here and there
        devices = devices.reshape(config["count"], -1).T
    devices = devices.reshape(-1, config["replicas"])
    mesh = jax.sharding.Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    everywhere, sharding = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    batches = iter(load(config, sharding))

    @functools.partial(jax.jit, out_shardings=everywhere)
    def train_step(kernel: jax.Array, batch: Any) -> jax.Array:
        def mean_loss(kernel: jax.Array) -> jax.Array:
            pixels = batch["image"].reshape(len(batch["image"]), -1) / 255 - 0.5
            return -(jax.nn.log_softmax(pixels @ kernel) * batch["label"]).sum(axis=1).mean()

        return kernel - 0.2 * jax.grad(mean_loss)(kernel)

    @functools.partial(jax.jit, out_shardings=everywhere)
    def mix_by_key(key: jax.Array) -> jax.Array:
        """What a step with a key makes of a batch over all hosts, whose records are numbered."""
        numbers = jnp.arange(BATCH_SIZE, dtype=jnp.float32)[:, None]
        split = jax.lax.with_sharding_constraint(numbers, sharding)
        mixed: jax.Array = gm.MixUpBatch(label_key=None).mix({"image": split}, key=key)["image"]
        return mixed

    seen = []
    kernels = [jax.device_put(jnp.zeros((8 * 6 * 3, CLASSES)), everywhere)]
    for _ in range(config["steps"]):
        seen.append(next(batches))
        kernels.append(train_step(kernels[-1], seen[-1]))
        # XLA's CPU client takes 32 programs a device. Once that many wait, a host of few cores may
        # have no thread left for the one that the others' collective waits for (JAX 0.10.2).
        jax.block_until_ready(kernels[-4:][0])
    batches.close()

    report = {
        "records": [digests(batch) for batch in seen],
        "by_key": np.asarray(mix_by_key(jax.random.key(5))).tolist(),
        "kernel": np.asarray(kernels[-1]).tolist(),
    }
    pathlib.Path(config["output"]).write_text(json.dumps(report))


def load(config: dict[str, Any], sharding: NamedSharding) -> grain.IterDataset:
    # Processes whose devices repeat the same part of the batch load the same records.
    hosts_a_part = max(config["replicas"] // jax.local_device_count(), 1)
    host, hosts = jax.process_index() // hosts_a_part, jax.process_count() // hosts_a_part
    sampler = grain.samplers.IndexSampler(RECORDS, shuffle=True, seed=5)
    loader = data_loader(
        Records(),
        gm.RecordSeed(),
        grain.transforms.Batch(BATCH_SIZE // hosts, drop_remainder=True),
        sampler=gm.PairedSampler(
            sampler, shard_count=hosts, worker_count=config["workers"], group=4
        ),
        shard=(host, hosts),
        worker_count=config["workers"],
    )
    mix = gm.MixBatch(
        targets={
            "label": gm.OneHot(CLASSES),
            "map": gm.LabelMap(),
            "targets/caption": gm.Stacked(),
            "targets/boxes": gm.Boxes("xyxy", fields=("targets/class",)),
        },
        sharding=sharding,
    )
    # Each record's partner is its own copy, upside down.
    options: Any = {"num_classes": CLASSES, "sharding": sharding}
    by_partner = gm.MixUpBatch(gm.Beta(2, 8), partner_key="other", **options)
    by_map, mosaic = gm.WeightMapMixBatch(coins, **options), gm.MosaicBatch(**options)

    def both(batch: dict[str, Any]) -> dict[str, Any]:
        again = {key: batch[key] for key in ("image", "label", "mix_seed")}
        other = {"image": again["image"][:, ::-1], "label": again["label"]}
        return mix.map(batch) | {
            "by_map": by_map.map(again),
            "mosaic": mosaic.map(again),
            "by_partner": by_partner.map(again | {"other": other}),
        }

    return grain.experimental.ThreadPrefetchIterDataset(
        gm.LoaderDataset(loader).map(both), prefetch_buffer_size=4
    )


def coins(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, lengths) < lam


def digests(batch: dict[str, jax.Array]) -> list[str]:
    """A digest of each record that lies on this process's devices, whichever of them hold it."""
    found: dict[int, str] = {}
    fields = jax.tree.leaves(batch)
    # Image, label, two of the map, five of the targets; two of each that mixes them again.
    assert len(fields) == 15
    for shards in zip(*(field.addressable_shards for field in fields), strict=True):
        assert len({str(shard.index[0]) for shard in shards}) == 1
        first = shards[0].index[0].start or 0
        for i, values in enumerate(zip(*(np.asarray(s.data) for s in shards), strict=True)):
            joined = b"".join(value.tobytes() for value in values)
            digest = hashlib.sha256(joined).hexdigest()[:16]
            assert found.setdefault(first + i, digest) == digest, "replicas differ"
    return [found[row] for row in sorted(found)]


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags
    main(json.loads(sys.argv[1]))

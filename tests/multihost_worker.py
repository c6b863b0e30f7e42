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
import optax
import pytest
from absl import flags
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
    batches = iter(load(config, NamedSharding(mesh, PartitionSpec("data"))))
    everywhere = NamedSharding(mesh, PartitionSpec())

    optimizer = optax.sgd(0.05, momentum=0.9)
    params = {"kernel": jnp.zeros((8 * 6 * 3, CLASSES)), "bias": jnp.zeros(CLASSES)}
    state = jax.device_put((params, optimizer.init(params)), everywhere)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=everywhere)
    def train_step(state: Any, batch: Any) -> Any:
        def mean_loss(params: Any) -> jax.Array:
            pixels = batch["image"].reshape(len(batch["image"]), -1) / 255 - 0.5
            logits = pixels @ params["kernel"] + params["bias"]
            return optax.softmax_cross_entropy(logits, batch["label"]).mean()

        params, moments = state
        loss, gradients = jax.value_and_grad(mean_loss)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    @functools.partial(jax.jit, out_shardings=everywhere)
    def mix_by_key(key: jax.Array) -> jax.Array:
        """What a step with a key makes of a batch over all hosts, whose records are numbered."""
        numbers = jnp.arange(BATCH_SIZE, dtype=jnp.float32)[:, None]
        split = jax.lax.with_sharding_constraint(
            numbers, NamedSharding(mesh, PartitionSpec("data"))
        )
        mixed: jax.Array = gm.MixUpBatch(label_key=None).mix({"image": split}, key=key)["image"]
        return mixed

    seen = []
    losses: list[jax.Array] = []
    for _ in range(config["steps"]):
        batch = next(batches)
        state, loss = train_step(state, batch)
        seen.append(batch)
        losses.append(loss)
        # XLA's CPU client takes 32 programs a device. Once that many wait, a host of few cores may
        # have no thread left for the one that the others' collective waits for (JAX 0.10.2).
        jax.block_until_ready(losses[-4:][0])
    batches.close()

    params = jax.device_get(state[0])
    report = {
        "records": [digests(batch) for batch in seen],
        "by_key": np.asarray(mix_by_key(jax.random.key(5))).tolist(),
        "params": {key: value.tolist() for key, value in params.items()},
        "params_bytes": {key: value.tobytes().hex() for key, value in params.items()},
    }
    pathlib.Path(config["output"]).write_text(json.dumps(report))


def load(config: dict[str, Any], sharding: NamedSharding) -> grain.IterDataset:
    # Processes whose devices repeat the same part of the batch load the same records.
    hosts_a_part = max(config["replicas"] // jax.local_device_count(), 1)
    shard_options = grain.sharding.ShardOptions(
        jax.process_index() // hosts_a_part, jax.process_count() // hosts_a_part
    )
    sampler = grain.samplers.IndexSampler(RECORDS, shuffle=True, seed=5)
    loader = grain.DataLoader(
        data_source=Records(),
        sampler=gm.PairedSampler(
            sampler, shard_count=shard_options.shard_count, worker_count=config["workers"]
        ),
        operations=[
            gm.RecordSeed(),
            grain.transforms.Batch(BATCH_SIZE // shard_options.shard_count, drop_remainder=True),
        ],
        shard_options=shard_options,
        worker_count=config["workers"],
    )
    mix = gm.MixBatch(
        targets={
            "label": gm.OneHot(CLASSES),
            "map": gm.LabelMap(),
            "targets/caption": gm.Pair(),
            "targets/boxes": gm.Boxes("xyxy", fields=("targets/class",)),
        },
        sharding=sharding,
    )
    # Each record's partner is its own copy, upside down.
    by_partner = gm.MixUpBatch(
        gm.Beta(2, 8), num_classes=CLASSES, partner_key="other", sharding=sharding
    )
    by_map = gm.WeightMapMixBatch(coins, num_classes=CLASSES, sharding=sharding)

    def both(batch: dict[str, Any]) -> dict[str, Any]:
        again = {key: batch[key] for key in ("image", "label", "mix_seed")}
        other = {"image": again["image"][:, ::-1], "label": again["label"]}
        return mix.map(batch) | {
            "by_map": by_map.map(again),
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
    # Image, label, two of the map, five of the targets, two of a weight map and of other partners.
    assert len(fields) == 13
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

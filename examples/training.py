"""Shared by the training examples: the network, the batches, the train step, the checkpoints."""

import contextlib
import functools
import json
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import grain_mix as gm

MIXES: dict[str, functools.partial[Any]] = {
    "none": functools.partial(gm.MixUpBatch, prob=0.0),  # makes labels one-hot, mixes nothing
    "mixup": functools.partial(gm.MixUpBatch, alpha=0.4),
    "cutmix": functools.partial(gm.CutMixBatch, alpha=1.0),
    "both": functools.partial(gm.MixBatch, mixup_alpha=0.8, cutmix_alpha=1.0),
}


def over_devices(*axes: str) -> NamedSharding:
    """Returns the sharding of a batch for `"data"`; without axes, that of a copy on each device."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(*axes))


def load(
    records: Any,
    mix: Callable[[Any], Any],
    *,
    batch_size: int,
    seed: int,
    workers: int,
    augment: Sequence[grain.transforms.RandomMap] = (),
) -> grain.DatasetIterator:
    """Returns endless mixed batches of `batch_size` records, spread over all hosts' devices."""
    if batch_size % (2 * jax.device_count()):
        multiple = f"a multiple of {2 * jax.device_count()}, pairs for each device"
        raise SystemExit(f"--batch-size {batch_size}: expected {multiple}")
    shard_options = grain.sharding.ShardByJaxProcess()
    sampler = grain.samplers.IndexSampler(len(records), shuffle=True, seed=seed)
    batch = grain.transforms.Batch(batch_size // jax.process_count(), drop_remainder=True)
    loader = grain.DataLoader(
        data_source=records,
        sampler=gm.PairedSampler(
            sampler, shard_count=shard_options.shard_count, worker_count=workers
        ),
        # The run's own seed: Grain's generators of runs 0 and 1 differ only by one record's shift.
        operations=[*augment, gm.RecordSeed(seed=seed), batch],
        shard_options=shard_options,
        worker_count=workers,
        # Grain's defaults, 16 threads and 500 records ahead, are meant for remote files.
        read_options=grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * batch_size),
    )
    # After the workers, which have no devices, and before the train step.
    mixed = gm.LoaderDataset(loader).map(mix)
    return iter(grain.experimental.ThreadPrefetchIterDataset(mixed, prefetch_buffer_size=2))


class Net(nnx.Module):
    """Two convolutions and two dense layers, as in Flax's MNIST example.

    For pictures of more than 32 pixels a side, the first convolution has a larger stride.
    """

    def __init__(self, image_shape: Sequence[int], num_classes: int, rngs: nnx.Rngs) -> None:
        height, width, channels = image_shape
        step = max(1, min(height, width) // 32)
        self.conv1 = nnx.Conv(channels, 32, (3, 3), strides=step, rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        features = 64 * (-(-height // step) // 4) * (-(-width // step) // 4)
        self.dense1 = nnx.Linear(features, 256, rngs=rngs)
        self.dense2 = nnx.Linear(256, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits `[B, K]` for images `[B, H, W, C]` of values from 0 to 255."""
        x = images / 127.5 - 1
        x = nnx.avg_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.avg_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        x = nnx.relu(self.dense1(x.reshape(len(x), -1)))
        return self.dense2(x)


@nnx.jit
def train_step(net: Net, optimizer: nnx.Optimizer[Net], batch: Any) -> Any:
    """Updates the network. Returns the loss, averaged over the batch of all hosts."""

    def mean_loss(net: Net) -> Any:
        return optax.softmax_cross_entropy(net(batch["image"]), batch["label"]).mean()

    loss, gradients = nnx.value_and_grad(mean_loss)(net)
    optimizer.update(net, gradients)
    return loss


def keep_options(folder: pathlib.Path, options: Mapping[str, Any]) -> None:
    """Writes the options of a run beside its checkpoints. Refuses to resume with other options."""
    path = folder / "options.json"
    if path.exists():
        stored = json.loads(path.read_text())
        differences = [
            f"--{name.replace('_', '-')} was {stored[name]}, now it is {value}"
            for name, value in options.items()
            if name in stored and stored[name] != value
        ]
        if differences:
            fix = "pass the options it was started with, or another folder"
            raise SystemExit(f"{folder} holds another run: {'; '.join(differences)}; {fix}")
    elif jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        partly = path.with_suffix(".part")
        partly.write_text(json.dumps(options, indent=2) + "\n")
        os.replace(partly, path)


class Training:
    """A network, its optimizer and its batches. All three are saved and restored together."""

    def __init__(
        self,
        net: Net,
        optimizer: optax.GradientTransformation,
        batches: grain.DatasetIterator,
        checkpoints: pathlib.Path | None = None,
        save_every: int = 50,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.net = net
        self.batches = batches
        self._optimizer = nnx.Optimizer(net, optimizer, wrt=nnx.Param)
        self._everything = (net, self._optimizer)
        nnx.update(self._everything, jax.device_put(nnx.state(self._everything), over_devices()))
        self._manager: Any = None
        self.step = 0
        if checkpoints:
            keep_options(checkpoints, options or {})
            saving = ocp.CheckpointManagerOptions(save_interval_steps=save_every, max_to_keep=2)
            self._manager = ocp.CheckpointManager(checkpoints.absolute(), options=saving)
            self._restore()

    def run(self, steps: int) -> Iterator[tuple[Any, Any]]:
        """Trains up to step `steps`, or until Ctrl-C. Yields each batch and its loss."""
        loss = None
        with asked_to_stop() as stopped:
            while self.step < steps:
                batch = next(self.batches)
                jax.block_until_ready(loss)  # XLA's CPU client hangs if too many steps are queued
                loss = train_step(self.net, self._optimizer, batch)
                self.step += 1
                yield batch, loss
                if stopped() or (self._manager and self._manager.reached_preemption(self.step)):
                    break
                self._save()
        self._save(force=True)

    def close(self) -> None:
        """Ends the worker processes, and waits until the last checkpoint is written."""
        self.batches.close()
        if self._manager:
            self._manager.close()

    def _save(self, *, force: bool = False) -> None:
        """Saves if a checkpoint is due, or with `force`; never the same step twice."""
        if self._manager and self._manager.latest_step() != self.step:
            state = ocp.args.StandardSave(nnx.state(self._everything))
            batches = grain.checkpoint.CheckpointSave(self.batches)
            args = ocp.args.Composite(state=state, batches=batches)
            self._manager.save(self.step, args=args, force=force)

    def _restore(self) -> None:
        """Resumes from the last checkpoint, if there is one."""
        step = self._manager.latest_step()
        if step is not None:
            like = jax.tree.map(ocp.utils.to_shape_dtype_struct, nnx.state(self._everything))
            state = ocp.args.StandardRestore(like)
            batches = grain.checkpoint.CheckpointRestore(self.batches)
            args = ocp.args.Composite(state=state, batches=batches)
            nnx.update(self._everything, self._manager.restore(step, args=args).state)
            self.step = step


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Makes the first Ctrl-C wait for the step to end. A second one stops at once."""
    asked = threading.Event()

    def note(*_: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    if jax.process_count() > 1:  # all must stop at the same step: Orbax does that, on SIGTERM
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def predict(net: Net, images: np.ndarray) -> np.ndarray:
    """Returns log-probabilities `[N, K]`, of a thousand images at once, which bounds the memory."""
    parts = [images[start : start + 1000] for start in range(0, len(images), 1000)]
    return np.concatenate([np.asarray(_predict(net, part)) for part in parts])


@nnx.jit
def _predict(net: Net, images: Any) -> jax.Array:
    return nnx.log_softmax(net(images))

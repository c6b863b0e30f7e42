"""Trains a small network on mixed batches, on any number of hosts, and resumes where it stopped.

    python examples/multihost.py --local 2

starts two processes of two CPU devices each on this machine. On real hosts, start it once on each,
by a launcher that JAX knows, without arguments; or by hand, with the same line but for the id:

    srun python examples/multihost.py
    python examples/multihost.py --coordinator HOST0:1234 --count 2 --id 0

With `--checkpoint-dir`, the same line again goes on from the last checkpoint. With `--log-dir`,
each process writes what it mixed, a line for each step, which shows that nothing comes twice.
"""

import argparse
import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import zlib
from typing import Any

import data
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import flags
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tqdm import tqdm

import grain_mix as gm


def main() -> None:
    """Joins the other processes, then trains with them."""
    args = parse_arguments()
    if args.local and not args.coordinator:
        raise SystemExit(start_locally(args.local, args.devices))
    join(args)
    is_first = jax.process_index() == 0
    if is_first:
        platform = jax.default_backend()
        print(f"processes: {jax.process_count()}, devices: {jax.device_count()} ({platform})")

    mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
    over_all = NamedSharding(mesh, PartitionSpec("data"))
    on_each = NamedSharding(mesh, PartitionSpec())

    records, names = prepare(args.data_dir)
    batches = iter(load(records, len(names), over_all, args))

    graph, params = nnx.split(Net(len(names), nnx.Rngs(args.seed)))
    optimizer = optax.adam(3e-3)
    state = jax.device_put({"params": params, "optimizer": optimizer.init(params)}, on_each)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=on_each)
    def train_step(state: Any, batch: Any) -> Any:
        def mean_loss(params: Any) -> jax.Array:
            logits = nnx.merge(graph, params)(batch["image"])
            return jnp.mean(optax.softmax_cross_entropy(logits, batch["label"]))

        loss, gradients = jax.value_and_grad(mean_loss)(state["params"])
        updates, moments = optimizer.update(gradients, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "optimizer": moments}, loss

    checkpoints = Checkpoints(args)
    start, state = checkpoints.restore(state, batches)
    if is_first and start:
        print(f"resumed after step {start}")
    log = Log(args.log_dir)
    bar = tqdm(initial=start, total=args.steps, disable=None if is_first else True)
    loss = np.nan
    for step in range(start + 1, args.steps + 1):
        batch = next(batches)
        jax.block_until_ready(loss)  # one step ahead is enough, and XLA's CPU client hangs on many
        state, loss = train_step(state, batch)
        log.write(step, loss, batch)
        bar.update()
        if checkpoints.save(step, state, batches):
            break
    bar.close()
    batches.close()
    checkpoints.close()
    if is_first:
        print(f"loss {float(loss):.4f} after step {step}" if start < args.steps else "nothing left")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    by_hand = parser.add_argument_group("started by hand, on each host")
    by_hand.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is to listen")
    by_hand.add_argument("--count", type=int, help="how many processes there are")
    by_hand.add_argument("--id", type=int, help="which of them this is, from 0")
    here = parser.add_argument_group("all on this machine")
    here.add_argument("--local", type=int, metavar="N", help="start N processes")
    here.add_argument("--devices", type=int, default=2, help="CPU devices of each (default: 2)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64, help="of all hosts together")
    parser.add_argument("--workers", type=int, default=0, help="Grain worker processes per host")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", type=pathlib.Path, help=f"default: {data.CACHE}")
    parser.add_argument("--checkpoint-dir", type=pathlib.Path, help="one that all hosts share")
    parser.add_argument("--checkpoint-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--log-dir", type=pathlib.Path, help="a file of JSON lines per process")
    return parser.parse_args()


# --- processes ----------------------------------------------------------------------------------


def join(args: argparse.Namespace) -> None:
    """Meets the other processes; must come before anything that needs a device."""
    # How long a lost host keeps the others waiting; they end then, for the launcher to start anew.
    initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=30)
    if args.coordinator:
        initialize(args.coordinator, args.count, args.id)
        return
    try:
        initialize()
    except ValueError as error:  # JAX's word for: no launcher that it knows
        print(f"on its own, since JAX found no launcher: {error}")


def start_locally(count: int, devices: int) -> int:
    """Starts this script `count` times on loopback; if one fails, the others end, too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    xla_flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{xla_flags} --xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, *sys.argv, "--coordinator", address, "--count", str(count)]
    processes: list[subprocess.Popen[bytes]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for i in range(count):
            processes.append(subprocess.Popen([*command, "--id", str(i)], env=environment))
        while True:
            codes = [process.poll() for process in processes]
            if all(code == 0 for code in codes) or any(codes):
                # The first that failed, not those that it took along.
                return next((abs(code) for code in codes if code), 0)
            time.sleep(0.1)
    except KeyboardInterrupt:  # the terminal has told the others, too
        return 128 + signal.SIGINT
    finally:
        for process in processes:
            process.kill()  # JAX takes SIGTERM for a notice of preemption, and goes on
            process.wait()


# --- data ---------------------------------------------------------------------------------------


def prepare(data_dir: pathlib.Path | None) -> data.Dataset:
    """Opens the photographs, one process after another: the first on a disk has to write them."""
    for turn in range(jax.process_count()):
        if turn == jax.process_index():
            photographs = data.photographs(data_dir)
        multihost_utils.sync_global_devices(f"photographs {turn}")
    return photographs


def load(
    records: Any, num_classes: int, sharding: NamedSharding, args: argparse.Namespace
) -> grain.IterDataset:
    """Returns endless mixed batches, each spread over all devices."""
    if args.batch_size % jax.process_count():
        raise SystemExit(f"--batch-size {args.batch_size} for {jax.process_count()} processes")
    shard_options = grain.sharding.ShardByJaxProcess()
    sampler = grain.samplers.IndexSampler(len(records), shuffle=True, seed=args.seed)
    batch = grain.transforms.Batch(args.batch_size // jax.process_count(), drop_remainder=True)
    loader = grain.DataLoader(
        data_source=records,
        sampler=gm.PairedSampler(
            sampler, shard_count=shard_options.shard_count, worker_count=args.workers
        ),
        operations=[gm.RecordSeed(), batch],
        shard_options=shard_options,
        worker_count=args.workers,
    )
    # Behind the workers, which have no devices, and ahead of the train step.
    mix = gm.MixBatch(num_classes=num_classes, sharding=sharding)
    mixed = gm.LoaderDataset(loader).map(mix)
    return grain.experimental.ThreadPrefetchIterDataset(mixed, prefetch_buffer_size=2)


# --- model --------------------------------------------------------------------------------------


class Net(nnx.Module):
    """Two convolutions."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(3, 16, (5, 5), strides=4, rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(32, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits `[B, K]` for images `[B, H, W, 3]`."""
        x = nnx.relu(self.first(images / 127.5 - 1))
        x = nnx.relu(self.second(x))
        return self.head(x.mean(axis=(1, 2)))


# --- checkpoints and log ------------------------------------------------------------------------


class Checkpoints:
    """Parameters, optimizer state and each process's place in the data, saved together."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._manager: Any = None
        if args.checkpoint_dir:
            options = ocp.CheckpointManagerOptions(
                save_interval_steps=args.checkpoint_every,
                save_on_steps=[args.steps],
                max_to_keep=2,
            )
            self._manager = ocp.CheckpointManager(args.checkpoint_dir.absolute(), options=options)

    def restore(self, state: Any, batches: grain.DatasetIterator) -> tuple[int, Any]:
        """Returns the last checkpoint's step and state, and moves `batches` there."""
        step = self._manager and self._manager.latest_step()
        if step is None:
            return 0, state
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like),
                batches=grain.checkpoint.CheckpointRestore(batches),
            ),
        )
        return step, restored.state

    def save(self, step: int, state: Any, batches: grain.DatasetIterator) -> bool:
        """Saves when it is time; tells whether to stop, as a launcher asks with SIGTERM."""
        if self._manager is None:
            return False
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                batches=grain.checkpoint.CheckpointSave(batches),
            ),
        )
        return bool(self._manager.reached_preemption(step))

    def close(self) -> None:
        """Waits for what is still being written."""
        if self._manager:
            self._manager.close()


class Log:
    """For each step the loss, and a checksum of each record that this process mixed."""

    def __init__(self, folder: pathlib.Path | None) -> None:
        self._file = None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"process_{jax.process_index()}-of-{jax.process_count()}.jsonl"
            self._file = (folder / name).open("a", buffering=1)

    def write(self, step: int, loss: jax.Array, batch: dict[str, jax.Array]) -> None:
        """Writes a line; this waits for the step."""
        if self._file is None:
            return
        images, labels = (
            np.concatenate([shard.data for shard in batch[key].addressable_shards])
            for key in ("image", "label")
        )
        records = [
            f"{zlib.crc32(label, zlib.crc32(image)):08x}"
            for image, label in zip(images, labels, strict=True)
        ]
        line = {"step": step, "loss": float(loss), "records": records}
        self._file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags
    main()

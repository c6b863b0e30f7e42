"""Trains a small network on mixed batches, on any number of hosts, and resumes where it stopped.

    python examples/multihost.py --local 2

starts two processes of two CPU devices each on this machine. On real hosts, start it once on each.
A launcher that JAX knows needs no arguments. By hand, only the id differs between the lines:

    srun python examples/multihost.py
    python examples/multihost.py --coordinator HOST0:1234 --count 2 --id 0

With `--checkpoint-dir`, running the same line again resumes from the last checkpoint. With
`--log-dir`, each process writes one line per step with what it mixed, which shows that no record
comes twice.
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

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

import grain_mix as gm


def main() -> None:
    """Joins the other processes, then trains with them."""
    args = parse_arguments()
    # What the extra `examples` installs. Not above, so that `--help` works without it.
    import data
    import optax
    import training
    from flax import nnx
    from tqdm import tqdm

    if args.local and not args.coordinator:
        raise SystemExit(start_locally(args.local, args.devices))
    join(args)
    is_first = jax.process_index() == 0
    if is_first:
        platform = jax.default_backend()
        print(f"processes: {jax.process_count()}, devices: {jax.device_count()} ({platform})")

    (records, names), (test, _) = (prepare(args.data_dir, split) for split in ("train", "test"))
    mix = gm.MixBatch(num_classes=len(names), sharding=training.over_devices("data"))
    run = training.Training(
        training.Net(records[0]["image"].shape, len(names), nnx.Rngs(args.seed)),
        optax.adam(1e-3),
        training.load(
            records, mix, batch_size=args.batch_size, seed=args.seed, workers=args.workers
        ),
        checkpoints=args.checkpoint_dir,
        save_every=args.checkpoint_every,
        options={name: getattr(args, name) for name in ("batch_size", "workers", "seed")},
    )
    if is_first and run.step:
        print(f"resumed after step {run.step}")
    log = Log(args.log_dir)
    loss = None
    with tqdm(initial=run.step, total=args.steps, unit=" steps", disable=not is_first) as bar:
        for batch, loss in run.run(args.steps):
            log.write(run.step, loss, batch)
            bar.update()
    run.close()
    images, labels = data.as_arrays(test)
    predicted = np.asarray(training.predict(run.net, images)).argmax(axis=1)
    if is_first:
        print("nothing left" if loss is None else f"loss {float(loss):.4f} after step {run.step}")
        print(f"{len(labels)} clean test records: accuracy {np.mean(predicted == labels):.2%}")


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
    parser.add_argument("--batch-size", type=int, default=64, help="summed over all hosts")
    parser.add_argument("--workers", type=int, default=0, help="Grain worker processes per host")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", type=pathlib.Path, help="default: ~/.cache/grain_mix")
    parser.add_argument("--checkpoint-dir", type=pathlib.Path, help="a folder that all hosts share")
    parser.add_argument("--checkpoint-every", type=int, default=50, metavar="STEPS")
    parser.add_argument(
        "--log-dir", type=pathlib.Path, help="where each process writes a file of JSON lines"
    )
    return parser.parse_args()


# --- processes ----------------------------------------------------------------------------------


def join(args: argparse.Namespace) -> None:
    """Connects to the other processes. Must come before anything that needs a device."""
    # After this many seconds without a sign of one host, the others stop, and the launcher can
    # start all of them again.
    initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=30)
    if args.coordinator:
        initialize(args.coordinator, args.count, args.id)
        return
    try:
        initialize()
    except ValueError as error:  # JAX knows no launcher here
        print(f"running as a single process, since JAX found no launcher: {error}")


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
                # The code of the first that failed; the others only failed after it.
                return next((abs(code) for code in codes if code), 0)
            time.sleep(0.1)
    except KeyboardInterrupt:  # the terminal has told the others, too
        return 128 + signal.SIGINT
    finally:
        for process in processes:
            process.kill()  # for JAX, SIGTERM is a preemption notice, and it goes on
            process.wait()


# --- data and log -------------------------------------------------------------------------------


def prepare(data_dir: pathlib.Path | None, split: str) -> Any:
    """Opens the photographs, one process after another. The first on each disk writes them."""
    import data

    for turn in range(jax.process_count()):
        if turn == jax.process_index():
            photographs = data.photographs(data_dir, split)
        multihost_utils.sync_global_devices(f"{split} {turn}")
    return photographs


class Log:
    """A file with the loss of each step, and a checksum of each record that this process mixed."""

    def __init__(self, folder: pathlib.Path | None) -> None:
        self._file = None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"process_{jax.process_index()}-of-{jax.process_count()}.jsonl"
            self._file = (folder / name).open("a", buffering=1)

    def write(self, step: int, loss: jax.Array, batch: dict[str, jax.Array]) -> None:
        """Writes one line. Waits for the step to finish."""
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

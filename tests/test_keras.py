"""Keras on JAX takes the tuples that come out as they are."""

import os
import subprocess
import sys

PROGRAM = """
import grain, jax, keras, numpy as np
import grain_mix as gm
from jax.sharding import AxisType, NamedSharding, PartitionSpec

rng = np.random.default_rng(0)
source = [(rng.random((8, 8, 3), np.float32), i % 4) for i in range(64)]
mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,))
for sharding in (None, NamedSharding(mesh, PartitionSpec("data"))):
    mix = gm.MixBatch(num_classes=4, image_key=0, label_key=1, sharding=sharding)
    dataset = grain.MapDataset.source(source).seed(0).shuffle().random_map(gm.RecordSeed())
    batches = dataset.batch(16, drop_remainder=True).to_iter_dataset().map(mix)
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    history = model.fit(batches, epochs=2, verbose=0)
    losses = history.history["loss"]
    assert len(losses) == 2 and np.isfinite(losses).all(), losses
    image, label = next(iter(batches))
    assert label.shape == (16, 4)
print("keras", keras.__version__, keras.backend.backend())
"""


def test_fit_takes_mixed_tuples() -> None:
    environment = os.environ | {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("keras 3")
    assert done.stdout.endswith("jax\n")

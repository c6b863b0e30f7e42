"""The Python snippets of the README are one program, from the records to the train step."""

import pathlib
import re

import jax
import numpy as np

import grain_mix as gm

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_snippets(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (300, 8, 6, 3), np.uint8)
    names = {"source": [{"image": image, "label": i % 10} for i, image in enumerate(images)]}
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) == 9
    for i, snippet in enumerate(snippets):
        exec(compile(snippet, str(README), "exec"), names)
        if i == 0:
            first = names["batch"]

    assert (first["image"].shape, first["image"].dtype) == ((128, 8, 6, 3), np.uint8)
    assert (first["label"].shape, first["label"].dtype) == ((128, 10), np.float32)
    second = names["batch"]
    assert (second["image"].shape, second["image"].sharding) == ((64, 8, 6, 3), names["sharding"])
    assert next(iter(names["dataset"]))["label"].sharding == names["sharding"]
    assert names["statistics"][1].shape == (10,)
    assert names["mesh"].devices.size == jax.device_count() > 1
    assert np.isfinite(names["loss"])

    seeded = {
        "image": images[:64],
        "label": rng.integers(0, 10, 64),
        "mix_seed": rng.integers(2**32, size=64, dtype=np.uint32),
    }
    logits = rng.normal(size=(64, 10)).astype(np.float32)
    soft = gm.MixBatch(num_classes=10).map(seeded)
    sparse = gm.MixBatch(num_classes=10, sparse_labels=True).map(seeded)
    np.testing.assert_allclose(
        names["soft_loss"](logits, soft), names["sparse_loss"](logits, sparse), rtol=1e-5
    )


def test_the_public_names_are_documented() -> None:
    for name in gm.__all__:
        assert name == "__version__" or getattr(gm, name).__doc__

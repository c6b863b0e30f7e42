"""Where the examples get their records: what TFDS prepared, and never the network unasked."""

import pathlib
from collections.abc import Iterator
from typing import Any

import data
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), np.uint8)


class LookAlike(tfds.image_classification.Cifar10, skip_registration=True):
    """TFDS's own CIFAR-10 builder, its name, version, features and files, fed noise."""

    name = "cifar10"

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        self.info.features["label"].names = NAMES
        return {"train": self._generate_examples("train_", "")}

    def _generate_examples(self, prefix: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, pixels in enumerate(noise()):
            # A PIL image, since TFDS encodes arrays with TensorFlow.
            yield i, {"id": f"{prefix}{i:05d}", "image": Image.fromarray(pixels), "label": i % 10}


def test_cifar10_as_tfds_prepares_it(tmp_path: pathlib.Path) -> None:
    tfds.disable_progress_bar()
    LookAlike(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    records, names = data.cifar10(tmp_path)
    assert list(names) == NAMES
    read = [records[i] for i in range(len(records))]
    assert all(record.keys() == {"image", "label"} for record in read)
    # TFDS shuffles when it writes.
    labels = {record["image"].tobytes(): record["label"] for record in read}
    assert labels == {pixels.tobytes(): i % 10 for i, pixels in enumerate(noise())}


def test_unprepared_cifar10_leaves_the_network_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("network"))
    with pytest.raises(SystemExit, match="--download") as error:
        data.cifar10(tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())

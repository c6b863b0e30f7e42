"""The examples' data sets: prepared by TFDS, without an unasked download."""

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import data
import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from PIL import Image

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def noise(split: str) -> np.ndarray:
    count, seed = {"train": (128, 0), "test": (32, 1)}[split]
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


class LookAlike(tfds.image_classification.Cifar10, skip_registration=True):
    """TFDS's own CIFAR-10 builder, its name, version, features and files, fed noise."""

    name = "cifar10"

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        self.info.features["label"].names = NAMES
        return {split: self._generate_examples(split, "") for split in ("train", "test")}

    def _generate_examples(self, prefix: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, pixels in enumerate(noise(prefix)):
            # A PIL image, since TFDS encodes arrays with TensorFlow.
            yield i, {"id": f"{prefix}_{i:05d}", "image": Image.fromarray(pixels), "label": i % 10}


def prepare_look_alike(folder: Path) -> None:
    tfds.disable_progress_bar()
    LookAlike(data_dir=folder).download_and_prepare(file_format="array_record")


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_as_tfds_prepares_it(split: str, tmp_path: Path) -> None:
    prepare_look_alike(tmp_path)
    records, names = data.cifar10(tmp_path, split)
    assert list(names) == NAMES
    read = [records[i] for i in range(len(records))]
    assert all(record.keys() == {"image", "label"} for record in read)
    # TFDS shuffles when it writes.
    labels = {record["image"].tobytes(): record["label"] for record in read}
    assert labels == {pixels.tobytes(): i % 10 for i, pixels in enumerate(noise(split))}


def test_unprepared_cifar10_leaves_the_network_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("network"))
    with pytest.raises(SystemExit, match="--download") as error:
        data.cifar10(tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    expected = collections.Counter()
    for image, label in zip(images, labels, strict=True):
        expected[np.rint(image * 255 / 16).astype(np.uint8).tobytes(), label] += 1
    found = collections.Counter()
    for split, size in {"train": 1437, "test": 360}.items():
        records, names = data.digits(tmp_path, split)
        assert list(names) == [str(i) for i in range(10)]
        assert len(records) == size
        for i in range(size):
            assert records[i]["image"].shape == (8, 8, 1)
            found[records[i]["image"].tobytes(), records[i]["label"]] += 1
    assert found == expected
    # What is being prepared is said once, and not among what a script prints.
    out, err = capsys.readouterr()
    assert (out, err.count("into")) == ("", 1)

"""The examples' data sets: prepared by TFDS, without an unasked download."""

import collections
import gzip
import pickle
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import data
import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from common import Rng
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


IDX = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def idx(array: np.ndarray) -> bytes:
    """http://yann.lecun.com/exdb/mnist: type and number of axes, lengths, values."""
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes()


def write_clothes(
    folder: Path, rng: Rng, packed: bool = True, train: int = 64, test: int = 20
) -> dict[tuple[str, str], np.ndarray]:
    """Noise in the four files of Fashion-MNIST."""
    folder.mkdir()
    written = {}
    for (split, what), name in IDX.items():
        count = {"train": train, "test": test}[split]
        array = rng.integers(0, 256, (count, 28, 28), np.uint8)
        if what == "labels":
            array = rng.integers(0, 10, count, np.uint8)
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
        written[split, what] = array
    return written


def in_any_order(records: Any) -> collections.Counter[tuple[bytes, int]]:
    found = collections.Counter()
    for record in (records[i] for i in range(len(records))):
        assert record.keys() == {"image", "label"}
        assert (record["image"].shape, record["image"].dtype) == ((28, 28, 1), np.uint8)
        found[record["image"].tobytes(), record["label"]] += 1
    return found


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_from_a_folder(packed: bool, tmp_path: Path, rng: Rng) -> None:
    written = write_clothes(tmp_path / "files", rng, packed)
    for split in ("train", "test"):
        records, names = data.fashion_mnist(split=split, folder=tmp_path / "files")
        assert (names[0], names[9], len(names)) == ("T-shirt/top", "Ankle boot", 10)
        images, labels = data.as_arrays(pickle.loads(pickle.dumps(records)))
        np.testing.assert_array_equal(images[..., 0], written[split, "images"])
        np.testing.assert_array_equal(labels, written[split, "labels"])
        # Grain compares it when a run resumes, in another process and with a moved folder.
        assert repr(records) == f"_Arrays(name='fashion_mnist, {split}')"


def test_fashion_mnist_as_tfds_prepares_it(tmp_path: Path, rng: Rng) -> None:
    written = write_clothes(tmp_path / "files", rng)

    class Downloaded(data.FashionMnist, skip_registration=True):
        name = "fashion_mnist"

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            def download(urls: dict[str, list[str]]) -> dict[str, list[Path]]:
                assert {url for pair in urls.values() for url in pair} <= set(self.url_infos)
                return {
                    split: [tmp_path / "files" / Path(url).name for url in pair]
                    for split, pair in urls.items()
                }

            return super()._split_generators(types.SimpleNamespace(download=download))

    tfds.disable_progress_bar()
    Downloaded(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    for split in ("train", "test"):
        records, names = data.fashion_mnist(tmp_path, split)
        assert names[9] == "Ankle boot"
        images, labels = written[split, "images"], written[split, "labels"]
        expected = zip(images, labels.tolist(), strict=True)
        assert in_any_order(records) == collections.Counter((a.tobytes(), b) for a, b in expected)


def test_a_wrong_folder_is_an_error(tmp_path: Path, rng: Rng) -> None:
    folder = tmp_path / "files"
    write_clothes(folder, rng)
    images, labels = (folder / f"{IDX['train', what]}.gz" for what in ("images", "labels"))
    whole = images.read_bytes()
    pixels = np.zeros((64, 28, 28), np.uint8)
    for content in [
        whole[:-30],  # a download that broke off
        idx(pixels)[:-1],
        idx(pixels) + b"0",
        idx(pixels[0]),
        idx(pixels)[:2] + b"\t" + idx(pixels)[3:],  # of int8
        b"<html>not found</html>",
        b"",
    ]:
        images.write_bytes(content)
        with pytest.raises(SystemExit, match="cut short, or another kind of file; expected IDX"):
            data.fashion_mnist(folder=folder)
    images.write_bytes(idx(pixels[:63]))
    with pytest.raises(SystemExit, match=r"63 images in .*, 64 labels in .*; expected as many"):
        data.fashion_mnist(folder=folder)
    labels.unlink()
    with pytest.raises(SystemExit, match=r"no train-labels-idx1-ubyte\.gz; expected train-images"):
        data.fashion_mnist(folder=folder)


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_unprepared_data_leaves_the_network_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("network"))
    with pytest.raises(SystemExit, match="--download") as error:
        getattr(data, name)(tmp_path)
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

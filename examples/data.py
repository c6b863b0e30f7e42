"""Where the examples get their records: TFDS, read by random access and without TensorFlow.

`photographs` and `digits` work offline: their pictures are installed with scikit-image and
scikit-learn. `cifar10` and `fashion_mnist` are downloaded, but only when you ask for it.
`fashion_mnist` also reads a folder of the four files as they are published.
"""

import contextlib
import dataclasses
import gzip
import importlib.resources
import io
import math
import pathlib
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

CACHE = pathlib.Path("~/.cache/grain_mix").expanduser()


class Dataset(NamedTuple):
    """Records for `grain.DataLoader`, each an `image` [H, W, C] uint8 and an integer `label`."""

    source: Any
    names: tuple[str, ...]


def photographs(data_dir: pathlib.Path | None = None, split: str = "train") -> Dataset:
    """Random crops of ten photographs, one class each: 1600 in "train", 400 in "test"."""
    builder = Photographs(data_dir=data_dir or CACHE)
    return _open_offline(builder, split, f"Cutting crops out of {len(PICTURES)} photographs")


def digits(data_dir: pathlib.Path | None = None, split: str = "train") -> Dataset:
    """The handwritten digits of scikit-learn, 8 by 8 and grey: 1437 in "train", 360 in "test"."""
    return _open_offline(Digits(data_dir=data_dir or CACHE), split, "Writing scikit-learn's digits")


def cifar10(
    data_dir: pathlib.Path | None = None, split: str = "train", *, download: bool = False
) -> Dataset:
    """CIFAR-10 as TFDS prepares it. Nothing is downloaded unless `download=True`."""
    fix = "--download fetches it (162 MiB, by network)"
    return _open_tfds(Cifar10(data_dir=data_dir or CACHE), split, "CIFAR-10", fix, download)


def fashion_mnist(
    data_dir: pathlib.Path | None = None,
    split: str = "train",
    *,
    folder: pathlib.Path | None = None,
    download: bool = False,
) -> Dataset:
    """Fashion-MNIST, clothes of 28 by 28 pixels and grey: 60,000 in "train", 10,000 in "test".

    From `folder`, which holds the four published IDX files, packed by gzip or not
    (https://github.com/zalandoresearch/fashion-mnist; Debian's package `dataset-fashion-mnist`
    has them in /usr/share/datasets/fashion-mnist), or else as TFDS prepares it. Nothing is
    downloaded unless `download=True`.
    """
    builder = FashionMnist(data_dir=data_dir or CACHE)
    if folder is None:
        fix = "--download fetches it (30 MiB, by network), or name its --folder"
        return _open_tfds(builder, split, "Fashion-MNIST", fix, download)
    names = tuple(builder.info.features["label"].names)
    return Dataset(_Arrays(f"fashion_mnist, {split}", *read_idx_pair(folder, split)), names)


# Each class and its file in an installed package. The file is opened directly, because the
# package's own loader may download it.
PICTURES = {
    "astronaut": "skimage/data/astronaut.png",
    "cat": "skimage/data/chelsea.png",
    "coffee": "skimage/data/coffee.png",
    "flower": "sklearn/datasets/images/flower.jpg",
    "galaxies": "skimage/data/hubble_deep_field.jpg",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "retina": "skimage/data/retina.jpg",
    "rocket": "skimage/data/rocket.jpg",
    "temple": "sklearn/datasets/images/china.jpg",
    "tissue": "skimage/data/ihc.png",
}


def as_arrays(records: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images `[N, H, W, C]` and class ids `[N]`, in the order of the records."""
    everything = [records[i] for i in range(len(records))]
    return (
        np.stack([record["image"] for record in everything]),
        np.array([record["label"] for record in everything]),
    )


IDX_FILES = {
    split: (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    for split, prefix in {"train": "train", "test": "t10k"}.items()
}


def read_idx_pair(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images `[N, H, W, 1]` and class ids `[N]`, both uint8, from a folder of IDX files."""
    paths = [folder / name for name in IDX_FILES[split]]
    packed = [path.with_name(f"{path.name}.gz") for path in paths]
    found = [path if path.exists() else gz for path, gz in zip(paths, packed, strict=True)]
    if missing := [path.name for path in found if not path.exists()]:
        expected = " and ".join(path.name for path in packed)
        raise SystemExit(
            f"{folder}: no {' and no '.join(missing)}; expected {expected}, or the same without"
            " .gz; name the folder that holds the four files of Fashion-MNIST"
        )
    images, labels = (read_idx(path, ndim) for path, ndim in zip(found, (3, 1), strict=True))
    if len(images) != len(labels):
        raise SystemExit(
            f"{folder}: {len(images)} images in {found[0].name}, {len(labels)} labels in"
            f" {found[1].name}; expected as many; take all files from one place"
        )
    return images[..., None], labels


def read_idx(path: pathlib.Path, ndim: int) -> np.ndarray:
    """Returns the uint8 array of an IDX file (http://yann.lecun.com/exdb/mnist), packed or not.

    The file has the bytes 0, 0, 8 (for uint8) and the number of axes, then each axis' length in
    four bytes, largest first, then the values.
    """
    raw = path.read_bytes()
    start = 4 + 4 * ndim
    try:
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        shape = np.frombuffer(raw, ">u4", ndim, 4).tolist()
        is_whole = raw[:4] == bytes([0, 0, 8, ndim]) and len(raw) - start == math.prod(shape)
    except (EOFError, OSError, ValueError, zlib.error):
        is_whole = False
    if not is_whole:
        came = "is cut short, or another kind of file"
        raise SystemExit(f"{path}: {came}; expected IDX, uint8, {ndim} axes; copy the file again")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


class Photographs(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Square crops, a third to three quarters of the picture's shorter side, scaled to `SIZE`."""

    VERSION = tfds.core.Version("1.0.0")
    SIZE = 96

    def _info(self) -> tfds.core.DatasetInfo:
        # `Tensor`, since `Image` needs TensorFlow to write arrays.
        image = tfds.features.Tensor(
            shape=(self.SIZE, self.SIZE, 3), dtype=np.uint8, encoding="bytes"
        )
        label = tfds.features.ClassLabel(names=list(PICTURES))
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(0, 160), "test": self._generate_examples(1, 40)}

    def _generate_examples(self, seed: int, crops: int) -> Iterator[tuple[str, dict[str, Any]]]:
        rng = np.random.default_rng(seed)
        for name, path in PICTURES.items():
            package, _, file = path.partition("/")
            with (importlib.resources.files(package) / file).open("rb") as opened:
                picture = Image.open(opened).convert("RGB")
            for i in range(crops):
                side = rng.uniform(1 / 3, 3 / 4) * min(picture.size)
                left, top = rng.uniform(0, np.subtract(picture.size, side))
                box = (left, top, left + side, top + side)
                crop = picture.resize((self.SIZE, self.SIZE), box=box)
                yield f"{name}-{i}", {"image": np.asarray(crop), "label": name}


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Every fifth digit is for the test."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8, encoding="bytes")
        label = tfds.features.ClassLabel(num_classes=10)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {
            "train": self._generate_examples(lambda i: i % 5 != 0),
            "test": self._generate_examples(lambda i: i % 5 == 0),
        }

    def _generate_examples(
        self, belongs: Callable[[int], bool]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        import sklearn.datasets  # takes seconds, and is needed once

        images, labels = sklearn.datasets.load_digits(return_X_y=True)
        images = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
        for i in filter(belongs, range(len(images))):
            yield i, {"image": images[i], "label": int(labels[i])}


class Cifar10(tfds.image_classification.Cifar10, skip_registration=True):  # type: ignore[call-arg]
    """TFDS's CIFAR-10, file for file, but unpacked and written without TensorFlow."""

    name = "cifar10"
    url_infos = tfds.image_classification.Cifar10.url_infos  # the download's checksum

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        info = self._cifar_info
        with tarfile.open(dl_manager.download(info.url)) as tar:
            train, test, names = (
                [tar.extractfile(info.prefix + file).read() for file in files]  # type: ignore[union-attr]
                for files in (info.train_files, info.test_files, info.label_files)
            )
        self.info.features["label"].names = names[0].decode().split()
        return {
            "train": self._generate_examples("train_", b"".join(train)),
            "test": self._generate_examples("test_", b"".join(test)),
        }

    def _generate_examples(self, prefix: str, rows: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
        # A row is the label's byte, then the red, green and blue plane.
        for i, row in enumerate(np.frombuffer(rows, np.uint8).reshape(-1, 1 + 3 * 32 * 32)):
            image = Image.fromarray(row[1:].reshape(3, 32, 32).transpose(1, 2, 0))
            yield i, {"id": f"{prefix}{i:05d}", "image": image, "label": int(row[0])}


class FashionMnist(tfds.image_classification.FashionMNIST, skip_registration=True):  # type: ignore[call-arg]
    """TFDS's Fashion-MNIST, file for file, but read and written without TensorFlow."""

    name = "fashion_mnist"
    url_infos = tfds.image_classification.FashionMNIST.url_infos  # the downloads' checksums

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        urls = {
            split: [f"{self.URL}{name}.gz" for name in names] for split, names in IDX_FILES.items()
        }
        return {
            split: self._generate_examples(*paths)
            for split, paths in dl_manager.download(urls).items()
        }

    def _generate_examples(
        self, images: pathlib.Path, labels: pathlib.Path
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        pairs = zip(read_idx(images, 3), read_idx(labels, 1), strict=True)
        for i, (image, label) in enumerate(pairs):
            yield i, {"image": Image.fromarray(image), "label": int(label)}


@dataclasses.dataclass(frozen=True)
class _Arrays:
    """Records in memory. Grain keeps a source's `repr` in its checkpoints: here only the name."""

    name: str
    images: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}


@dataclasses.dataclass(frozen=True)
class _PngRecords:
    """Image and label of records whose image is still a PNG.

    TFDS would decode it too, but with a warning in every process when OpenCV is not installed.
    """

    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[index]
        image = np.asarray(Image.open(io.BytesIO(record["image"])))
        return {"image": np.atleast_3d(image), "label": record["label"]}


def _open_tfds(
    builder: tfds.core.DatasetBuilder, split: str, title: str, fix: str, download: bool
) -> Dataset:
    """Opens what TFDS has prepared, or first downloads it, if that is asked for."""
    if not _is_prepared(builder):
        if not download:
            raise SystemExit(f"no {title} in {builder.data_path}: {fix}")
        _prepare(builder)
    elif builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise SystemExit(
            f"{title} in {builder.data_path} is in {builder.info.file_format.value} files, which"
            " cannot be read in random order: name another --data-dir, with --download"
        )
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return Dataset(_PngRecords(source), tuple(builder.info.features["label"].names))


def _open_offline(builder: tfds.core.DatasetBuilder, split: str, preparing: str) -> Dataset:
    if not _is_prepared(builder):
        print(f"{preparing} into {builder.data_path}", file=sys.stderr)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # where TFDS speaks of downloading
            _prepare(builder)
    return Dataset(builder.as_data_source(split), tuple(builder.info.features["label"].names))


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    # TFDS writes this file last. Its own `is_prepared` logs a warning when there is nothing.
    return bool((builder.data_path / "dataset_info.json").exists())


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    # TFDS fills a temporary folder and renames it at the end. It takes any existing folder for a
    # complete one, so this mode replaces it.
    mode = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(download_mode=mode), file_format="array_record"
    )

"""MixUp and CutMix as references, written from the papers: plain NumPy, one record at a time."""

from typing import Any

import numpy as np


def partner_of(i: int, batch_size: int) -> int:
    if i % 2 == 1:
        return i - 1
    if i + 1 < batch_size:
        return i + 1
    return max(i - 1, 0)


def mixup_one(x: np.ndarray, y: np.ndarray, lam: float) -> np.ndarray:
    """λ·x + (1-λ)·y; integers are rounded to nearest, halves up."""
    if np.issubdtype(x.dtype, np.integer):
        # 2²⁴·λ is a whole number, so Python's integers give the exact value before rounding.
        weight = round(lam * 2**24)
        scaled = weight * x.astype(object) + (2**24 - weight) * y.astype(object)
        return np.asarray((scaled + 2**23) // 2**24, object).astype(x.dtype)
    mixed = lam * x.astype(np.float64) + (1 - lam) * y.astype(np.float64)
    return mixed.astype(x.dtype)


def cutmix_one(x: np.ndarray, y: np.ndarray, box: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """`axes` count from the record's first axis, without the batch axis."""
    window: list[Any] = [slice(None)] * x.ndim
    for (start, stop), axis in zip(box, axes, strict=True):
        window[axis] = slice(int(start), int(stop))
    out = x.copy()
    out[tuple(window)] = y[tuple(window)]
    return out


def kept_fraction(box: np.ndarray, lengths: tuple[int, ...]) -> float:
    """Own pixels over all pixels, counted by painting the box."""
    canvas = np.ones(lengths, bool)
    canvas[tuple(slice(int(start), int(stop)) for start, stop in box)] = False
    return canvas.mean(dtype=np.float64)


def soft_label(label: Any, num_classes: int | None, smoothing: float) -> np.ndarray:
    if np.ndim(label) == 0:
        target = np.zeros(num_classes)
        target[int(label)] = 1
    else:
        target = np.asarray(label, np.float64)
    return target * (1 - smoothing) + smoothing / len(target)


def mix(
    batch: dict[str, np.ndarray],
    lam: np.ndarray,
    box: np.ndarray | None,
    *,
    image_keys: tuple[str, ...] = ("image",),
    axes: tuple[int, ...] = (),
    num_classes: int | None = None,
    smoothing: float = 0.0,
) -> dict[str, np.ndarray]:
    """A whole batch, given λ and the boxes; a record with a box that is not empty is CutMix."""
    size = len(batch["mix_seed"])
    out: dict[str, list[np.ndarray]] = {key: [] for key in (*image_keys, "label")}
    for i in range(size):
        j = partner_of(i, size)
        cut = box is not None and all(start < stop for start, stop in box[i])
        for key in image_keys:
            x, y = batch[key][i], batch[key][j]
            if cut:
                out[key].append(cutmix_one(x, y, box[i], tuple(axis - 1 for axis in axes)))
            else:
                out[key].append(mixup_one(x, y, float(lam[i])))
        own = soft_label(batch["label"][i], num_classes, smoothing)
        other = soft_label(batch["label"][j], num_classes, smoothing)
        out["label"].append(float(lam[i]) * own + (1 - float(lam[i])) * other)
    return {key: np.stack(values) for key, values in out.items()}


def aligned(x: np.ndarray) -> np.ndarray:
    """A copy that starts at a memory page, like memory of workers, so that JAX need not copy."""
    memory = np.zeros(x.nbytes + 4096, np.uint8)
    start = -memory.ctypes.data % 4096
    out = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    out[...] = x
    return out

"""Mistakes that other implementations of MixUp and CutMix made, each shown not to happen here.

`docs/how/promises/peers.md` lists all of them, and the tests that hold the others.
"""

import ml_dtypes
import numpy as np
from common import make_batch

import grain_mix as gm


# kornia #4657: class ids were cast to the images' bfloat16, and 257 became 256
def test_class_ids_do_not_pass_through_bfloat16(rng: np.random.Generator) -> None:
    ids = np.array([257, 513, 999, 259])  # in bfloat16 256, 512, 1000 and 260
    partner_ids = ids[[1, 0, 3, 2]]
    mask = ids.astype(np.uint16).repeat(8 * 9).reshape(4, 8, 9)
    image = mask[..., None].astype(ml_dtypes.bfloat16)
    batch = make_batch(rng, 4, image=image, label=ids, mask=mask)
    mixed = gm.CutMixBatch(targets={"label": gm.OneHot(1000), "mask": gm.LabelMap()}).map(batch)
    rows = np.arange(4)
    sums = mixed["label"][rows, ids] + mixed["label"][rows, partner_ids]
    np.testing.assert_allclose(sums, 1, rtol=1e-6)
    sparse = gm.MixUpBatch(targets={"label": gm.Sparse()}).map(batch)["label"]
    np.testing.assert_array_equal(sparse, np.stack([ids, partner_ids], axis=1))
    assert mixed["mask"].dtype == np.uint16
    own = mixed["image"][..., 0] == batch["image"][..., 0]
    np.testing.assert_array_equal(mixed["mask"], np.where(own, mask, mask[[1, 0, 3, 2]]))


# tensorflow/models #10318, keras-cv #1092: either crashed or was mixed wrongly
def test_float16_images_do_not_overflow(rng: np.random.Generator) -> None:
    x = (60_000 * rng.random((6, 8, 9, 3))).astype(np.float16)  # the sum of two overflows
    batch = make_batch(rng, 6, image=x, label=np.eye(6, dtype=np.float16))
    mixed = gm.MixUpBatch(alpha=1.0).map(batch)
    assert mixed["image"].dtype == np.float16
    assert mixed["label"].dtype == np.float32
    lam = np.diag(mixed["label"]).reshape(-1, 1, 1, 1).astype(np.float64)
    expected = lam * x + (1 - lam) * x[np.arange(6) ^ 1]
    np.testing.assert_allclose(mixed["image"].astype(np.float64), expected, rtol=2**-10, atol=1e-6)

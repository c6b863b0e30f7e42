# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # MixUp and CutMix in a Grain pipeline
#
# **MixUp** blends two images and their labels: 70 % cat and 30 % coffee. **CutMix** pastes a box of one image onto
# another, and the label counts the pixels. A network that is trained on such images cannot learn its training data
# by heart, and often generalises better. It costs two lines in the data loader.
#
# The first cell makes records and draws pictures. It is folded away: click on it to see it.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import hashlib
import importlib.resources
import pathlib
import sys
import tarfile
import urllib.request

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits

import grain_mix as gm

jax.config.update("jax_num_cpu_devices", 2)  # two devices without a GPU
flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags

SOURCE = "photographs"  # or "cifar10", which downloads 162 MiB once
if "--source" in sys.argv:  # as a script: python tutorial.py --source cifar10
    SOURCE = sys.argv[sys.argv.index("--source") + 1]

PHOTOGRAPHS = {
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


def crops_of(name, count, rng):
    """Yields square crops, large enough that the object can be seen."""
    package, _, file = PHOTOGRAPHS[name].partition("/")
    with (importlib.resources.files(package) / file).open("rb") as opened:
        photograph = Image.open(opened).convert("RGB")
    photograph.thumbnail((512, 512))
    for _ in range(count):
        side = rng.uniform(0.7, 1) * min(photograph.size)
        left, top = rng.uniform(0.2, 0.8, 2) * np.subtract(photograph.size, side)
        yield np.asarray(photograph.resize((96, 96), box=(left, top, left + side, top + side)))


def records_of(count, seed):
    """Returns `count` records of each class."""
    rng = np.random.default_rng(seed)
    return [
        {"image": image, "label": label}
        for label, name in enumerate(PHOTOGRAPHS)
        for image in crops_of(name, count, rng)
    ]


CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


def cifar10():
    """Returns training images and labels, test images and labels, and the names of the classes."""
    file = pathlib.Path("~/.cache/grain_mix/cifar-10-binary.tar.gz").expanduser()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        part, _ = urllib.request.urlretrieve(CIFAR10, file.with_suffix(".part"))
        pathlib.Path(part).rename(file)
    if hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{file} is not CIFAR-10 as it should be: delete it, and try again")
    with tarfile.open(file) as tar:

        def read(name):
            return tar.extractfile(f"cifar-10-batches-bin/{name}").read()

        classes = tuple(read("batches.meta.txt").decode().split())
        train = b"".join(read(f"data_batch_{i}.bin") for i in range(1, 6))
        arrays = []
        for rows in (train, read("test_batch.bin")):  # a label, then a red, green and blue plane
            rows = np.frombuffer(rows, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
            arrays += [rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]]
    return *arrays, classes


if SOURCE == "cifar10":
    images, labels, test_images, test_labels, names = cifar10()
    records = [{"image": images[i], "label": int(labels[i])} for i in range(1600)]
    few = 2000  # records to train on
else:
    names = tuple(PHOTOGRAPHS)
    records = records_of(160, seed=0)  # for the pictures
    images, labels = load_digits(return_X_y=True)  # for the training
    images = (images.reshape(-1, 8, 8, 1) * 15.9).astype(np.uint8)
    test_images, test_labels = images[1437:], labels[1437:]
    images, labels = images[:1437], labels[:1437]
    few = 100


def load(*operations, source=records, batch_size=64, seed=3, num_epochs=1):
    """Returns batches; `operations` come after `Batch`."""
    return grain.DataLoader(
        data_source=source,
        sampler=grain.samplers.IndexSampler(
            len(source), shuffle=True, seed=seed, num_epochs=num_epochs
        ),
        operations=[
            gm.RecordSeed(),
            grain.transforms.Batch(batch_size, drop_remainder=True),
            *operations,
        ],
    )


def describe(label):
    """Returns a soft label in words, the heaviest class first."""
    order = np.argsort(-label, kind="stable")
    return "\n".join(f"{label[k]:.2f} {names[k]}" for k in order if label[k] >= 0.005)


def save(figure, file):
    """Writes a figure, in few colours to keep the page small. A notebook shows what it returns."""
    figure.savefig(file)
    image = Image.open(file).convert("RGB").quantize(128, kmeans=2)
    image.save(file, optimize=True)
    return image


def eight_classes(batch):
    """Returns places in the batch of records with different classes, whose partners differ too."""
    labels, places = batch["label"], []
    for i in range(0, len(labels), 2):
        seen = {int(labels[k]) for k in places}
        if labels[i] != labels[i + 1] and int(labels[i]) not in seen:
            places.append(i)
    return places[:8]


def show(before, rows, file):
    """Draws eight records, their partners, and below them each mixed batch."""
    figure = Figure((12, 1.95 * (2 + len(rows))), dpi=80, layout="constrained")
    axes = figure.subplots(2 + len(rows), 8)
    for column, i in zip(axes.T, eight_classes(before), strict=True):
        for axis, k in zip(column, (i, i + 1), strict=False):
            axis.imshow(before["image"][k])
            axis.set_title(names[before["label"][k]], fontsize=10)
        for axis, after in zip(column[2:], rows.values(), strict=True):
            axis.imshow(after["image"][i])
            axis.set_title(describe(after["label"][i]), fontsize=10)
    for axis, row in zip(axes[:, 0], ("own", "partner", *rows), strict=True):
        axis.set_ylabel(row, fontsize=12)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return save(figure, file)


# %% [markdown]
# This is the whole pipeline. Two of its lines are new:

# %%
loader = grain.DataLoader(
    data_source=records,  # {"image": uint8 [96, 96, 3], "label": class id}
    sampler=grain.samplers.IndexSampler(len(records), shuffle=True, seed=3, num_epochs=1),
    operations=[
        gm.RecordSeed(),  # new: one number for each record, from the sampler
        grain.transforms.Batch(64, drop_remainder=True),
        gm.MixUpBatch(alpha=1.0, num_classes=len(names)),  # new; or CutMixBatch, MixBatch
    ],
)
batch = next(iter(loader))
print({name: (str(value.dtype), value.shape) for name, value in batch.items()})

# %% [markdown]
# ![Records get a seed, are batched, drawn for, mixed by MixUp or CutMix, and go to the step](../docs/images/pipeline.svg)
#
# Below, `load(*operations)` is that loader, with `operations` after `Batch`.

# %% mystnb={"image": {"alt": "Eight records, below them their partners, and below these both mixed by MixUp and by CutMix under their soft labels"}}
originals = next(iter(load()))
mixup = gm.MixUpBatch(alpha=1.0, num_classes=len(names))
cutmix = gm.CutMixBatch(alpha=1.0, num_classes=len(names))
rows = {"MixUp": mixup.map(originals), "CutMix": cutmix.map(originals)}
show(originals, rows, "tutorial_mixed.png")

# %% [markdown]
# Each column shows a record, its partner, and what the network gets in their place, under its soft label.
#
# **In 20 minutes you will learn**
#
# - what MixUp and CutMix do to images and labels, and which of them to use,
# - how to choose α, which says how strongly to mix,
# - what the loader needs: a seed per record, shuffled records, mixing after `Batch`,
# - what mixing is worth, in a real, small training run with Flax NNX,
# - how to mix on all your devices, how to evaluate, and what the usual mistakes say.
#
# **You need** Grain's basics: a source of records, a sampler, operations, `Batch`.
#
# **To run it**: this page runs in any folder, as a notebook or as a script, once grain_mix is
# [installed](../docs/start/install.md) with its extra `notebook`. Nothing is downloaded. The photographs and digits come
# with scikit-image and scikit-learn. `jupyter lab examples/tutorial.ipynb` opens it, `python examples/tutorial.py`
# runs it as a script.
#
# **With CIFAR-10, as in the papers**: set `SOURCE = "cifar10"` in the first cell, or run
# `python examples/tutorial.py --source cifar10`. This downloads 162 MiB into `~/.cache/grain_mix`, once. The pictures
# below are then of CIFAR-10, and the training uses 2,000 of its images. On a CPU that takes long: set fewer seeds.
#
# ## What mixing is good for
#
# - **It generalises better where a network overfits**: few records, many epochs, large networks. Here, on 100 digits, the
#   gain is measured below.
# - **It holds more against hidden parts, noise and wrong labels**: [measured](../docs/how/evidence.md).
# - **It costs about a copy of the batch**: no second read, no second forward pass, no change of the network
#   ([benchmarks](../docs/benchmarks.md)).
# - **It adds no state**: a run that is killed [goes on with the same mixtures](../docs/guides/resume.md).
#
# It is not for everything. [Short runs and small networks](../docs/guides/alpha.md) may lose by it.
#
# ## Why mix batches, not records
#
# Mixing needs two records. A transform of single records would have to read the second one itself. A transform of
# batches has it already. The batch was shuffled, so the neighbour is as good a partner as any.
#
# | | record by record | batch by batch, as here |
# |---|---|---|
# | partner | a second read and decode | already there: records 2k and 2k + 1 |
# | work | Python, once per record | one compiled function per batch |
# | place | a worker's CPU | CPU, or all GPUs and TPUs |
# | labels | soft labels in each record | class ids come in, soft labels go out |
#
# `gm.RecordSeed()` stores one number in each record, drawn from the generator that Grain's sampler gives this record.
# `Batch` stacks these numbers like any other field. λ and the box are functions of that number alone. So they do not
# depend on the batch size, on the number of workers, or on where a run was interrupted.

# %%
element = {"image": np.zeros((8, 8, 3), np.uint8), "label": 3}
print(gm.RecordSeed().random_map(element, np.random.default_rng(0)).keys())

# %% [markdown]
# ## The formulas
#
# [MixUp](https://arxiv.org/abs/1710.09412) blends two records (x, y) and (x′, y′), with one-hot labels y and y′:
#
# ```text
# mixed image = λ·x + (1 - λ)·x′
# mixed label = λ·y + (1 - λ)·y′        λ ~ Beta(α, α)
# ```
#
# [CutMix](https://arxiv.org/abs/1905.04899) pastes a box of the partner. M is 0 inside the box and 1 outside:
#
# ```text
# mixed image = M·x + (1 - M)·x′
# mixed label = λ′·y + (1 - λ′)·y′      λ′ = mean of M = pixels kept / all pixels
# ```
#
# The box has 1 - λ of the area. Its centre may be anywhere, so the border can cut it off. That is why λ′ is counted.
# Both formulas are also functions of their own, without any randomness:

# %%
two = jnp.stack([jnp.zeros((4, 6)), jnp.ones((4, 6))])
partner = jnp.array([1, 0])
print(gm.mixup(two, jnp.array([0.75, 0.5]), partner)[0])

# %%
box = jnp.array([[[0, 2], [3, 6]], [[0, 0], [0, 0]]])  # [record, axis, (start, stop)]
print(gm.cutmix(two, box, partner, spatial_axes=(1, 2))[0])

# %% [markdown]
# ## MixUp
#
# One transform after `Batch`. Class ids come in, soft labels come out. `uint8` images stay `uint8`.

# %%
mixed = next(iter(load(mixup)))
for key in originals:
    after = f"{mixed[key].dtype} {mixed[key].shape}" if key in mixed else "used up"
    print(f"{key:<9} {originals[key].dtype} {originals[key].shape} -> {after}")

# %% [markdown]
# Partners are neighbours: records 0 and 1 are in each other's results, each with its own λ. `draw` shows the
# parameters:

# %%
drawn = mixup.draw(originals["mix_seed"], originals["image"].shape)
print("λ      ", *(f"{lam:.2f}" for lam in drawn.lam[:8]))
print("partner", *drawn.partner[:8])

# %% [markdown]
# ## CutMix
#
# The same call with another transform. The label gives exactly the share of pixels that each class has.

# %%
pasted = next(iter(load(cutmix)))
drawn = cutmix.draw(originals["mix_seed"], originals["image"].shape)
(top, bottom), (left, right) = drawn.box[0]
height, width = originals["image"].shape[1:3]
kept = 1 - (bottom - top) * (right - left) / (height * width)
print(f"rows {top} to {bottom}, columns {left} to {right}: {kept:.6f} of the pixels are kept")
print(f"weight of the record's own class: {pasted['label'][0][originals['label'][0]]:.6f}")

# %% [markdown]
# ## MixUp or CutMix?
#
# | | MixUp | CutMix |
# |---|---|---|
# | operation | weighted mean of two images | a box of one, pasted onto the other |
# | looks like | two ghostly images | two natural parts, a hard edge |
# | keeps | all of both, but pale | local detail, but not all of either |
# | label | λ | share of the pixels |
# | best for | noisy labels, sound, features without positions | images with large objects, localisation |
# | weak when | fine texture carries the class | objects are small: a box hides them |
# | usual α | 0.1 to 0.4, CIFAR 1.0 | 1.0 |
# | needs | any shape | one to three axes of space |
# | cost | about a copy of the batch | about a copy of the batch |
#
# **Not sure? Take both.** `MixBatch` chooses one of them for each record. These are its defaults, with which timm trains
# [DeiT](https://arxiv.org/abs/2012.12877), Swin and ConvNeXt:

# %%
seeds = np.random.default_rng(0).integers(2**32, size=20_000, dtype=np.uint32)
both = gm.MixBatch(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5, num_classes=len(names))
drawn = both.draw(seeds[:64], originals["image"].shape)
boxes = (drawn.box[..., 1] > drawn.box[..., 0]).all(axis=1)
print(f"{boxes.sum()} of 64 records got a box, the others a blend")

# %% [markdown]
# ## α
#
# λ comes from Beta(α, α). (λ and 1 − λ are equally strong: a record with λ = 0.1 is its partner with λ = 0.9.)
#
# | α | law of λ | λ between ¼ and ¾ | what you see | when |
# |---|---|---|---|---|
# | 0.1 to 0.4 | a U: near 0 or 1 | 10 to 29 % | most images hardly change | MixUp for ResNets on ImageNet, short runs |
# | 0.5 to 0.8 | nearly uniform | 33 to 44 % | all mixtures | MixUp beside CutMix, transformers |
# | 1 | uniform | 50 % | each mixture is equally likely | CutMix; CIFAR |
# | 2 and more | a hill at one half | 69 % and more | most are half and half | hidden layers, long runs; it can underfit |

# %% tags=["hide-input"] jupyter={"source_hidden": true} mystnb={"image": {"alt": "Density of λ for four values of α, each with the same six mixed photographs"}}
alphas = [0.2, 0.5, 1.0, 2.0]
grid = np.linspace(0.004, 0.996, 249)
chosen = eight_classes(originals)[:6]
figure = Figure((12, 7), dpi=80, layout="constrained")
axes = figure.subplots(4, 7, width_ratios=[2.4] + [1] * 6)
for row, alpha in zip(axes, alphas, strict=True):
    transform = gm.MixUpBatch(alpha=alpha, num_classes=len(names))
    lam = transform.draw(seeds, (len(seeds), 1)).lam
    row[0].hist(lam, bins=40, range=(0, 1), density=True, color="0.8", label="drawn")
    row[0].plot(grid, stats.beta.pdf(grid, alpha, alpha), color="tab:blue", label="Beta(α, α)")
    row[0].set_ylim(0, 4)
    row[0].set_ylabel(f"α = {alpha}", fontsize=12)
    batch = transform.map(originals)
    for i, axis in zip(chosen, row[1:], strict=True):
        axis.imshow(batch["image"][i])
        axis.set_title(describe(batch["label"][i]), fontsize=8)
        axis.axis("off")
axes[0, 0].legend(loc="upper center", fontsize=9)
axes[-1, 0].set_xlabel("λ")
figure.suptitle("MixUp: density of λ, and the same six records", fontsize=13)
save(figure, "tutorial_alpha.png")

# %% [markdown]
# The same seed gives the same quantile of λ for each α. So from top to bottom of a column, the image moves towards half
# and half.
#
# ## Recipes by use case
#
# | you train | begin with |
# |---|---|
# | ResNets on ImageNet | `MixUpBatch(alpha=0.2)`, or `CutMixBatch(alpha=1.0)` |
# | on CIFAR | `MixUpBatch(alpha=1.0)`, or `CutMixBatch(alpha=1.0, prob=0.5)` |
# | vision transformers | `MixBatch(label_smoothing=0.1)` |
# | most networks, and on few records | `MixBatch()`: 0.8 and 1.0, as timm trains DeiT, Swin and ConvNeXt |
# | few epochs, or it underfits | a smaller α, or `prob=0.5` |
# | with noisy labels | `CutMixBatch(alpha=1.0)`, or `MixBatch()` |
# | spectrograms or sound | `MixUpBatch()`, or `CutMixBatch(spatial_axes=(1,))` along time |
# | boxes or label maps | [detection](../docs/guides/detection.md), [segmentation](../docs/guides/segmentation.md) |
# | several labels for an image | [multi-label](../docs/guides/multilabel.md) |
#
# More about each is in [Choosing α and a recipe](../docs/guides/alpha.md).
#
# ## Labels
#
# How soft do labels get? Above: the largest weight of each label over one epoch, for MixUp and for CutMix. Below: four
# labels of MixUp with α = 1. If both partners have the same class, the label stays hard: that is the column at 1. For
# a small α CutMix has fewer hard labels: λ near 0 is a box as large as the image, of which the border cuts off a part.

# %% tags=["hide-input"] jupyter={"source_hidden": true} mystnb={"image": {"alt": "Histograms of the largest label weight for four values of α, for MixUp and CutMix, and four soft labels as bars"}}
figure = Figure((12, 8), dpi=80, layout="constrained")
axes = figure.subplots(3, 4)
bins = np.linspace(0, 1, 21)
for row, kind in zip(axes, (gm.MixUpBatch, gm.CutMixBatch), strict=False):
    for axis, alpha in zip(row, alphas, strict=True):
        transform = kind(alpha=alpha, num_classes=len(names))
        largest = np.concatenate([batch["label"].max(axis=1) for batch in load(transform)])
        axis.hist(largest, bins=bins, weights=np.full(len(largest), 1 / len(largest)), color="0.6")
        axis.set(title=f"{kind.__name__}, α = {alpha}", xlabel="largest label weight", ylim=(0, 1))
    row[0].set_ylabel("share of records")
for axis, i in zip(axes[2], chosen, strict=False):
    own, other = originals["label"][i], originals["label"][i + 1]
    weights = mixed["label"][i]
    colours = ["tab:blue" if k == own else "tab:orange" if k == other else "0.8" for k in range(10)]
    axis.barh(names, weights, color=colours)
    axis.set(title=f"{names[own]}, with {names[other]}", xlabel="weight", xlim=(0, 1))
    axis.tick_params(axis="y", labelsize=8, labelleft=axis is axes[2, 0])
    axis.invert_yaxis()
figure.suptitle(
    "How soft labels are (above), and four of MixUp with α = 1 (below): own blue, partner orange"
)
save(figure, "tutorial_labels.png")

# %% [markdown]
# ## Train with and without mixing
#
# The step does not know about mixing. It only needs a loss that takes soft labels.


# %%
class Net(nnx.Module):
    """Two convolutions and two dense layers."""

    def __init__(self, image_shape, rngs):
        height, width, channels = image_shape
        self.conv1 = nnx.Conv(channels, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(height // 4 * (width // 4) * 64, 128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images):
        """Returns logits. Normalises here, on the device."""
        x = nnx.avg_pool(nnx.relu(self.conv1(images / 127.5 - 1)), (2, 2), (2, 2))
        x = nnx.avg_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        return self.head(nnx.relu(self.dense(x.reshape(len(x), -1))))


@nnx.jit
def train_step(net, optimizer, batch):
    """Updates the network in place and returns the loss."""

    def mean_loss(net):
        return optax.softmax_cross_entropy(net(batch["image"]), batch["label"]).mean()

    loss, gradients = nnx.value_and_grad(mean_loss)(net)
    optimizer.update(net, gradients)
    return loss


@nnx.jit
def accuracy(net, images, labels):
    """Returns the share of images `[B, ...]` whose most likely class is the label `[B]`."""
    return (net(images).argmax(axis=1) == labels).mean()


# %% [markdown]
# Mixing helps where a network would overfit. So we train on few records, and test on all test images, which are **not
# mixed**. Each line has the same three seeds, which choose the records, their order, what is mixed, and the first
# weights.

# %%
ADAM = optax.adam(3e-3)


def train(mix, seed):
    """Trains a network on few records, and returns it."""
    chosen = np.random.default_rng(seed).permutation(len(images))[:few]
    source = [{"image": images[i], "label": int(labels[i])} for i in chosen]
    net = Net(images.shape[1:], nnx.Rngs(seed))
    optimizer = nnx.Optimizer(net, ADAM, wrt=nnx.Param)
    for batch in load(mix, source=source, batch_size=50, seed=seed, num_epochs=100):
        train_step(net, optimizer, batch)
    return net


def test_accuracy(net):
    """Returns the accuracy on clean test images, in percent."""
    parts = np.array_split(np.arange(len(test_images)), -(-len(test_images) // 500))
    right = [accuracy(net, test_images[part], test_labels[part]) * len(part) for part in parts]
    return 100 * float(sum(right)) / len(test_images)


for name, mix in {
    "no mixing": gm.MixUpBatch(prob=0, num_classes=10),  # only makes labels one-hot
    "MixUp": gm.MixUpBatch(alpha=0.4, num_classes=10),
    "CutMix": gm.CutMixBatch(alpha=1.0, num_classes=10),
    "both": gm.MixBatch(num_classes=10),
}.items():
    nets = [train(mix, seed) for seed in range(3)]
    scores = [test_accuracy(net) for net in nets]
    print(
        f"{name:<10} {np.mean(scores):.1f} % ± {np.std(scores, ddof=1):.1f}"
        f"  of {len(test_images)} test images, after training on {few}"
    )

# %% [markdown]
# ± is the standard deviation over the three seeds. What mixing does to confidence, to noisy images and to wrong labels
# is measured in [What mixing does](../docs/how/evidence.md). The gain depends on data, network and length of training.
#
# ## Evaluate on images that are not mixed
#
# The network that was just trained with both, on clean and on mixed test images:

# %%
test = {"image": test_images[:360], "label": test_labels[:360], "mix_seed": seeds[:360]}
mixed_test = gm.MixBatch(num_classes=10).map(test)
on_clean = accuracy(nets[-1], test["image"], test["label"])
on_mixed = accuracy(nets[-1], mixed_test["image"], test["label"])
print(f"accuracy on clean images {on_clean:.1%}, on mixed ones {on_mixed:.1%}")

# %% [markdown]
# So a low *training* accuracy is normal. A fair measure is in
# [Evaluation, and why training accuracy looks low](../docs/guides/evaluation.md). If you need the class ids of mixed
# batches, copy them to another field before mixing. Fields that no parameter names pass through untouched.
#
# ## Shuffle
#
# Partners are neighbours in the batch, so records must be shuffled. In data that is sorted by class, nearly all partners
# have the same class, and mixing does almost nothing:


# %%
by_class = sorted(records, key=lambda record: record["label"])


def share_of_soft_labels(shuffle):
    """Returns how many labels of an epoch have two classes."""
    sampler = grain.samplers.IndexSampler(len(by_class), shuffle=shuffle, seed=0, num_epochs=1)
    operations = [gm.RecordSeed(), grain.transforms.Batch(64), gm.MixUpBatch(1.0, num_classes=10)]
    loader = grain.DataLoader(data_source=by_class, sampler=sampler, operations=operations)
    return np.mean(np.concatenate([(batch["label"] > 0).sum(axis=1) == 2 for batch in loader]))


print(f"two classes in a label: {share_of_soft_labels(True):.0%} of shuffled records")
print(f"two classes in a label: {share_of_soft_labels(False):.0%} of records sorted by class")

# %% [markdown]
# ## On all devices
#
# With a `sharding`, the batch is mixed on the devices that it goes to. A NumPy batch comes in, global arrays come out,
# with the same bits as on the host. `AxisType.Auto` lets XLA choose how arrays are split inside the train step.

# %%
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("data"))
over_devices = gm.MixBatch(num_classes=len(names), sharding=sharding)
spread = over_devices.map(originals)
print(f"{spread['image'].shape} over {len(spread['image'].sharding.device_set)} devices")
on_host = gm.MixBatch(num_classes=len(names)).map(originals)
print("the same bits as on the host:", np.array_equal(spread["image"], on_host["image"]))

# %% [markdown]
# The loader may have worker processes. `LoaderDataset` mixes after them, and Grain's prefetch does so before the train
# step needs the batch. The network is copied to all devices. For many hosts see
# [Multi-GPU and multi-host](../docs/guides/devices.md).

# %%
batches = gm.LoaderDataset(load()).map(over_devices)
batches = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2)

net = Net(originals["image"].shape[1:], nnx.Rngs(0))
optimizer = nnx.Optimizer(net, ADAM, wrt=nnx.Param)
everywhere = NamedSharding(mesh, PartitionSpec())
nnx.update((net, optimizer), jax.device_put(nnx.state((net, optimizer)), everywhere))
losses = [float(train_step(net, optimizer, batch)) for batch in batches]
print(f"{len(losses)} steps on {jax.device_count()} devices, last loss {losses[-1]:.2f}")

# %% [markdown]
# ## Common mistakes
#
# Each with the error that it gives. More are in [Common mistakes](../docs/guides/mistakes.md).


# %%
def error_of(call):
    """Prints what `call` raises."""
    try:
        call()
    except (KeyError, TypeError, ValueError) as error:
        print(f"{type(error).__name__}: {error.args[0]}")


def first_batch(*operations, workers=0):
    """Gets one batch through `operations`."""
    sampler = grain.samplers.IndexSampler(len(records), shuffle=True, seed=0, num_epochs=1)
    loader = grain.DataLoader(
        data_source=records, sampler=sampler, operations=operations, worker_count=workers
    )
    return next(iter(loader))


batch_of = grain.transforms.Batch(64)
mix = gm.MixUpBatch(num_classes=len(names))

# %% [markdown]
# `RecordSeed` after `Batch`, where 64 records share one generator:

# %%
error_of(lambda: first_batch(batch_of, gm.RecordSeed(), mix))

# %% [markdown]
# Class ids without `num_classes`:

# %%
error_of(lambda: first_batch(gm.RecordSeed(), batch_of, gm.MixUpBatch()))

# %% [markdown]
# A misspelt key:

# %%
error_of(lambda: first_batch(gm.RecordSeed(), batch_of, gm.MixUpBatch(image_key="img")))

# %% [markdown]
# A transform with a `sharding` in a worker process, which has no devices:

# %%
error_of(lambda: first_batch(gm.RecordSeed(), batch_of, over_devices, workers=1))

# %% [markdown]
# ## Key takeaways
#
# - **Order**: decode, crop, flip; `RecordSeed`; `Batch`; mix. Normalise before or after.
# - **Loss**: one that takes soft labels, such as `optax.softmax_cross_entropy`.
# - **Start with** `MixBatch(num_classes=K)`. Mix less if it underfits.
# - **Shuffle** the training records: neighbours are partners.
# - **Do not mix** validation and test data.
# - **[Look at a batch](../docs/guides/look.md)** before you train for long.
#
# ## Coming from PyTorch
#
# | timm, torchvision | here |
# |---|---|
# | `timm.data.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0)` in the loop | `gm.MixBatch()` in the loader |
# | `v2.RandomChoice([v2.CutMix(), v2.MixUp()])` in `collate_fn` | `gm.MixBatch(mixup_alpha=1.0, mode="batch")` after `Batch` |
# | one λ for the batch | one for each record; `mode="batch"` is theirs |
# | `[B, C, H, W]` | any layout: `spatial_axes=(2, 3)` |
# | PyTorch's or NumPy's global state | a seed for each record |
#
# More: [timm](../docs/coming_from/timm.md), [torchvision](../docs/coming_from/torchvision.md).
#
# ## Coming from Keras and TensorFlow
#
# | Keras, tf.data | here |
# |---|---|
# | `keras.layers.MixUp(alpha)`, `CutMix(factor)` in `dataset.map` | `gm.MixUpBatch(alpha)`, `gm.CutMixBatch(alpha)` in `.map` |
# | `{"images": ..., "labels": ...}`, labels one-hot | `image_key="images", label_key="labels"`, labels one-hot or class ids |
# | `float32` comes out | the dtype stays |
# | `tf.data.Dataset.zip` of two shuffled data sets | the neighbour in the batch, or [a partner from elsewhere](../docs/guides/partners.md) |
# | `fit` with `CategoricalCrossentropy` | the same |
#
# More: [Keras](../docs/coming_from/keras.md), [`fit`](../docs/with/keras.md).
#
# ## The files beside this one
#
# In a clone, after `pip install ".[examples]"`:
#
# | file of `examples/` | does | run it |
# |---|---|---|
# | `quickstart.py` | the picture of the README, and how fast loading is | `python examples/quickstart.py` |
# | `train.py` | trains, resumes, compares with and without mixing | `python examples/train.py --mix both` |
# | `multihost.py` | the same on several hosts | `python examples/multihost.py --local 2` |
# | `segmentation.py`, `detection.py` | a small network for maps, and for boxes | `python examples/segmentation.py` |
# | `weight_maps.py` | FMix, GridMix and others as functions | `python examples/weight_maps.py` |
# | `gallery.py` | every recipe on the same photographs | `python examples/gallery.py` |
#
# ## Next steps
#
# - [Train on your own folder](../docs/start/own_images.md), with worker processes and checkpoints
# - [Choosing α and a recipe](../docs/guides/alpha.md), [other methods](../docs/guides/recipes.md), [losses](../docs/guides/losses.md), and
#   [turning mixing off for the last epochs](../docs/guides/schedules.md)
# - Other targets: [multi-label](../docs/guides/multilabel.md), [segmentation](../docs/guides/segmentation.md),
#   [detection](../docs/guides/detection.md), [captions](../docs/guides/pairs.md)
# - [Audio, video, volumes](../docs/guides/layouts.md), and [your own weight map](../docs/guides/weight_maps.md)
# - [Multi-GPU and multi-host](../docs/guides/devices.md), and [exact resume](../docs/guides/resume.md)
# - Look up a name: `help(gm.MixBatch)`, or the [reference](../docs/reference/index.md)

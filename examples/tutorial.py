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
# **MixUp** blends two pictures and their labels: 70 % cat and 30 % coffee. **CutMix** pastes a box of one
# picture onto another, and the label counts the pixels. A network that is trained on such mixtures cannot
# learn its pictures by heart. It often generalises better, and it costs one line in the data loader.
#
# In 20 minutes you will learn
#
# - what both do to pictures and labels, and how to look at it,
# - how to choose α, which says how strongly to mix,
# - what the loader needs: a seed per record, shuffled records, mixing after `Batch`,
# - how to train a Flax NNX network with mixed batches on all your devices,
# - which mistakes are common, and what their messages say.
#
# You need Grain's basics: a source of records, a sampler, operations, `Batch`. The page runs by itself in
# any folder after `pip install "grain-mix[examples]"`. It is also a script, `tutorial.py`, which prints
# what you see here and writes the four figures into the current folder.

# %%
import importlib.resources

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

import grain_mix as gm

jax.config.update("jax_num_cpu_devices", 2)  # two devices without a GPU
flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags

# %% [markdown]
# ## Why mix batches, not records
#
# Mixing needs two records. A transform of single records would have to fetch the second one
# itself; a transform of batches already has it. The batch was shuffled, so the neighbour is as good
# a partner as any.
#
# | | record by record, before `Batch` | batch by batch, after `Batch` |
# |---|---|---|
# | partner | a second read and a second decode | already there: records 2k and 2k + 1 pair up |
# | work | Python, once per record | one compiled function, once per batch |
# | place | a worker's CPU | CPU, or all GPUs and TPUs of a `jax.sharding.Sharding` |
# | labels | every record has to carry soft labels | class ids come in, soft labels go out |
# | randomness | the record's generator | the record's generator, kept as one `uint32` |
#
# `gm.RecordSeed()` does what the last line says. Grain's sampler gives each record its own seed.
# `RecordSeed` stores one number drawn from it in the record, and `Batch` stacks these numbers like
# any other field. λ and the box are functions of that number alone. So they do not depend on the
# batch size, on the number of workers, or on where a run was interrupted.

# %%
element = {"image": np.zeros((8, 8, 3), np.uint8), "label": 3}
print(gm.RecordSeed().random_map(element, np.random.default_rng(0)).keys())

# %% [markdown]
# ## The formulas
#
# [MixUp](https://arxiv.org/abs/1710.09412) blends two records $(x, y)$ and $(x', y')$, labels one-hot:
#
# $$\tilde x = \lambda x + (1 - \lambda)\, x', \qquad
#   \tilde y = \lambda y + (1 - \lambda)\, y', \qquad \lambda \sim \mathrm{Beta}(\alpha, \alpha).$$
#
# [CutMix](https://arxiv.org/abs/1905.04899) pastes a box of the partner, $M = 0$ inside it and 1
# outside:
#
# $$\tilde x = M \odot x + (1 - M) \odot x', \qquad
#   \tilde y = \lambda' y + (1 - \lambda')\, y', \qquad \lambda' = \text{mean of } M.$$
#
# The box covers $1 - \lambda$ of the area. Its centre may be anywhere, so the border can cut it off.
# The label's weight $\lambda'$ is therefore counted: the share of pixels that were kept. Both formulas
# are also functions of their own, without any randomness:

# %%
images = jnp.stack([jnp.zeros((4, 6)), jnp.ones((4, 6))])
partner = jnp.array([1, 0])
print(gm.mixup(images, jnp.array([0.75, 0.5]), partner)[0])

# %%
box = jnp.array([[[0, 2], [3, 6]], [[0, 0], [0, 0]]])  # [record, axis, (start, stop)]
print(gm.cutmix(images, box, partner, spatial_axes=(1, 2))[0])

# %% [markdown]
# ## Coming from PyTorch
#
# | timm, torchvision | here |
# |---|---|
# | `Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=K)` on each batch in the train loop | `gm.MixBatch(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=K)` in the loader's operations |
# | `mode="batch"` is the default: one λ for all | `mode="elem"` is: each record its own; `"pair"` and `"batch"` exist too |
# | `label_smoothing=0.1` is the default | 0.0 is; the same meaning |
# | `v2.RandomChoice([v2.CutMix(num_classes=K), v2.MixUp(num_classes=K)])` | `gm.MixBatch(num_classes=K)`; odds by `switch_prob` |
# | the batch is float already | `uint8` stays `uint8`, exactly rounded |
# | the batch mixed with itself, flipped or rolled | neighbours pair up; an odd last one takes the one before it |
# | random numbers from a global generator | from the sampler's seeds |
# | `SoftTargetCrossEntropy()` | `optax.softmax_cross_entropy` |
#
# ## Coming from TensorFlow and Keras
#
# | `tf.data`, Keras | here |
# |---|---|
# | `dataset.batch(128).map(keras.layers.MixUp(alpha=0.2))` | `[gm.RecordSeed(), grain.transforms.Batch(128), gm.MixUpBatch(alpha=0.2, num_classes=K)]` |
# | `keras.layers.CutMix(factor=1.0)` | `gm.CutMixBatch(alpha=1.0, num_classes=K)` |
# | `{"images": ..., "labels": ...}` | `{"image": ..., "label": ...}`, TFDS's names; change them with `image_key`, `label_key` |
# | labels one-hot before | class ids and `num_classes`, or one-hot |
# | zip a data set with its shuffled copy | not needed: the partner is in the batch |
# | `tf.random` and stateful layers | no state: Grain's iterator state is the checkpoint |
#
# ## Records
#
# Ten photographs come with scikit-image and scikit-learn, so nothing is downloaded. Each is a class, and
# the records are crops of them, with some crops held out for the end.

# %%
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
names = tuple(PHOTOGRAPHS)


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
        for label, name in enumerate(names)
        for image in crops_of(name, count, rng)
    ]


records, held_out = records_of(160, seed=0), records_of(40, seed=1)
print(f"{len(records)} records of {len(names)} classes: {', '.join(names)}")
print({key: np.shape(value) for key, value in records[0].items()})


# %% [markdown]
# ## Normalise, and one-hot
#
# `Batch` comes after all transforms of single records: decode, crop, flip. You can normalise before
# or after mixing: both give the same result, up to rounding. After is cheaper:
# `uint8` is a quarter of `float32` to copy and to mix, and the network can normalise on the device.
#
# Labels may be one-hot, but need not be: with `num_classes`, mixing turns class ids into soft labels.
# Then no `[B, K]` array has to travel from worker to trainer. Both ways agree:


# %%
def load(*operations, source=records, batch_size=64, seed=3):
    """Returns one epoch of batches; `operations` come after `Batch`."""
    sampler = grain.samplers.IndexSampler(len(source), shuffle=True, seed=seed, num_epochs=1)
    return grain.DataLoader(
        data_source=source,
        sampler=sampler,
        operations=[
            gm.RecordSeed(),
            grain.transforms.Batch(batch_size, drop_remainder=True),
            *operations,
        ],
    )


class OneHot(grain.transforms.Map):
    """Not needed with `num_classes`."""

    def map(self, batch):
        """Turns class ids `[B]` into rows of zeros with a one."""
        return {**batch, "label": np.eye(len(names), dtype=np.float32)[batch["label"]]}


from_ids = next(iter(load(gm.MixUpBatch(num_classes=len(names)))))
from_rows = next(iter(load(OneHot(), gm.MixUpBatch())))
print("the same labels:", np.array_equal(from_ids["label"], from_rows["label"]))

# %% [markdown]
# ## MixUp
#
# One transform after `Batch`. The loader without it gives the same records in the same order, which
# makes it easy to look at both.

# %%
mixup = gm.MixUpBatch(alpha=1.0, num_classes=len(names))
originals = next(iter(load()))
mixed = next(iter(load(mixup)))
for key in originals:
    after = f"{mixed[key].dtype} {mixed[key].shape}" if key in mixed else "used up"
    print(f"{key:<9} {originals[key].dtype} {originals[key].shape} -> {after}")


# %%
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


def show(before, after, title, file):
    """Draws eight records, their partners, and below them the results."""
    figure = Figure((12, 5.6), dpi=80, layout="constrained")
    axes = figure.subplots(3, 8)
    for column, i in zip(axes.T, eight_classes(before), strict=True):
        for axis, k in zip(column, (i, i + 1), strict=False):
            axis.imshow(before["image"][k])
            axis.set_title(names[before["label"][k]], fontsize=10)
        column[2].imshow(after["image"][i])
        column[2].set_title(describe(after["label"][i]), fontsize=10)
    for axis, row in zip(axes[:, 0], ("own", "partner", "result"), strict=True):
        axis.set_ylabel(row, fontsize=12)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=13)
    return save(figure, file)


show(originals, mixed, "MixUp with α = 1", "tutorial_mixup.png")

# %% [markdown]
# Partners sit next to each other: records 0 and 1 are in each other's results, each with its own λ. `draw`
# shows the parameters:

# %%
drawn = mixup.draw(originals["mix_seed"], originals["image"].shape)
print("λ      ", *(f"{lam:.2f}" for lam in drawn.lam[:8]))
print("partner", *drawn.partner[:8])

# %% [markdown]
# ## CutMix
#
# The same call with another transform. The boxes have hard edges, and each label gives the share of
# pixels that each class has.

# %%
cutmix = gm.CutMixBatch(alpha=1.0, num_classes=len(names))
pasted = next(iter(load(cutmix)))
show(originals, pasted, "CutMix with α = 1", "tutorial_cutmix.png")

# %%
drawn = cutmix.draw(originals["mix_seed"], originals["image"].shape)
(top, bottom), (left, right) = drawn.box[0]
height, width = originals["image"].shape[1:3]
kept = 1 - (bottom - top) * (right - left) / (height * width)
print(f"rows {top} to {bottom}, columns {left} to {right}: {kept:.6f} of the pixels are kept")
print(f"weight of the record's own class: {pasted['label'][0][originals['label'][0]]:.6f}")

# %% [markdown]
# ## α
#
# λ comes from Beta(α, α). Small α puts it near 0 or 1, so that most records hardly change; α = 1
# makes all λ equally likely; larger α gathers it around one half. (λ and 1 − λ are
# equally strong: a record with λ = 0.1 is its partner with λ = 0.9.)

# %%
alphas = [0.2, 0.5, 1.0, 2.0]
grid = np.linspace(0.004, 0.996, 249)
seeds = np.random.default_rng(0).integers(2**32, size=20_000, dtype=np.uint32)
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
# The same seed gives the same quantile of λ for each α. So from top to bottom of a column, the picture
# moves towards half and half.
#
# | you train | begin with |
# |---|---|
# | ResNets on ImageNet | `MixUpBatch(alpha=0.2)` or `CutMixBatch(alpha=1.0)` |
# | anything on CIFAR | `MixUpBatch(alpha=1.0)` or `CutMixBatch(alpha=1.0, prob=0.5)` |
# | vision transformers | `MixBatch(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)` |
# | few epochs, or it underfits | a smaller α, or `prob=0.5` |
# | spectrograms or audio | `MixUpBatch(alpha=0.4)`, or `CutMixBatch(spatial_axes=(1,))` along time |
#
# ## Labels
#
# The figure shows the labels that the network has to predict: the largest weight of each label over
# one epoch, and four labels. If both partners have the same class, the label stays hard: that is the
# column at 1.

# %%
figure = Figure((12, 5.4), dpi=80, layout="constrained")
axes = figure.subplots(2, 4)
bins = np.linspace(0, 1, 21)
for axis, alpha in zip(axes[0], alphas, strict=True):
    transform = gm.MixUpBatch(alpha=alpha, num_classes=len(names))
    largest = np.concatenate([batch["label"].max(axis=1) for batch in load(transform)])
    axis.hist(largest, bins=bins, weights=np.full(len(largest), 1 / len(largest)), color="0.6")
    axis.set(title=f"α = {alpha}", xlabel="largest label weight", ylim=(0, 1))
axes[0, 0].set_ylabel("share of records")
for axis, i in zip(axes[1], chosen, strict=False):
    own, other = originals["label"][i], originals["label"][i + 1]
    weights = mixed["label"][i]
    colours = ["tab:blue" if k == own else "tab:orange" if k == other else "0.8" for k in range(10)]
    axis.barh(names, weights, color=colours)
    axis.set(title=f"{names[own]}, with {names[other]}", xlabel="weight", xlim=(0, 1))
    axis.tick_params(axis="y", labelsize=8, labelleft=axis is axes[1, 0])
    axis.invert_yaxis()
figure.suptitle(
    "How soft labels are (above), and four with α = 1 (below): own blue, partner orange"
)
save(figure, "tutorial_labels.png")

# %% [markdown]
# ## Both, as in the training of vision transformers
#
# `MixBatch` chooses MixUp or CutMix for each record. These are the parameters of
# [DeiT](https://arxiv.org/abs/2012.12877).

# %%
both = gm.MixBatch(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5, num_classes=len(names))
drawn = both.draw(seeds[:64], originals["image"].shape)
boxes = (drawn.box[..., 1] > drawn.box[..., 0]).all(axis=1)
print(f"{boxes.sum()} of 64 records got a box, the others a blend")

# %% [markdown]
# ## Keep the hard label
#
# Accuracy needs one class per record. Copy the label before mixing: fields that no parameter names
# pass through untouched. But the accuracy on mixed pictures says little. Use a clean batch of test
# records instead.


# %%
class KeepLabel(grain.transforms.Map):
    """Leaves a second copy of the class id, under a name that mixing does not touch."""

    def map(self, batch):
        """Adds `hard_label`."""
        return {**batch, "hard_label": batch["label"]}


batch = next(iter(load(KeepLabel(), both)))
print({key: f"{value.dtype} {value.shape}" for key, value in batch.items()})

# %% [markdown]
# ## Overview
#
# 1. The **sampler** gives each record a generator.
# 2. **`RecordSeed`** takes one `uint32` from it.
# 3. **`Batch`** stacks records and seeds.
# 4. **`MixUpBatch`**, **`CutMixBatch`** or **`MixBatch`** draws λ, partner and box from the seeds, mixes pixels
#    and labels, and leaves them on the host or on the devices.
# 5. The **train step** gets soft labels.
#
# | | MixUp | CutMix |
# |---|---|---|
# | picture | two blended, ghostly | two side by side, each part natural |
# | label weight | λ | share of the pixels kept |
# | needs | any shape: images, audio, features | one to three spatial axes |
# | segmentation maps | both maps come out, with weights | one map, cut by the same box |
# | made for | noisy labels, robustness | localisation: every part has to be recognised |
# | weak when | textures and fine detail carry the class | small objects, which a box can hide or leave out |
#
# Do not expect calibrated confidence by itself. On scikit-learn's digits (`examples/train.py --compare`)
# mixing improved accuracy and log-loss, but with CutMix the network became much too modest.
#
# ## Shuffle
#
# Partners are neighbours in the batch, so records must be shuffled. In data that is sorted by class, nearly
# all partners have the same class, and mixing does almost nothing:


# %%
def share_of_soft_labels(shuffle):
    """Returns how many labels of an epoch have two classes."""
    sampler = grain.samplers.IndexSampler(len(records), shuffle=shuffle, seed=0, num_epochs=1)
    operations = [gm.RecordSeed(), grain.transforms.Batch(64), gm.MixUpBatch(1.0, num_classes=10)]
    loader = grain.DataLoader(data_source=records, sampler=sampler, operations=operations)
    return np.mean(np.concatenate([(batch["label"] > 0).sum(axis=1) == 2 for batch in loader]))


print(f"two classes in a label: {share_of_soft_labels(True):.0%} of shuffled records")
print(f"two classes in a label: {share_of_soft_labels(False):.0%} of records sorted by class")

# %% [markdown]
# ## On all devices
#
# With a `sharding`, the batch is mixed on the devices that it goes to. A NumPy batch comes in, global
# arrays come out, with the same bits as on the host.

# %%
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("data"))
over_devices = gm.MixBatch(num_classes=len(names), sharding=sharding)
spread = over_devices.map(originals)
print(f"{spread['image'].shape} over {len(spread['image'].sharding.device_set)} devices")
on_host = gm.MixBatch(num_classes=len(names)).map(originals)
print("the same bits as on the host:", np.array_equal(spread["image"], on_host["image"]))

# %% [markdown]
# The loader may have worker processes. `LoaderDataset` mixes after them, and Grain's prefetch does so
# before the train step needs the batch. For many hosts see the guide *One GPU, many, many hosts*.

# %%
batches = gm.LoaderDataset(load()).map(over_devices)
batches = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2)


# %% [markdown]
# ## A Flax NNX train step
#
# The step does not know about mixing. It only needs a loss that takes soft labels.


# %%
class Net(nnx.Module):
    """A few convolutions."""

    def __init__(self, channels, num_classes, rngs):
        self.first = nnx.Conv(channels, 16, (5, 5), strides=4, rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(32, num_classes, rngs=rngs)

    def __call__(self, images):
        """Returns logits. Normalises here, on the device."""
        x = nnx.relu(self.first(images / 127.5 - 1))
        x = nnx.relu(self.second(x))
        return self.head(x.mean(axis=(1, 2)))


@nnx.jit
def train_step(net, optimizer, batch):
    """Updates the network in place and returns the loss."""

    def mean_loss(net):
        return optax.softmax_cross_entropy(net(batch["image"]), batch["label"]).mean()

    loss, gradients = nnx.value_and_grad(mean_loss)(net)
    optimizer.update(net, gradients)
    return loss


net = Net(originals["image"].shape[-1], len(names), nnx.Rngs(0))
optimizer = nnx.Optimizer(net, optax.adam(3e-3), wrt=nnx.Param)
everywhere = NamedSharding(mesh, PartitionSpec())
nnx.update((net, optimizer), jax.device_put(nnx.state((net, optimizer)), everywhere))

for epoch in range(4):
    losses = [float(train_step(net, optimizer, batch)) for batch in batches]
    print(f"epoch {epoch}: loss {np.mean(losses):.3f}")


# %% [markdown]
# The loss of mixed batches does not go to zero, because soft labels have an entropy. So measure on
# records that are not mixed. These are held-out crops of the same ten photographs. So the score says that
# training works, and nothing about other photographs.


# %%
@nnx.jit
def accuracy(net, images, labels):
    """Returns the share of images `[B, ...]` whose most likely class is the label `[B]`."""
    return (net(images).argmax(axis=1) == labels).mean()


clean = next(iter(load(source=held_out, batch_size=len(held_out))))
score = accuracy(net, clean["image"], clean["label"])
print(f"{len(held_out)} held-out crops: accuracy {score:.1%}")

# %% [markdown]
# ## Remember
#
# - **Soft labels**: use a loss that takes them, `optax.softmax_cross_entropy`; or `sparse_labels=True`
#   with two hard losses, weighted.
# - **Training only**: evaluate on clean records.
# - **After preprocessing**: decode, crop and flip first, then mix, then normalise.
# - **Seeds before `Batch`**: `RecordSeed` belongs to records, mixing to batches.
#
# ## Common mistakes
#
# Each with the error that it gives.


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
# Mixing during evaluation raises no error, since the batch is fine. It only makes the network look
# worse than it is:

# %%
mixed = both.map(clean)
by_mistake = accuracy(net, mixed["image"], mixed["label"].argmax(axis=1))
print(f"accuracy on held-out crops {score:.1%}, mixed ones {by_mistake:.1%}")

# %% [markdown]
# ## Next steps
#
# - **Your own data**: replace `records` by any source of Grain's, and `names` by your classes.
# - **A recipe**: the guide *Choosing α and a recipe* has those of DeiT, ConvNeXt and RSB.
# - **More devices and hosts**: *One GPU, many, many hosts*.
# - **Other targets**: *Segmentation*, *Detection*, *Captions and other pairs*.
# - **Your own way to mix**: *Your own weight map*, in ten lines.
# - **End it before training ends**: *Turning mixing off late*.
# - **Look up a name**: the reference, or `help(gm.MixBatch)`.

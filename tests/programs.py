"""Programs that the fuzz tests try: a transform with the batches that it is made for.

Each is drawn from its number: class, law, layout, dtypes, kinds of targets, partners, and the road
that the batch takes: `map`, or one of those that lead through JAX to `mix`.
"""

import dataclasses
import functools
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import reference
from jax.sharding import NamedSharding, PartitionSpec

import grain_mix as gm
from grain_mix import maps

CLASSES = [gm.MixUpBatch, gm.CutMixBatch, gm.MixBatch, gm.WeightMapMixBatch, gm.MosaicBatch]
FLOATS = ["float16", "bfloat16", "float32"]
DTYPES = ["uint8", "uint16", "uint32", "int8", "int16", "int32", *FLOATS]
IDS = ["int64", "int32", "uint8", "int8", "uint64"]
LAYOUTS: list[Any] = [  # shape of a record, axes of its box
    ((5, 4, 3), (1, 2)),
    ((8, 4, 3), None),
    ((3, 4, 5), (2, 3)),
    ((3, 5, 4), (-1, -2)),
    ((4, 8), (2, 1)),
    ((9,), (1,)),
    ((7, 2), (1,)),
    ((3, 4, 2, 3), (1, 2, 3)),
    ((2, 2, 1), (1, 2)),
]
LONGER: Any = [*LAYOUTS, ((9, 8, 3), (1, 2)), ((8, 9), (2, 1))]  # for bands of an eighth
ROADS = ["jit", "closure", "vmap", "scan", "cond", "remat"]
SETTINGS = ["x64", "debug_nans", "rank_promotion", "dtype_promotion", "default_prng_impl"]
SETTINGS += ["threefry_partitionable", "threefry_not_partitionable", "random_seed_offset"]
LAWS: list[Any] = [0.2, 1.0, 8, np.float32(0.7), gm.Beta(2, 8), gm.Beta(3, 0.3)]
OF_MANY: list[Any] = [0.2, 1.0, 8]  # for more than two sources
if hasattr(gm, "Larger"):
    LAWS += [gm.Uniform(0.1, 0.9), gm.Uniform(0.25, 0.25), gm.Larger(gm.Beta(0.4, 0.4))]
    OF_MANY += [LAWS[-1]]
K = 5


def coins(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, lengths) < lam


def fog(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    return jnp.clip(jax.random.uniform(key, lengths, minval=-0.5, maxval=1) + lam, 0, 1)


def nearest(key: Any, lam: Any, lengths: tuple[int, ...], own: Any, partner: Any) -> Any:
    """Whatever stands higher is seen."""
    return own["height"] >= partner["height"]


@dataclasses.dataclass(frozen=True)
class Points(gm.Target):
    """Points in pixels, each with the weight of its pixel, and what is known of each: stacked."""

    about: str
    adds = ("_weight",)
    positions = True

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.about,)

    def mix(self, sources: Any, draw: gm.Draw, space: gm.Space) -> Any:
        stacks = {name: jnp.stack([source[name] for source in sources]) for name in sources[0]}
        moved = [draw.moved(source[""], r) for r, source in enumerate(sources)]
        weights = [draw.weights_at(points)[..., r] for r, points in enumerate(moved)]
        return {**stacks, "": jnp.stack(moved), "_weight": jnp.stack(weights)}

    def check(self, name: str, array: Any, space: gm.Space) -> None:
        fits = array.shape[2:] == (len(space.axes),) and str(array.dtype) in ("float32", "int32")
        if not fits or (isinstance(array, np.ndarray) and not np.isfinite(array).all()):
            raise ValueError(f"Points: {name!r}; expected points; leave them out")


Field = tuple[str, tuple[int, ...], str]  # content, shape of a record, dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    transform: Any
    fields: dict[str, Field]
    size: int
    road: str
    key: Any
    setting: str

    def run(self, batch: Any, compiled: bool) -> Any:
        if self.road in ("map", "sharded"):
            return self.transform.map(batch)
        if not compiled:
            return self.mix(batch, self.key)
        if self.road == "closure":  # over all but the images
            names = self.transform.image_key
            images = {
                name: batch[name] for name in (names if isinstance(names, tuple) else [names])
            }
            rest = {name: x for name, x in batch.items() if name not in images}
            return self.closed_over(pickle.dumps(rest))(images)
        return self.jitted(batch, self.key, True)

    def mix(self, batch: Any, key: Any) -> Any:
        return self.transform.mix(batch) if key is None else self.transform.mix(batch, key=key)

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def closed_over(self, rest: bytes) -> Callable[[Any], Any]:
        return jax.jit(lambda images: self.mix(pickle.loads(rest) | images, self.key))

    @functools.cached_property
    def jitted(self) -> Callable[[Any, Any, bool], Any]:
        """`mix` in a program of a user's; each of these is one of two."""

        def vmap(batch: Any, key: Any) -> Any:
            if key is not None:
                return jax.vmap(lambda key: self.mix(batch, key))(jnp.stack([key, key]))
            seeds = jnp.stack([batch["mix_seed"] + 1, batch["mix_seed"]])
            return jax.vmap(lambda seeds: self.mix(batch | {"mix_seed": seeds}, None))(seeds)

        def scan(batch: Any, key: Any) -> Any:
            both = jax.tree.map(lambda x: jnp.stack([x, x]), (batch, key))
            return jax.lax.scan(lambda carry, x: (carry, self.mix(*x)), None, both)[1]

        def run(batch: Any, key: Any, flag: bool) -> Any:
            if self.road == "vmap":
                return jax.tree.map(lambda x: x[1], vmap(batch, key))
            if self.road == "scan":
                return jax.tree.map(lambda x: x[1], scan(batch, key))
            if self.road == "remat":
                return jax.checkpoint(self.mix)(batch, key)
            if self.road == "cond":
                specs = jax.eval_shape(self.mix, batch, key)
                zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), specs)
                return jax.lax.cond(flag, lambda: self.mix(batch, key), lambda: zeros)
            return self.mix(batch, key)

        return jax.jit(run)


def batch_of(
    rng: np.random.Generator, size: int, fields: dict[str, Field], special: bool = False
) -> dict[str, Any]:
    return {
        name: values(rng, content, (size, *shape), dtype, special)
        for name, (content, shape, dtype) in fields.items()
    }


def values(
    rng: np.random.Generator,
    content: str,
    shape: tuple[int, ...],
    dtype: str,
    special: bool = False,
) -> np.ndarray:
    floats, made = "float" in dtype, jnp.dtype(dtype)
    if content == "ids":
        return rng.integers(K, size=shape).astype(made)
    if content == "rows":  # that sum to 1
        x = (
            rng.dirichlet(np.ones(K), shape[0])
            if floats
            else np.eye(K)[rng.integers(K, size=shape[0])]
        )
        return x.astype(made)
    if content == "chances" or dtype == "bool":
        return (rng.random(shape) if floats else rng.integers(2, size=shape)).astype(made)
    if content == "points":  # in an image of this shape, or up to a pixel outside
        sides = np.array(shape[1:])
        return (rng.random((shape[0], 4, len(sides))) * (sides + 2) - 1).astype(made)
    if "xy" in content:  # boxes of this format that end on pixels or halves, up to one outside
        steps, least = 2 if floats else 1, 0 if dtype.startswith("u") else -1
        most = (np.array(shape[1:]) + 1) * steps
        corners = rng.integers(least * steps, most, (shape[0], 3, 2, 2), endpoint=True) / steps
        corners[:, 0] = (0, 0), shape[1:]
        return reference.boxes_of(np.sort(corners, axis=2), content, shape[1:]).astype(made)
    if not floats:
        info = np.iinfo("int32" if dtype == "int64" else dtype)
        x = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        return np.where(rng.random(shape) < 0.2, info.max, x).astype(made) if special else x
    x = rng.normal(size=shape).astype(made)
    odd = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 65504]).astype(made)
    return np.where(rng.random(shape) < 0.3 * special, rng.choice(odd, shape), x)


def chooser(rng: np.random.Generator) -> Any:
    return lambda *options: options[rng.integers(len(options))]


def all_kinds(
    transform: Any, number: int, shape: tuple[int, ...] = (8, 16, 3)
) -> tuple[Any, dict[str, Field]]:
    """The transform with all kinds that it takes, and the fields of its batches."""
    one = chooser(np.random.default_rng(number))
    kinds = kinds_for(one, transform, shape, transform.spatial_axes or (1, 2))
    fields = {"image": ("any", shape, "uint8"), "mix_seed": ("any", (), "uint32")}
    transform = dataclasses.replace(transform, targets={n: x[0] for n, x in kinds.items()})
    return transform, fields | fields_for(one, kinds)


def copies(transform: Any) -> bool:
    """Whether each of its pixels is copied from one source."""
    if isinstance(transform, gm.WeightMapMixBatch):
        return transform.weight_map != fog and not isinstance(transform.weight_map, maps.SmoothMix)
    return isinstance(transform, gm.CutMixBatch | gm.MosaicBatch)


def map_to_import(one: Any, lengths: tuple[int, ...]) -> tuple[Any, dict[str, Field]]:
    """One of `gm.maps`, for an image of these lengths, and the field that it reads.

    Args:
        one: chooses.
        lengths: along the box's axes, in the image's order.
    """
    some: dict[Any, Field] = {
        maps.ClassMix("read"): ("any", lengths, one(*DTYPES[:6])),
        maps.ClassMix("read", ignore=one(0, 3)): ("ids", lengths, one(*IDS)),
        maps.ClassMix("read", ignore=one(None, 1)): ("any", lengths, "bool"),
        maps.CopyPaste("read"): ("ids", (3, *lengths), one(*DTYPES)),
        maps.CopyPaste("read", chance=0.8): ("any", (2, *lengths), "bool"),
        maps.SaliencyMix("read"): (one("any", "ids"), lengths, one(*DTYPES, "bool")),
    }
    others: list[Any] = []
    if len(lengths) == 2:
        others = [maps.FMix(), maps.FMix(1.5), maps.SmoothMix(), maps.Stripe()]
        others += [maps.GridMix(n) for n in (1, 2, 5) if n < min(lengths)]
        others += [maps.Patches(n) for n in (1, 2, 3) if n < max(lengths)]
        others += [maps.SpecMix()] * 2 * (min(lengths) >= 8)
    weight_map = one(*some, *others)
    return weight_map, {"read": some[weight_map]} if weight_map in some else {}


@functools.cache
def program(index: int) -> Program:
    rng = np.random.default_rng(index)
    one: Any = chooser(rng)
    cls: Any = CLASSES[index % len(CLASSES)]
    road, setting = one("map", "map", "sharded", *ROADS), one(*SETTINGS)
    k = {gm.MosaicBatch: 4, gm.MixUpBatch: one(2, 2, 3, 4, 8)}.get(cls, 2)
    planes = [each for each in LAYOUTS if len(each[1] or (1, 2)) == 2]
    of_class = {gm.MosaicBatch: planes, gm.WeightMapMixBatch: LONGER}
    shape, axes = one(*of_class.get(cls, LAYOUTS))
    own: dict[str, Any] = {"prob": one(1.0, 1.0, 0.5, 0.0), "spatial_axes": axes}
    partners = ("other",) if k == 2 else tuple(f"other{r}" for r in range(1, k))
    if brings := rng.random() < 0.3:
        own["partner_key"] = partners if k > 2 else "other"
    own["mode"] = one("elem", "batch") if brings or k > 2 else one("elem", "pair", "batch")
    for name in [f.name for f in dataclasses.fields(cls)]:
        if name.endswith("alpha"):
            own[name] = one(*(LAWS if k == 2 else OF_MANY))
        if name.endswith("minmax"):  # the paper's box needs axes longer than 1
            own[name] = one(None, None, (0.2, 0.9)) if min(shape) > 1 else (0.2, 1)
    if cls is gm.MosaicBatch:
        own["split"] = one((0.25, 0.75), (0, 1), (0.4, 0.4))
    if cls is gm.MixUpBatch:
        own["sources"] = k
    read: dict[str, Any] = {}
    if cls is gm.WeightMapMixBatch:
        front = [axis % (len(shape) + 1) for axis in axes or (1, 2)]
        lengths, sides = (
            tuple(shape[axis - 1] for axis in each) for each in (front, sorted(front))
        )
        own["weight_map"] = one(coins, fog, nearest, *["to import"] * 5)
        if own["weight_map"] is nearest:
            own["reads"], read = ("height",), {"height": ("any", lengths, one(*DTYPES))}
        elif own["weight_map"] == "to import":
            own["weight_map"], read = map_to_import(one, sides)
            if not getattr(own["weight_map"], "uses_lam", True):
                del own["alpha"]
            if isinstance(own["weight_map"], maps.FMix | maps.SmoothMix):
                road = "map"  # as far as their floats go, they are the same on all others
    transform = cls(**own)
    dtypes = [*DTYPES, *["bool"] * copies(transform)]
    fields: dict[str, Any] = {"image": ("any", shape, one(*dtypes)), **read}
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        options["image_key"] = ("image", "depth")
        fields["depth"] = ("any", shape, one(*dtypes))
    if rng.random() < 0.25:  # the short form
        classes = one(K, None)
        options |= {"num_classes": classes, "label_smoothing": one(0.0, 0.1)}
        soft = [*FLOATS, "float64", "bool", *([] if road in ROADS else ["uint8"])]
        fields["label"] = ("rows", (K,), one(*soft))
        if classes is not None:
            fields["label"] = ("ids", one((), (1,)), one(*IDS))
    else:
        kinds = kinds_for(one, transform, shape, axes or (1, 2))
        kinds = {name: kinds[name] for name in kinds if rng.random() < 0.4}
        options["targets"] = {name: x[0] for name, x in kinds.items()}
        options["label_key"] = one(None, "label")
        fields |= fields_for(one, kinds)
    if rng.random() < 0.3:
        options["valid_key"] = "valid"
        fields["valid"] = ("any", (), "bool")
    for above in partners if brings else ():
        more = {n: x for n, x in fields.items() if "/" not in n}
        fields |= {f"{above}/{n}": x for n, x in more.items() if n != "valid" or one(True, False)}
    slices, size = one(1, 2, 4), one(*((1, 2, 3, 4, 7) if k == 2 else (k - 1, k, k + 3, 2 * k)))
    if road == "sharded":
        size = slices * (one(1, 2, 3) if brings else k)
        mesh = jax.make_mesh((slices,), ("data",), devices=jax.devices()[:slices])
        options["sharding"] = NamedSharding(mesh, PartitionSpec("data"))
    key = None
    if road in ROADS and rng.random() < 0.4:
        key = one(jax.random.PRNGKey, functools.partial(jax.random.key, impl="rbg"))(index % 1000)
    else:
        fields["mix_seed"] = ("any", (), "uint32")
    return Program(dataclasses.replace(transform, **options), fields, size, road, key, setting)


def fields_for(one: Any, kinds: dict[str, tuple[Any, ...]]) -> dict[str, Field]:
    fields: dict[str, Any] = {}
    for name, (_, content, of_record, dtypes, *more) in kinds.items():
        fields |= {name: (content, of_record, one(*dtypes)), **dict(*more)}
    return fields


def kinds_for(
    one: Any, transform: Any, shape: tuple[int, ...], axes: tuple[int, ...]
) -> dict[str, tuple[Any, ...]]:
    """Of each field its kind, content, shape and possible dtypes, and further fields."""
    parts, by_map = not isinstance(transform, gm.MixUpBatch), hasattr(transform, "weight_map")
    n, bits = len(axes), ["bool"] * copies(transform)
    front = [axis % (len(shape) + 1) for axis in axes]
    lengths, sides = (tuple(shape[axis - 1] for axis in each) for each in (front, sorted(front)))
    smooth, column = one(0.0, 0.2), one((), (1,))
    layouts = [(None, shape), (None, sides), (tuple(range(n + 1, 1, -1)), (2, *lengths[::-1]))]
    layouts += [] if parts else [(None, (3,))]
    (of_values, values_shape), (of_ids, ids_shape) = one(*layouts), one(*layouts)
    hot, tags = (
        gm.OneHot(K, smoothing=smooth),
        gm.MultiHot(smoothing=smooth, union=one(False, True)),
    )
    seen = {"seen": ("any", one((4,), ()), one("bool", "int32"))}
    numbers, many = [*FLOATS, "float64"], one((6,), (), (2, 3))
    kinds: dict[str, tuple[Any, ...]] = {
        "label": (hot, "ids", column, IDS),
        "tags": (tags, "chances", (K,) if parts else one((K,), (2, K)), [*numbers, *IDS, "bool"]),
        "soft": (gm.Soft(smoothing=smooth), "any", (K,) if smooth else many, numbers),
        "breed": (gm.Sparse(one(None, K)), "ids", column, IDS),
        "caption": (gm.Stacked(), "any", many, [*numbers, "int64", "bool"]),
        "heat": (gm.ValueMap(of_values), "any", values_shape, [*DTYPES, *bits]),
        "points": (Points("seen"), "points", lengths, ["float32", "int32"], seen),
    }
    if bits or not by_map:
        kinds["classes"] = (gm.LabelMap(of_ids), "any", ids_shape, [*DTYPES, "bool"])
    if n == 2 and (bits or not by_map):
        formats = ["xyxy", "yxyx", "xywh"]
        dtypes = one(FLOATS, ["int32", "uint8", "int64"])
        if dtypes is FLOATS:
            formats += ["center_xywh"]
            # Fractions with which float32 computes exactly, so that the oracle need not round.
            exact = all(side & (side - 1) == 0 for side in sides)
            formats += [f"rel_{name}" for name in formats] if exact else []
        masks, box_format = "masks" if by_map else one(None, "masks"), one(*formats)
        kind = gm.Boxes(box_format, fields=("class",), masks=masks, min_visible=one(0, 0.1, 0.5))
        more = {"class": ("any", one((3,), (3, 2)), one("int64", "float32"))}
        more |= {"masks": ("any", (3, *sides), one("bool", "uint8"))} if masks else {}
        kinds["boxes"] = (kind, box_format, sides, dtypes, more)
    return kinds

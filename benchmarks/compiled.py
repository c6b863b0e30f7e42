"""What XLA's compilers make of each transform for devices that are not here.

Nothing runs, so that the figures are exact: they are the same each time and on any machine.
"""

import functools
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import grain_mix as gm
from benchmarks import _maps, _report, _sass, _topologies

TRANSFORMS: dict[str, Any] = {
    "MixUp": gm.MixUpBatch,
    "CutMix": gm.CutMixBatch,
    "both": gm.MixBatch,
    "MixUp of 4": functools.partial(gm.MixUpBatch, sources=4),
    "a mosaic": gm.MosaicBatch,
    "a bool map": functools.partial(gm.WeightMapMixBatch, _maps.band),
    "a float map": functools.partial(gm.WeightMapMixBatch, _maps.fade),
}
DTYPES = ("uint8", "bfloat16", "float32")
COLLECTIVES = r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+"
PER_BYTE, OVER_COPY = "instructions per byte", "bytes over copy's"
PLAIN_JIT = "the same, without shard_map"


def run(
    quick: bool,
    rounds: int | None = None,
    targets: Sequence[str] = (),
    before: pathlib.Path | None = None,
) -> _report.Report:
    """Compiles for all targets, or for those that are named."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu asks the cloud for its TPU otherwise
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # or JAX asks for a driver
    size, side, classes = (8, 16, 10) if quick else (128, 224, 1000)
    dtypes = DTYPES[:1] if quick else DTYPES
    kinds = list(TRANSFORMS)[:1] if quick else list(TRANSFORMS)
    rows = []
    for target in targets or _topologies.TARGETS:
        devices = _topologies.devices(target)
        for dtype in dtypes:
            shape = (size, side, side, 3)
            for kind in kinds:
                transform = TRANSFORMS[kind](num_classes=classes)
                figures = _compile_for(devices[:1], transform, shape, dtype)
                rows.append({"target": target, "transform": kind, "dtype": dtype} | figures)
    if not quick and not targets:
        rows += _pod(classes)
    earlier = json.loads(before.read_text())["rows"] if before else []
    return _report.Report(
        subject="compiled",
        setting=f"Batches of {size} x {side} x {side} x 3, {classes} classes, compiled for one "
        "device, none of which is here. Instructions are those of the kernel that writes the "
        "pixels, for each byte of pixels; bytes are the compiler's estimate, over those of a copy.",
        rows=rows,
        table=_table(rows, earlier),
        plot=lambda figure: _plot(figure, rows),
        notes=list(_notes(rows)),
        inches=(9, 8),  # for 45 bars
    )


def _compile_for(
    devices: list[Any], transform: Any, shape: tuple[int, ...], dtype: str
) -> dict[str, Any]:
    mesh = Mesh(np.array(devices), ("data",))
    data = PartitionSpec("data")
    batch = _batch(shape, dtype, NamedSharding(mesh, data))
    mix = jax.shard_map(transform.mix, mesh=mesh, in_specs=(data,), out_specs=data)
    start = time.perf_counter()
    compiled = jax.jit(mix).trace(batch).lower().compile()
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    image = math.prod(shape) * jnp.dtype(dtype).itemsize
    figures: dict[str, Any] = {
        "kernels": None,
        PER_BYTE: None,
        OVER_COPY: None,
        PLAIN_JIT: None,
    }
    if devices[0].platform in ("cuda", "gpu"):
        kernels = _sass.kernels(compiled)
        pixels = kernels[_fusion_of(text, 8 * image)]
        figures |= {
            "kernels": len(kernels),
            PER_BYTE: len(pixels) / _sass.bytes_stored(pixels),
        }
    copy = jax.jit(jnp.copy).trace(batch["image"]).lower().compile()
    if (moved := _bytes_accessed(compiled)) is not None:
        figures[OVER_COPY] = moved / _bytes_accessed(copy)
        plain = jax.jit(transform.mix).trace(batch).lower().compile()
        figures[PLAIN_JIT] = _bytes_accessed(plain) / _bytes_accessed(copy)
    return figures | {
        "collectives": len(re.findall(rf"(?:{COLLECTIVES})(?:-start)?\(", text)),
        "loops": len(re.findall(r"\bwhile\(", text)),
        "host calls": len(
            re.findall(r"custom_call_target=\"\w*callback|\b(?:infeed|outfeed)\(", text)
        ),
        "temporary memory": compiled.memory_analysis().temp_size_in_bytes / image,
        "seconds to compile": seconds,
    }


def _batch(shape: tuple[int, ...], dtype: str, sharding: NamedSharding) -> dict[str, Any]:
    struct = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    return {
        "image": struct(shape, dtype),
        "label": struct(shape[:1], "int32"),
        "mix_seed": struct(shape[:1], "uint32"),
    }


def _bytes_accessed(compiled: Any) -> float | None:
    """The compiler's own estimate; that for GPUs makes none."""
    analysis = compiled.cost_analysis()
    return analysis["bytes accessed"] if analysis else None


def _fusion_of(text: str, size: int) -> str:
    """The kernel's name of the instruction whose result has as many bits as the images."""
    entry = text[text.index("\nENTRY") :]
    sizes = {}
    for name, dtype, dims in re.findall(r"%(\S+) = (\w+)\[([\d,]*)\]\S* fusion\(", entry):
        bits = int(re.sub(r"\D", "", dtype) or 8)
        sizes[name] = bits * math.prod(int(d) for d in dims.split(",") if d)
    return re.sub(r"[.-]", "_", min(sizes, key=lambda name: abs(sizes[name] - size)))


def _pod(classes: int) -> Iterator[dict[str, Any]]:
    """Collectives on 4,096 chips with axes for data and for the model, 8 records for each shard."""
    devices = np.array(_topologies.devices(_topologies.POD)).reshape(-1, 16)
    mesh = Mesh(devices, ("data", "model"))
    data = PartitionSpec("data")
    batch = _batch((8 * len(devices), 224, 224, 3), "uint8", NamedSharding(mesh, data))
    for kind, transform in TRANSFORMS.items():
        of_pairs = kind not in ("MixUp of 4", "a mosaic")
        for mode in ("elem", "pair") if of_pairs else ("elem",):
            mix = transform(num_classes=classes, mode=mode).mix
            programs = {
                "shard_map": jax.shard_map(mix, mesh=mesh, in_specs=(data,), out_specs=data),
                "jit": mix,
            }
            for form, program in programs.items():
                text = jax.jit(program).trace(batch).lower().compile().as_text()
                yield {
                    "target": _topologies.POD,
                    "transform": kind,
                    "mode": mode,
                    "form": form,
                    "collectives": len(re.findall(rf"(?:{COLLECTIVES})(?:-start)?\(", text)),
                }


def _table(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("target", "transform", "dtype")
    earlier = {tuple(row.get(name) for name in names): row for row in before}
    table = []
    for row in rows:
        if "form" in row:
            continue
        line = {}
        for name, value in row.items():
            was = earlier.get(tuple(row[name] for name in names), {}).get(name)
            compared = name in (PER_BYTE, OVER_COPY) and before
            if compared:
                line[f"{name}, before"] = was
            line[name] = value
        table.append(line)
    return table


def _notes(rows: list[dict[str, Any]]) -> Iterator[str]:
    pod = [row for row in rows if "form" in row]
    if pod:
        programs = f"{len(pod)} programs for {_topologies.POD} (elem and pair, shard_map and jit)"
        yield f"{programs}: {sum(row['collectives'] for row in pod)} collectives."


def _plot(figure: Any, rows: list[dict[str, Any]]) -> None:
    gpus = {
        f"{row['target']} {row['transform']} {row['dtype']}": row[PER_BYTE]
        for row in rows
        if row.get(PER_BYTE)
    }
    others = {
        f"{row['target']} {row['transform']} {row['dtype']}": row[OVER_COPY]
        for row in rows
        if "form" not in row and not row[PER_BYTE]
    }
    figures = [(gpus, PER_BYTE), (others, OVER_COPY)]
    drawn = [(values, unit) for values, unit in figures if values]
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axis, (values, unit) in zip(axes, drawn, strict=True):
        _report.bars(axis, values, "GPUs" if unit == PER_BYTE else "TPUs", unit)

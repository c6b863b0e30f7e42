"""Devices that are not here, as far as XLA's compilers have to know them."""

from typing import Any, NamedTuple

from jax.experimental import topologies


class Gpu(NamedTuple):
    """Facts about a chip, from `xla/backends/gpu/target_config/specs` of github.com/openxla/xla."""

    name: str
    compute_capability: int
    cores: int
    gigahertz: float
    memory: int
    bandwidth: int
    cache: int


GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 1.98, 84942979072, 3352320000000, 52428800),
    "h200": Gpu("NVIDIA H200 141GB HBM3e", 9, 132, 1.98, 151397597184, 4800000000000, 52428800),
    "b200": Gpu("NVIDIA B200", 10, 148, 1.965, 191514411008, 7672320000000, 132644864),
}
TPUS = {"v5e": "v5e:2x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x4"}
POD = "v5p:16x16x16"
TARGETS = (*GPUS, *TPUS)

GPU_TEXT = """
gpu_device_info {{
  name: "{name}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {compute_capability} feature_extension: ACCELERATED_FEATURES }}
  core_count: {cores}
  fpus_per_core: 128
  clock_rate_ghz: {gigahertz}
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  device_address_bits: 64
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


def devices(target: str) -> list[Any]:
    """The devices of one of `TARGETS`, or of any topology of TPUs, such as `POD`."""
    if target in GPUS:
        text = GPU_TEXT.format(**GPUS[target]._asdict())
        described = topologies.get_topology_desc(
            target, platform="cuda", target_config=text, topology="1x1x1"
        )
    else:
        described = topologies.get_topology_desc(TPUS.get(target, target), platform="tpu")
    return list(described.devices)

"""Fixtures for all tests."""

import atexit
import contextlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
from absl import flags

# Eight devices for the tests of sharding; read when JAX starts its first platform.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")


def kept_folder() -> pathlib.Path:
    """One for each JAX, Python and processor, since a program is compiled for just these."""
    cpu = pathlib.Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else [platform.processor()]
    features = "".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    machine = f"{platform.machine()}_{zlib.crc32(features.encode()):08x}"
    name = f"jax{importlib.metadata.version('jax')}-{python}-{machine}"
    return pathlib.Path(__file__).parents[1] / "build" / "jax-cache" / name


# Each of pytest's processes works in a folder of its own, since JAX may read an entry that another
# process still writes. The folder begins with all that is kept, as hard links, and at the end what
# is new in it is kept in turn. A run that is killed keeps nothing.
KEPT = kept_folder()
KEPT.mkdir(parents=True, exist_ok=True)
for forgotten in KEPT.parent.glob("run-*"):  # by runs that were killed
    if forgotten.stat().st_mtime < time.time() - 24 * 3600:
        shutil.rmtree(forgotten, ignore_errors=True)
CACHE = pathlib.Path(tempfile.mkdtemp(prefix="run-", dir=KEPT.parent))
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
for entry in KEPT.iterdir():
    with contextlib.suppress(FileNotFoundError):  # another run has just started anew
        os.link(entry, CACHE / entry.name)
# The processes that tests start inherit it, and need not compile again what this one has.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
# Or the folder's name would be part of each key.
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_unconfigure() -> None:
    """Keeps the programs that are new."""
    from jax._src import compilation_cache

    # Some tests draw their shapes, so there is always more. At some point all begin anew.
    if sum(entry.stat().st_size for entry in KEPT.iterdir()) > 300 * 2**20:
        shutil.rmtree(KEPT, ignore_errors=True)
        KEPT.mkdir(exist_ok=True)
        return
    for entry in CACHE.glob("*-cache"):
        if (KEPT / entry.name).exists():
            continue
        # A test may have killed the process that wrote it, in the middle.
        with contextlib.suppress(Exception):
            compilation_cache.decompress_executable(entry.read_bytes())
            os.link(entry, KEPT / entry.name)


def pytest_configure(config: pytest.Config) -> None:
    """Has XLA optimise little in the fast tests, most of whose time is that of its compiler.

    It still simplifies what it is given, but generates plain machine code. The slow tests get what
    users get, but for those that ask for the fixture `plain`; and so do the fast ones that ask for
    `optimised`.
    """
    if config.option.markexpr == "not slow":
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # before JAX is imported


LONGEST = [
    "test_outputs_are_those_of_the_code",
    "test_killed_and_resumed",
    "test_the_script_trains_and_mixing_helps",
    "test_results_stay",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts what takes longest first, so that it does not run alone at the end."""
    items.sort(key=lambda item: item.name not in LONGEST)


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine code that users get, with products that are fused into sums."""
    yield from _compiles(monkeypatch, "0")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plain machine code, for what has to run and whose last bits do not matter."""
    yield from _compiles(monkeypatch, "1")


def _compiles(monkeypatch: pytest.MonkeyPatch, plain: str) -> Iterator[None]:
    """Here, and in processes that the test starts."""
    import jax

    before = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1"
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", plain)
    jax.config.update("jax_disable_most_optimizations", plain == "1")
    yield
    jax.config.update("jax_disable_most_optimizations", before)


flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags

# Like Ctrl-C, which lets fixtures end the processes that they started.
signal.signal(signal.SIGTERM, signal.default_int_handler)
# A job in the background of a script ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The first example of a shape compiles, which takes as long as it takes. In CI the examples are the
# same each time, as in Hypothesis's own profile for CI: what fails there is due to a change.
hypothesis.settings.register_profile("grain_mix", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("grain_mix")


@pytest.fixture
def rng() -> np.random.Generator:
    """A new seed for each run. A failed test prints it, and with it the run can be repeated."""
    seed = int(os.environ.get("GRAIN_MIX_TEST_SEED") or np.random.SeedSequence().entropy % 2**32)
    print(f"GRAIN_MIX_TEST_SEED={seed}")
    return np.random.default_rng(seed)

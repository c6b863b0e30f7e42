"""Fixtures for all tests."""

import atexit
import os
import shutil
import signal
import tempfile

import hypothesis
import numpy as np
import pytest
from absl import flags

# Eight devices for the tests of sharding; read when JAX starts its first platform.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
# Grain's workers and the examples' processes need not compile again what this process has, or each
# other. Each of pytest's processes has its own: JAX may read an entry that another still writes.
CACHE = tempfile.mkdtemp(prefix="grain_mix-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
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

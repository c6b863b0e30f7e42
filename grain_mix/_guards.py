"""What surrounds each of our calls into JAX: platforms, settings, no mesh, a Python that stays.

The state of the package that is global to a process is here, the calls in progress and whether
Python is ending, and in `_plan`, the last plans. While the end waits for calls, Ctrl-C
does nothing.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from grain_mix._dtypes import narrow_dtype

PATIENCE = 20.0  # seconds that the end of Python waits for calls in progress
GRACE = 0.5  # seconds that it waits for the threads that made them

_NOTHING: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
_NO_MESH = Mesh(np.empty((), object), ())
_in_progress: set[tuple[int, object]] = set()
_callers: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # all but the main thread
_ending = False


@contextlib.contextmanager
def into_jax() -> Iterator[None]:
    """Surrounds every call that uses JAX.

    Raises:
        RuntimeError: Python is ending, and this is not its main thread.
    """
    _spare_accelerators()
    call = os.getpid(), object()  # a forked child inherits the set, but not the threads
    try:  # around all: Ctrl-C may come after any of these
        _in_progress.add(call)  # before the look at _ending, or a call could slip by _end
        thread = threading.current_thread()
        if thread is not threading.main_thread():
            _callers.add(thread)
            if _ending:
                raise RuntimeError("grain_mix: Python is ending, so this thread cannot mix more")
        with _settings():
            yield
    finally:
        _in_progress.discard(call)


def _end() -> None:
    """Lets no thread be inside JAX when Python ends, as far as our own calls go.

    Workaround for Grain 0.2.18, whose daemon threads go on until Python has ended: one that comes
    back from JAX then aborts the process. https://github.com/google/grain/issues/1196
    A thread whose call is refused ends by itself. Grain uses JAX around our calls as well, for its
    statistics, so the threads get some time more.

    Ctrl-C does not cut this short, since the abort would come in its place. What it can do before,
    with or without this package, is leave the lock of Grain's queue taken, if it hits a `next`.
    Then Grain waits for that lock when its iterator is deleted, until one more Ctrl-C.
    """
    global _ending
    defers = _interrupts_here()
    if defers:
        signal.signal(signal.SIGINT, lambda *_: None)
    try:
        _ending = True
        pid = os.getpid()
        _wait_while(lambda: any(owner == pid for owner, _ in tuple(_in_progress)), PATIENCE)
        if _callers:
            _wait_while(lambda: any(thread.is_alive() for thread in tuple(_callers)), GRACE)
            _wait_while(lambda: True, GRACE / 10)  # for those that only pass on what ours made
        atexit.unregister(_end)
    finally:
        if defers:
            signal.signal(signal.SIGINT, signal.default_int_handler)


# Python raises KeyboardInterrupt where its next function begins. If that is _end, it never gets to
# its first line, so the same comes again. The first that is done takes back the others.
for _ in range(3):
    atexit.register(_end)


def _interrupts_here() -> bool:
    """Whether Ctrl-C raises `KeyboardInterrupt` here; handlers of others stay."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    return in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _wait_while(busy: Callable[[], bool], seconds: float) -> None:
    """What others' handlers of signals raise does not cut this short either."""
    deadline = time.monotonic() + seconds
    waiting = True
    while waiting:
        with contextlib.suppress(BaseException):
            time.sleep(0.005)
            waiting = busy() and time.monotonic() < deadline


def _spare_accelerators() -> None:
    """Tells JAX of the CPU alone in a Grain worker, before JAX starts there.

    Workaround for Grain 0.2.18: JAX starts every platform it finds when the first is asked for, and
    a GPU's memory is taken then. A Grain worker has no business there:
    https://github.com/google/grain/issues/820, https://github.com/google/grain/issues/1199
    """
    if is_grain_worker():
        jax.config.update("jax_platforms", "cpu")


def is_grain_worker() -> bool:
    """Whether this process is one that Grain started to load data."""
    process: Any = multiprocessing.current_process()
    if not (process.daemon and process.name.startswith("grain-process-prefetch-")):
        return False
    # Anyone can choose a name. Workaround for Grain 0.2.18, which says so in a private place alone:
    # its workers set this before they load a dataset.
    module = sys.modules.get("grain._src.python.dataset.transformations.process_prefetch")
    return bool(getattr(module, "_is_in_worker_process", True))


def _settings() -> contextlib.AbstractContextManager[Any]:
    """What must not change our calls, where it is set: most often nothing is, and nothing is done.

    Our calls copy NaN and infinity, which users may search for in what they compute themselves.
    What a call sends to a device or brings back, it has been asked for.

    Workaround for JAX 0.8 to 0.12: a program that is compiled inside a mesh belongs to the devices
    of that mesh, while ours belongs to the devices that hold its input:
    https://github.com/google/orbax/issues/3183
    """
    config: Any = jax.config
    contexts: list[contextlib.AbstractContextManager[Any]] = []
    if config.jax_debug_nans:
        contexts.append(jax.debug_nans(False))
    if config.jax_debug_infs:
        contexts.append(jax.debug_infs(False))
    if any(
        guard not in (None, "allow")
        for guard in (
            config.jax_transfer_guard,
            config.jax_transfer_guard_host_to_device,
            config.jax_transfer_guard_device_to_host,
            config.jax_transfer_guard_device_to_device,
        )
    ):
        contexts.append(jax.transfer_guard("allow"))
    if not jax.sharding.get_abstract_mesh().empty:
        with contextlib.suppress(ValueError):  # under jit the surrounding program has the mesh
            contexts.append(jax.set_mesh(_NO_MESH))
    if not contexts:
        return _NOTHING
    stack = contextlib.ExitStack()
    for context in contexts:
        stack.enter_context(context)
    return stack


def jax_defaults() -> contextlib.AbstractContextManager[Any]:
    """JAX's own settings, for tracing a user's function, so that a record's draw is its own."""
    stack = contextlib.ExitStack()
    for context in (
        jax.enable_x64(False),
        jax.threefry_partitionable(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_prng_impl("threefry2x32"),
        jax.default_matmul_precision(None),
    ):
        stack.enter_context(context)
    return stack


def narrowed(x: jax.Array) -> jax.Array:
    """What a user's function gets with x64 too: JAX's own settings know 32 bits."""
    dtype = narrow_dtype(x.dtype)
    return x if x.dtype == dtype else x.astype(dtype)

"""What guards each of our calls into JAX: from JAX's settings, from meshes, from the end of Python.

The state that is global to a process is here: the calls in progress, and whether Python is ending.
(The last plans are in `_plan`, the topics of warnings in `_errors`.)
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

    Ctrl-C does nothing in the meantime, or the process would abort. Before that, with or without
    this package, Ctrl-C in a `next` of Grain's may leave the lock of its queue taken. Then Grain
    waits for that lock when its iterator is deleted, until one more Ctrl-C.
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


# Ctrl-C raises KeyboardInterrupt where Python's next function begins. If that function is _end, it
# ends before its first line. So it is registered three times, and the first to finish unregisters
# the others.
for _ in range(3):
    atexit.register(_end)


def _interrupts_here() -> bool:
    """Whether Ctrl-C raises `KeyboardInterrupt` here. Other handlers of signals are left alone."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    return in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _wait_while(busy: Callable[[], bool], seconds: float) -> None:
    """Waits while something is busy, also through errors that handlers of signals raise."""
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
    """Lifts the settings of JAX that would change our calls or refuse them; often there are none.

    - `debug_nans` and `debug_infs`: users search for what they compute, and we only copy it.
    - Transfer guards: a user who calls us asks for the transfers.
    - A mesh that is set: our programs belong to the devices of their input.

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
    """JAX's default settings, under which users' functions are traced: any others change draws.

    But `random_seed_offset`, which JAX 0.8 to 0.12 sets for all threads alone: it moves the keys
    that a function makes of numbers of its own.
    """
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

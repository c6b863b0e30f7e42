"""What a user's function does when it is compiled: tried before any batch is mixed with it."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from grain_mix._errors import fail
from grain_mix._guards import jax_defaults

TRACES = 8


def check_pure(caller: str, name: str, function: Callable[..., Any], *specs: Any, fix: str) -> Any:
    """Checks that a function can be compiled, and is the same each time; returns what it returns.

    A compiled function is run once, on arrays whose values are not known yet. A random number or a
    counter of Python becomes a constant, the same one for all records, another in each process. So
    the function is traced several times, and the programs are compared: a coin of Python falls
    alike in all of 8 traces once in 128 times. What Python computes while the program runs is
    refused, since nobody can tell what it depends on.

    Args:
        caller: the transform, for errors.
        name: how the user calls the function.
        function: of JAX arrays; called under JAX's own settings.
        *specs: shapes and dtypes of its arguments.
        fix: what to use instead of a random number of NumPy.

    Returns:
        Shapes and dtypes of the result, or the result itself where it is no tree of arrays.
    """
    try:
        first, spec = _trace(function, specs, 0)
        same = all(_trace(function, specs, i)[0] == first for i in range(1, TRACES))
    except _OF_TRACERS as error:
        message = str(error).partition("\n")[0]
        got = f"{name} looks at values that are not known when it is compiled ({message})"
        advice = "write jnp.where(lam > 0.5, a, b) for if, and jnp instead of np and of int(...)"
        try:
            fail(TypeError, caller, got, "a function of JAX operations", advice)
        except TypeError as ours:
            raise ours from error
    except Exception as error:
        if name.endswith(".mix"):
            error.add_note(
                f"{caller}: raised in {name}. Under some transforms draw.box is None; "
                "draw.weights_at(points) works under all."
            )
        raise
    if not same:
        got = f"{name} gave two programs when it was traced {TRACES} times, so it uses a random "
        got += "number of NumPy or Python, a counter, or something else that changes"
        fail(ValueError, caller, got, "the same program each time", fix)
    if (jax.core.Tracer,) in first[1]:
        got = f"{name} holds a value of the function around it, which is not known"
        advice = "pass plain numbers, and make a transform for each value"
        fail(TypeError, caller, got, "numbers that are known when it is compiled", advice)
    callback = re.search(r"\b(pure|io)_callback\[", first[0])
    if callback:
        got = f"{name} calls Python while it runs, by {callback[0][:-1]}"
        fail(TypeError, caller, got, "a function of JAX operations", f"write it with jnp; {fix}")
    return spec


_OF_TRACERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)


_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


def _trace(function: Callable[..., Any], specs: Any, number: int) -> tuple[Any, Any]:
    """The program of a function, as text and constants, and what it returns."""
    kept: list[Any] = []

    def anew(*args: Any) -> Any:
        with jax_defaults():
            result = function(*args)
        leaves = jax.tree.leaves(result)
        if not all(isinstance(leaf, _ARRAYS) for leaf in leaves):
            kept.append(result)
            return ()
        return result

    # JAX keeps what it has traced of a function that the user has decorated with jax.jit, by the
    # metadata too. So a number in there has it traced anew; the program itself stays the same.
    with set_xla_metadata(grain_mix_trace=str(number)):
        program, spec = jax.make_jaxpr(anew, return_shape=True)(*specs)
    text = re.sub(r" at 0x[0-9a-f]+", "", str(program))
    return (text, [*map(_bits, program.consts)]), kept[0] if kept else spec


def _bits(constant: Any) -> tuple[Any, ...]:
    """A key for a constant: the same for the same bits, NaN included."""
    if isinstance(constant, jax.core.Tracer):
        return (jax.core.Tracer,)
    if isinstance(constant, jax.Array) and jnp.issubdtype(constant.dtype, jax.dtypes.prng_key):
        return str(constant.dtype), *_bits(jax.random.key_data(constant))
    values = np.asarray(constant)
    return str(values.dtype), values.shape, values.tobytes()

"""What a user's function does when it is compiled: tried before any batch is mixed with it."""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from grain_mix._errors import fail
from grain_mix._guards import jax_defaults


def check_pure(where: str, name: str, function: Callable[..., Any], *specs: Any, fix: str) -> Any:
    """Checks that a function can be compiled, and is the same each time; returns what it returns.

    A compiled function is run once, on arrays whose values are not known yet. A random number or a
    counter of Python becomes a constant, the same one for all records, another in each process. So
    the function is traced twice, and the programs are compared.

    Args:
        where: the transform, for errors.
        name: how the user calls the function.
        function: of JAX arrays; called under JAX's own settings.
        *specs: shapes and dtypes of its arguments.
        fix: what to use instead of a random number of NumPy.

    Returns:
        Shapes and dtypes of the result, or the result itself where it is no tree of arrays.
    """
    try:
        (first, spec), (second, _) = (_trace(function, *specs) for _ in range(2))
    except _OF_TRACERS as error:
        message = str(error).partition("\n")[0]
        came = f"{name} looks at values that are not known when it is compiled ({message})"
        advice = "write jnp.where(lam > 0.5, a, b) for if, and jnp instead of np and of int(...)"
        try:
            fail(TypeError, where, came, "a function of JAX operations", advice)
        except TypeError as ours:
            raise ours from error
    except Exception as error:
        if name.endswith(".mix"):
            error.add_note(
                f"{where}: raised in {name}. Under some transforms draw.box is None; "
                "draw.weights_at(points) works under all."
            )
        raise
    if not _same(first, second):
        came = f"{name} gave two programs when it was traced twice, so it uses a random number"
        came += " of NumPy or Python, a counter, or something else that changes"
        fail(ValueError, where, came, "the same program each time", fix)
    return spec


_OF_TRACERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)


_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


def _trace(function: Callable[..., Any], *specs: Any) -> tuple[Any, Any]:
    """The program of a function, traced anew, and what it returns."""
    kept: list[Any] = []

    def anew(*args: Any) -> Any:
        with jax_defaults():
            result = function(*args)
        leaves = jax.tree.leaves(result)
        if not all(isinstance(leaf, _ARRAYS) for leaf in leaves):
            kept.append(result)
            return ()
        return result

    program, spec = jax.make_jaxpr(anew, return_shape=True)(*specs)
    return program, kept[0] if kept else spec


def _same(first: Any, second: Any) -> bool:
    constants = [
        len(first.consts) == len(second.consts),
        *(
            np.array_equal(np.asarray(a), np.asarray(b), equal_nan=np.asarray(a).dtype.kind in "fc")
            for a, b in zip(first.consts, second.consts, strict=False)
        ),
    ]
    texts = [re.sub(r" at 0x[0-9a-f]+", "", str(program)) for program in (first, second)]
    return all(constants) and texts[0] == texts[1]

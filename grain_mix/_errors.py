"""How an error reads: where it happened, what came, what was expected, and how to fix it."""

import dataclasses
import difflib
import functools
import numbers
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
WARNED: set[str] = set()  # the topics that this process has been warned of


def fail(error: type[Exception], caller: str, got: str, expected: str, fix: str) -> NoReturn:
    """Raises `error` with one message of the same form everywhere."""
    raise error(f"{caller}: {got}; expected {expected}; {fix}")


def warn_once(topic: str, text: str) -> None:
    """Warns of a topic, once per process."""
    if topic not in WARNED:
        WARNED.add(topic)
        warnings.warn(f"grain_mix: {text}", UserWarning, stacklevel=3)


def is_int(value: Any) -> bool:
    """Whether a value is a whole number, of Python or NumPy; a `bool` is not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_array(value: Any) -> bool:
    """Whether a value has a shape and a dtype: of NumPy, JAX, or a tracer of JAX."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type)


def kind(value: Any) -> str:
    """`"an int"`, `"a list"`: the type of a value, with its article."""
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def describe(value: Any) -> str:
    """`"uint8 [4, 8, 8, 3]"` for an array, else the type with its article."""
    return f"{value.dtype} {list(value.shape)}" if is_array(value) else kind(value)


def quote(value: Any) -> str:
    """The `repr` of what a user passed, cut off where it is too long to read."""
    text = repr(value)
    return text if len(text) < 500 else f"{text[:500]}..."


def did_you_mean(word: Any, words: Iterable[Any]) -> str:
    """`"did you mean 'image'? "` if one of the words is close, else `""`."""
    near = difflib.get_close_matches(str(word), [str(other) for other in words], n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def explains_mistakes(transform: type[T]) -> type[T]:
    """Lets a class be made with wrong arguments only to say which ones there are."""
    caller = transform.__name__
    made: Callable[..., None] = transform.__init__
    all_fields: Any = dataclasses.fields(transform)  # type: ignore[arg-type]
    positional = sum(not field.kw_only for field in all_fields)
    fields = [field.name for field in sorted(all_fields, key=lambda field: field.kw_only)]

    @functools.wraps(made)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        if args and isinstance(args[0], Mapping | Iterator):  # Grain calls what it takes to be one
            got = f"the class was given in place of a transform, and called with {kind(args[0])}"
            fix = f"write {caller}(), with brackets"
            fail(TypeError, caller, got, "a transform", fix)
        for field in sorted(set(kwargs) - set(fields)):
            hint = _near(field, fields)
            got = f"an unknown parameter {field!r}"
            fail(TypeError, caller, got, f"one of {', '.join(fields)}", f"{hint}see the docstring")
        if len(args) > positional:
            got = f"{len(args)} parameters without a name"
            fix = (
                f"write names, such as {fields[positional]}=..."
                if fields[positional:]
                else "drop one"
            )
            fail(TypeError, caller, got, f"at most {positional}", fix)
        made(self, *args, **kwargs)

    setattr(transform, "__init__", checked)  # noqa: B010 (mypy refuses the plain assignment)
    return transform


def _near(field: str, fields: list[str]) -> str:
    """The one parameter that is probably meant."""
    near = [name for name in fields if len(field) > 2 and (field in name or name in field)]
    return f"did you mean {near[0]!r}? " if len(near) == 1 else did_you_mean(field, fields)

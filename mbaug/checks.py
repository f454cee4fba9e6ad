"""What is given, held to what is allowed: every refusal is one sentence that names both.

A settings class declares its bounds beside its fields, as types (`Count`, `Positive`, `Share`, ...), and is decorated by
`settings`; one mechanism reads them. It is ours, 40 lines, in place of pydantic: that would be a compiled dependency, and its
messages would have to be rewritten one by one to become such sentences.
"""

import difflib
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"  # a part of a run's name, and the name of a dataset
Class = TypeVar("Class", bound=type)
Value = TypeVar("Value")


def choose(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Returns `given` if it is one of `allowed`.

    Raises:
        ValueError: `kind` `given` is unknown; the sentence names the nearest allowed names and all of them.
    """
    allowed = list(allowed)
    if given in allowed:
        return given
    near = difflib.get_close_matches(str(given), allowed)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"unknown {kind} {given!r}: {hint}allowed are {', '.join(map(repr, allowed))}")


def require(holds: bool, sentence: str) -> None:
    """Raises ValueError with `sentence` (what was given, what is allowed) unless it `holds`."""
    if not holds:
        raise ValueError(sentence)


def given(value: Value | None, sentence: str) -> Value:
    """Returns a value that is there; raises ValueError with `sentence` if it is None."""
    if value is None:
        raise ValueError(sentence)
    return value


# --- bounds of settings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """What a value must be beside its type: a test, and its end of the sentence "it must be ..."."""

    holds: Callable[[Any], bool]
    words: str


_above, _least = Bound(lambda x: x > 0, "above 0"), Bound(lambda x: x >= 0, "0 or above")
Count = Annotated[int, _above]
Whole = Annotated[int, _least]
Positive = Annotated[float, _above]
NotNegative = Annotated[float, _least]
Share = Annotated[float, Bound(lambda x: 0 <= x <= 1, "in [0, 1]")]
Layers = Annotated[tuple[int, ...], Bound(lambda x: all(_is(int, n) and n > 0 for n in x), "of layers with 1 unit or more each")]
KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", tuple: "a tuple"}
NUMBERS = {int: Integral, float: Real}


def _is(kind: type, value: object) -> bool:
    """Returns whether a value is of a kind; True is no number, and a whole number is a number."""
    return isinstance(value, NUMBERS.get(kind, kind)) and (kind is bool or not isinstance(value, bool))


def check(record: object) -> None:
    """Raises ValueError with a sentence unless every field of a dataclass is of its type and within its bounds."""
    for name, hint in get_type_hints(type(record), include_extras=True).items():
        value, bounds = getattr(record, name), ()
        if get_origin(hint) is Annotated:
            hint, *bounds = get_args(hint)
        if hint is Any:
            continue
        options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds = [get_origin(option) or option for option in options]
        words = " or ".join("None" if kind is types.NoneType else KINDS.get(kind, f"{kind.__name__}(...)") for kind in kinds)
        require(any(_is(kind, value) for kind in kinds), f"{name} is {value!r}, but it must be {words}")
        for bound in bounds:
            require(bound.holds(value), f"{name} is {value!r}, but it must be {bound.words}")


@dataclass_transform(frozen_default=True)
def settings(cls: Class) -> Class:
    """Makes a class a frozen dataclass whose fields are checked when it is made, before its own `__post_init__`."""
    combinations = cls.__dict__.get("__post_init__", lambda self: None)

    def __post_init__(self: object) -> None:
        check(self)
        combinations(self)

    cls.__post_init__ = __post_init__
    return dataclass(frozen=True)(cls)

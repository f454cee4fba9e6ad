"""Checks values. Every error is one sentence that says what was given and what is allowed.

A settings class declares bounds as the types of its fields (`Count`, `Positive`, `Share`, ...). The decorator `settings` checks
them. We do not use pydantic because we would have to rewrite each of its messages to get such sentences.
"""

import difflib
import sys
import types
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, is_dataclass
from functools import cache, partial
from numbers import Integral, Real
from typing import Annotated, Any, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"  # pattern of a dataset's name and of each part of a run's name
Class = TypeVar("Class", bound=type)
Value = TypeVar("Value")


def choose(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Returns `given` if it is one of `allowed`.

    Raises:
        ValueError: `given` is not allowed. The message calls it an unknown `kind`, suggests similar names and lists all names.
    """
    allowed = list(allowed)
    if given in allowed:
        return given
    raise ValueError(f"unknown {kind} {given!r}: {suggestion(given, allowed)}allowed are {', '.join(map(repr, allowed))}")


def suggestion(given: str, allowed: Iterable[str], most: int = 3) -> str:
    """Returns "did you mean ...? " with the allowed names closest to `given`, ignoring case; "" if none is close."""
    by_lower_case = {name.lower(): name for name in allowed}
    near = [repr(by_lower_case[name]) for name in difflib.get_close_matches(str(given).lower(), by_lower_case, most)]
    return f"did you mean {' or '.join(near)}? " if near else ""


def require(holds: object, sentence: str) -> None:
    """Raises ValueError with `sentence`, which says what was given and what is allowed, unless `holds` is true."""
    if not holds:
        raise ValueError(sentence)


def given(value: Value | None, sentence: str) -> Value:
    """Returns the value; raises ValueError with `sentence` if it is None."""
    if value is None:
        raise ValueError(sentence)
    return value


def needs(what: str, package: str) -> str:
    """Returns the error message for an optional package that is not installed."""
    return f"{what} needs {package}: `make setup` installs it"


# --- bounds of settings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """A condition on a value besides its type, and the words that complete "it must be ..."."""

    holds: Callable[[Any], bool]
    words: str


_above, _least = Bound(lambda x: x > 0, "above 0"), Bound(lambda x: x >= 0, "0 or above")
Count = Annotated[int, _above]
Whole = Annotated[int, _least]
Positive = Annotated[float, _above]
NotNegative = Annotated[float, _least]
Share = Annotated[float, Bound(lambda x: 0 <= x <= 1, "in [0, 1]")]
Layers = Annotated[
    tuple[int, ...], Bound(lambda x: all(_is(int, n) and n > 0 for n in x), "a tuple of layer sizes, each 1 or more")
]
KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    tuple: "a tuple",
    dict: "an object of named values",
    list: "a list",
}
NUMBERS = {int: Integral, float: Real}
_hints = cache(partial(get_type_hints, include_extras=True))  # a class -> the annotations of its fields, bounds included


def _is(kind: type, value: object) -> bool:
    """Returns whether `value` has the type `kind`. A whole number also counts as a float, but a bool is not a number."""
    return isinstance(value, NUMBERS.get(kind, kind)) and (kind is bool or not isinstance(value, bool))


@cache
def _options(hint: Any) -> list[tuple[Any, tuple[Bound, ...]]]:
    """Returns the types that an annotation allows, each with its bounds."""
    if get_origin(hint) is Annotated:
        hint, *bounds = get_args(hint)
        return [(option, (*inner, *bounds)) for option, inner in _options(hint)]
    if get_origin(hint) in (types.UnionType, Union):  # `A | B` is a Union if A or B has bounds
        return [pair for option in get_args(hint) for pair in _options(option)]
    return [(hint, ())]


def _checked_type(name: str, value: object, hint: Any) -> Any:
    """Returns the type in the annotation that `value` has; raises ValueError if it has none of them or violates a bound."""
    kinds = [(get_origin(option) or option, option, bounds) for option, bounds in _options(hint)]
    for kind, option, bounds in kinds:
        if kind is Any or _is(kind, value):
            if (option is float or isinstance(value, float)) and not abs(value) <= sys.float_info.max:  # pyright: ignore[reportArgumentType]
                raise ValueError(f"{name} is {value!r:.300}, but it must be a finite number")
            for bound in bounds:
                if not bound.holds(value):  # the message is formatted only now, because a value may be long
                    raise ValueError(f"{name} is {value!r:.300}, but it must be {bound.words}")
            return option
    words = " or ".join("None" if kind is types.NoneType else KINDS.get(kind, f"{kind.__name__}(...)") for kind, *_ in kinds)
    raise ValueError(f"{name} is {value!r:.300}, but it must be {words}")


@dataclass_transform(frozen_default=True)
def settings(cls: Class) -> Class:
    """Returns the class as a frozen dataclass that checks each field on creation, before the class's own `__post_init__`."""
    check_combinations = cls.__dict__.get("__post_init__", lambda self: None)

    def __post_init__(self: object) -> None:
        for name, hint in _hints(cls).items():
            _checked_type(name, getattr(self, name), hint)
        check_combinations(self)

    cls.__post_init__ = __post_init__
    return dataclass(frozen=True)(cls)


# --- settings from JSON ---------------------------------------------------------------------------------------------------


def read(cls: type[Value], plain: object, where: str, lacking: Collection[str] = (), parent: str = "") -> Value:
    """Returns an instance of a settings class, read from parsed JSON that must hold exactly its fields.

    A list becomes a tuple where the class declares a tuple. An object becomes an instance where the
    class declares a settings class. A field of type `Any` is kept as it is. Fields named in
    `lacking` may be missing at any depth if they have a default, which they then take.

    Raises:
        ValueError: A field is missing, unknown, or not allowed. The message begins with `where`, the file's name, and puts
            `parent`, the path to this object inside the file, before the field's name.
    """
    place = f"{where}: {parent or 'the content'}"
    if not isinstance(plain, dict):
        raise ValueError(f"{place} is {plain!r:.300}, but it must be {KINDS[dict]}")
    hints = _hints(cls)
    missing = [name for name in hints if name not in plain and not (name in lacking and hasattr(cls, name))]
    require(not missing, f"{place} lacks {', '.join(missing):.200}; allowed are {', '.join(hints)}")
    unknown = [repr(name) for name in plain if name not in hints]
    require(not unknown, f"{place} has unknown fields: {', '.join(unknown):.200}; allowed are {', '.join(hints)}")
    prefix = f"{parent}." if parent else ""
    values = {name: _value(hints[name], item, where, lacking, prefix + name) for name, item in plain.items()}
    try:
        return cls(**values)
    except ValueError as error:  # the class refuses this combination of values
        inside = f"{parent}: " if parent else ""
        raise ValueError(f"{where}: {inside}{error}") from None


def _value(hint: Any, value: Any, where: str, lacking: Collection[str], name: str) -> Any:
    """Returns parsed JSON converted to the type in the annotation `hint`."""
    options = [option for option, _ in _options(hint)]
    record = next((option for option in options if is_dataclass(option)), None)
    if record is not None and isinstance(value, dict):
        return read(record, value, where, lacking, name)  # pyright: ignore[reportArgumentType]
    if isinstance(value, list) and any(get_origin(option) is tuple for option in options):
        value = tuple(value)
    option = _checked_type(f"{where}: {name}", value, hint)
    arguments = [part for part in get_args(option) if part is not Ellipsis]
    inner = arguments[-1] if arguments else Any  # type of a container's items
    if isinstance(value, tuple | list):
        return type(value)(_value(inner, item, where, lacking, f"{name}[{number}]") for number, item in enumerate(value))
    if isinstance(value, dict):
        return {key: _value(inner, item, where, lacking, f"{name}.{key}") for key, item in value.items()}
    return float(value) if option is float else value

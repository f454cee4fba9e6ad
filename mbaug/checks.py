"""Checks what is given against what is allowed: every refusal is one sentence that names both.

A settings class declares its bounds beside its fields, as types (`Count`, `Positive`, `Share`, ...), and is decorated by
`settings`; one mechanism reads them. It is ours in place of pydantic, which is a compiled dependency and whose
messages would have to be rewritten one by one to become such sentences.
"""

import difflib
import sys
import types
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, is_dataclass
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

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
    raise ValueError(f"unknown {kind} {given!r}: {meant(given, allowed)}allowed are {', '.join(map(repr, allowed))}")


def meant(given: str, allowed: Iterable[str], most: int = 3) -> str:
    """Returns a question for the names that are nearest to what was given, in small letters or capitals; "" if none is near."""
    alike = {name.lower(): name for name in allowed}
    near = [repr(alike[name]) for name in difflib.get_close_matches(str(given).lower(), alike, most)]
    return f"did you mean {' or '.join(near)}? " if near else ""


def require(holds: object, sentence: str) -> None:
    """Raises ValueError with `sentence` (what was given, what is allowed) unless `holds` is true."""
    if not holds:
        raise ValueError(sentence)


def given(value: Value | None, sentence: str) -> Value:
    """Returns the value; raises ValueError with `sentence` if it is None."""
    if value is None:
        raise ValueError(sentence)
    return value


def needs(what: str, package: str) -> str:
    """Returns what to say where an optional package is not installed."""
    return f"{what} needs {package}: `make setup` installs it"


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
KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", tuple: "a tuple"} | {
    dict: "an object of named values",
    list: "a list",
}
NUMBERS = {int: Integral, float: Real}


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Returns the annotations of a class's fields."""
    return get_type_hints(cls, include_extras=True)


def _is(kind: type, value: object) -> bool:
    """Returns whether a value is of a kind; True is no number, and a whole number is a number."""
    return isinstance(value, NUMBERS.get(kind, kind)) and (kind is bool or not isinstance(value, bool))


@cache
def _options(hint: Any) -> list[tuple[Any, tuple[Bound, ...]]]:
    """Returns each type that an annotation allows, with its bounds."""
    if get_origin(hint) is Annotated:
        hint, *bounds = get_args(hint)
        return [(option, (*own, *bounds)) for option, own in _options(hint)]
    if get_origin(hint) in (types.UnionType, Union):  # the second where a part has bounds
        return [pair for option in get_args(hint) for pair in _options(option)]
    return [(hint, ())]


def _held(name: str, value: object, hint: Any) -> Any:
    """Returns which of the annotation's types a value has; a sentence if it has none, or breaks a bound."""
    kinds = []
    for option, bounds in _options(hint):
        kinds.append(get_origin(option) or option)
        if kinds[-1] is Any or _is(kinds[-1], value):
            words = next((bound.words for bound in bounds if not bound.holds(value)), None)
            break
    else:
        words = " or ".join("None" if kind is types.NoneType else KINDS.get(kind, f"{kind.__name__}(...)") for kind in kinds)
    if words is not None:  # only now: a value may be long
        raise ValueError(f"{name} is {value!r:.300}, but it must be {words}")
    return option


@dataclass_transform(frozen_default=True)
def settings(cls: Class) -> Class:
    """Makes a class a frozen dataclass whose fields are checked when it is made, before its own `__post_init__`."""
    combinations = cls.__dict__.get("__post_init__", lambda self: None)

    def __post_init__(self: object) -> None:
        for name, hint in _hints(cls).items():
            _held(name, getattr(self, name), hint)
        combinations(self)

    cls.__post_init__ = __post_init__
    return dataclass(frozen=True)(cls)


# --- settings from JSON ---------------------------------------------------------------------------------------------------


def read(cls: type[Value], plain: object, where: str, lacking: Collection[str] = (), parent: str = "") -> Value:
    """Returns a settings class filled from plain JSON: every field is there, of its type and within its bounds, and none else.

    A list becomes a tuple, an object that is declared as a settings class becomes one. What is declared as `Any` stays as it is.
    Fields in `lacking`, at any depth, may be missing if they have a default, which they take. A sentence begins with `where`, the
    file, and names a field after its `parent`, where the class is a field itself.

    Raises:
        ValueError: with the file, the key, what was given and what is allowed.
    """
    place = f"{where}: {parent or 'the content'}"
    if not isinstance(plain, dict):
        raise ValueError(f"{place} is {plain!r:.300}, but it must be {KINDS[dict]}")
    hints = _hints(cls)
    for words, names in (
        ("lacks", [name for name in hints if name not in plain and not (name in lacking and hasattr(cls, name))]),
        ("has the unknown", [repr(name) for name in plain if name not in hints]),
    ):
        require(not names, f"{place} {words} {', '.join(names):.200}; allowed are {', '.join(hints)}")
    prefix = f"{parent}." if parent else ""
    values = {name: _value(hints[name], item, where, lacking, prefix + name) for name, item in plain.items()}
    try:
        return cls(**values)
    except ValueError as error:  # a combination that the class refuses
        raise ValueError(f"{where}: {prefix and f'{parent}: '}{error}") from None


def _value(hint: Any, value: Any, where: str, lacking: Collection[str], name: str) -> Any:
    """Returns plain JSON as what its annotation says."""
    options = [option for option, _ in _options(hint)]
    record = next((option for option in options if is_dataclass(option)), None)
    if record is not None and isinstance(value, dict):
        return read(record, value, where, lacking, name)  # pyright: ignore[reportArgumentType]
    if isinstance(value, list) and any(get_origin(option) is tuple for option in options):
        value = tuple(value)
    option = _held(f"{where}: {name}", value, hint)
    inner = next((part for part in get_args(option)[::-1] if part is not Ellipsis), Any)  # of a tuple, a list, a dict
    if isinstance(value, tuple | list):
        return type(value)(_value(inner, item, where, lacking, f"{name}[{number}]") for number, item in enumerate(value))
    if isinstance(value, dict):
        return {key: _value(inner, item, where, lacking, f"{name}.{key}") for key, item in value.items()}
    if (option is float or isinstance(value, float)) and not abs(value) <= sys.float_info.max:
        raise ValueError(f"{where}: {name} is {value!r:.300}, but it must be a finite number")
    return float(value) if option is float else value

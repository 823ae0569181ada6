"""Fields with default, help and bounds in one place; names that are looked up; errors and messages for the user.

Configuration sections and the options of methods are made of these. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import logging
import operator
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, TextIO


def message_stream() -> TextIO:
    """Return where ordinary messages go: to standard error; in a notebook, where that is red, to the output."""
    return sys.stdout if type(sys.stderr).__module__.startswith("ipykernel") else sys.stderr


class Messages(logging.Handler):
    """Write messages as they are, where the user has set up no logging of their own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            print(self.format(record), file=message_stream())


log = logging.getLogger("tase")
log.addHandler(Messages())


class ConfigError(ValueError):
    """A field has a value it cannot have; the message names field, value and what is allowed."""


def unknown(what: str, name: object, known: Iterable[str]) -> ConfigError:
    """Make the error for a name that does not exist, with the nearest one that does.

    Dotted names are compared by their last part first: `tau_max` means `guidance.tau_max`.
    """
    known = sorted(known)
    by_leaf = {dotted.rpartition(".")[2]: dotted for dotted in known}
    leaf = str(name).rpartition(".")[2]
    near = [by_leaf[n] for n in difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.75)]
    near = near or difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else f"; known: {some_of(known, 60)}"
    return ConfigError(f"unknown {what} '{name}'{hint}")


def some_of(values: Iterable[str], most: int = 3) -> str:
    """List the first different values, and how many more there are."""
    unique = list(dict.fromkeys(values))
    return ", ".join(unique[:most]) + (f" and {len(unique) - most} more" if len(unique) > most else "")


def check(ok: bool, field: str, value: object, allowed: str) -> None:
    """Raise a ConfigError naming `field`, its value and what is allowed, unless `ok`."""
    if not ok:
        raise ConfigError(f"invalid {field} = {value!r}: must be {allowed}")


def check_choice(field: str, value: str, choices: Iterable[str]) -> None:
    """Raise a ConfigError with the nearest choice unless `value` is one of `choices`."""
    if value not in choices:
        raise unknown(field, value, choices)


class Registry(dict):
    """Entries by name. A built-in one may be "module:attribute", imported when it is first used.

    So the names are known before torch is loaded. `registry[name] = entry` adds one; an unknown name is a ConfigError.
    """

    def __init__(self, what: str, entries: Mapping[str, Any] = {}):
        super().__init__(entries)
        self.what = what

    def __getitem__(self, name: str) -> Any:
        entry = super().__getitem__(name)
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = self[name] = getattr(importlib.import_module(module), attribute)
        return entry

    def __missing__(self, name: str):
        raise unknown(self.what, name, self)


def package(name: str, user: str, extra: str) -> ModuleType:
    """Import an optional package; raises ConfigError, with the command that installs it, where it cannot be."""
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"{user}: {name} is not installed (pip install 'tase[{extra}]')")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{user}: {name} cannot be imported: {error} (pip install 'tase[{extra}]')") from error


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Iterable[str] | None = None,
    ordered: bool = False,
    before: Any = None,
) -> Any:
    """Declare a field with its default, help and bounds; of a tuple, they hold for each value.

    `low` and `high` are allowed, `above` and `below` are not; `ordered`: smallest first. `before`: the meaning of a
    configuration that was saved before the field existed; with that value the field is left out of the identity.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    metadata = {"help": help, "bounds": bounds, "choices": choices, "ordered": ordered, "before": before}
    return dataclasses.field(default=default, metadata=metadata)


_IN_BOUNDS = {"low": operator.ge, "high": operator.le, "above": operator.gt, "below": operator.lt}
_BOUND_TEXT = {"low": "at least {:g}", "above": "above {:g}", "high": "at most {:g}", "below": "below {:g}"}


def _check_value(name: str, value: Any, rule: Mapping[str, Any]) -> None:
    """Raise a ConfigError unless the field's value obeys the rule, the metadata of its `option`."""
    values = value if isinstance(value, tuple) else (value,)
    for single in values if rule["choices"] is not None else ():
        check_choice(name, single, rule["choices"])
    bounds = rule["bounds"]
    inside = all(_IN_BOUNDS[kind](single, bound) for single in values for kind, bound in bounds.items())
    rising = not rule["ordered"] or list(values) == sorted(values)
    allowed = ", ".join(_BOUND_TEXT[kind].format(bound) for kind, bound in bounds.items())
    check(inside and rising, name, value, allowed + (", smallest first" if rule["ordered"] else ""))


@dataclass(frozen=True)
class Section:
    """A group of fields; created, it checks each field's bounds, then `check_together`."""

    NAME: ClassVar[str] = ""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_value(f"{self.NAME}.{field.name}", getattr(self, field.name), field.metadata)
        self.check_together()

    def check_together(self) -> None:
        """Check what concerns several fields; raises ConfigError."""


class Field(NamedTuple):
    """What is known of a settable field."""

    type: Any
    default: Any
    help: str
    before: Any = None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def parse_value(name: str, kind: Any, value: Any) -> Any:
    """`value`, a string from the command line or a JSON value, as the field's type."""
    if isinstance(value, str) and kind is not str:
        text = value.strip()
        if kind in (int, float, bool):
            try:
                value = json.loads(text.lower())
            except ValueError:
                value = text
        else:
            value = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
    if kind is bool:
        check(isinstance(value, bool), name, value, "true or false")
        return value
    if kind is int:
        check(_is_number(value) and value == int(value), name, value, "a whole number")
        return int(value)
    if kind is float:
        check(_is_number(value), name, value, "a number")
        return float(value)
    if kind is str:
        check(isinstance(value, str), name, value, "a text")
        return value
    inner, *more = kind.__args__
    check(isinstance(value, (list, tuple)), name, value, "a list, with commas between")
    if more and more[0] is not Ellipsis:
        check(len(value) == len(kind.__args__), name, value, f"{len(kind.__args__)} values, with commas between")
    return tuple(parse_value(name, inner, v) for v in value)

"""Frozen dataclasses to and from plain dictionaries, with unknown keys as errors that name the nearest valid ones."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from codling.errors import ConfigError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dataclass -> nested dictionary of JSON types."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "configuration") -> T:
    """Nested dictionary -> nested dataclass. Raises ConfigError on unknown keys and on values of another type."""
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}{suggest(key, fields)}")
    hints = typing.get_type_hints(cls)
    try:
        return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()})
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def override(config: T, assignments: typing.Iterable[str]) -> T:
    """Apply `key.sub=value` assignments; values are JSON, or strings where they are not."""
    values = to_dict(config)
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"cannot read the setting {assignment!r}; write key=value, for example batch=8")
        *parents, last = path.split(".")
        node = values
        for depth, name in enumerate([*parents, last]):
            if not isinstance(node, dict) or name not in node:
                known = node if isinstance(node, dict) else ()
                raise ConfigError(f"unknown setting {path!r}{suggest(name, known, '.'.join(path.split('.')[:depth]))}")
            if depth < len(parents):
                node = node[name]
        try:
            node[last] = json.loads(text)
        except json.JSONDecodeError:
            node[last] = text
    return from_dict(type(config), values)


def differences(found: Any, wanted: Any, *, where: str) -> list[str]:
    """Where two nested dictionaries of JSON types differ, an entry a setting: `where.key is 12, wanted 16`."""
    if not (isinstance(found, Mapping) and isinstance(wanted, Mapping)):
        return [] if found == wanted else [f"{where} is {json.dumps(found)}, wanted {json.dumps(wanted)}"]
    keys = [*wanted, *(key for key in found if key not in wanted)]
    lists = (differences(found.get(key), wanted.get(key), where=f"{where}.{key}") for key in keys)
    return [line for lines in lists for line in lines]


def suggest(name: str, known: typing.Iterable[str], prefix: str = "") -> str:
    """The tail of an error message: nearest valid names, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    listed = [f"{prefix}.{one}" if prefix else one for one in near or known]
    return f"; did you mean {', '.join(listed)}?" if near else f"; known are {', '.join(listed) or 'none'}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _convert(next(option for option in options if option is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: wanted a table of settings, got {value!r}")
        return from_dict(typing.cast(type, hint), value, where)
    if origin is tuple:
        kinds = typing.get_args(hint)
        if not isinstance(value, list | tuple) or (Ellipsis not in kinds and len(value) != len(kinds)):
            number = "any number of" if Ellipsis in kinds else str(len(kinds))
            raise ConfigError(f"{where}: wanted a list of {number} values, such as [1, 2], got {value!r}")
        return tuple(_convert(kinds[0], item, where) for item in value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: wanted a table, got {value!r}")
        return {key: _convert(typing.get_args(hint)[1], item, where) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: wanted {hint.__name__}, got {value!r}")
    return value

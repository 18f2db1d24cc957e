"""Typed TOML: read a file as a whole, or refuse it with file, line, key, what was expected and the nearest key."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from lineside.errors import ConfigError

T = TypeVar("T")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every table in a configuration file: frozen, and unknown keys are errors."""


def load(path: Path, kind: type[T]) -> T:
    """Read `path` as a configuration of type `kind`.

    Raises ConfigError naming the file, the line, the key path, what was expected and the nearest valid key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})", "give the path of a TOML file") from error
    return loads(text, kind, str(path))


def loads(text: str, kind: type[T], name: str = "config") -> T:
    """As `load`, from text; `name` stands for the file in errors.

    >>> class Motor(Config):
    ...     speed_hz: float
    >>> loads("speed_hz = 2.5", Motor)
    Motor(speed_hz=2.5)
    >>> loads("speed_hx = 2.5", Motor, "motor.toml")
    Traceback (most recent call last):
    lineside.errors.ConfigError: motor.toml:1: unknown key 'speed_hx'; did you mean 'speed_hz'?
    """
    try:
        return msgspec.toml.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise _explain(str(error), text, kind, name) from error
    except msgspec.DecodeError as error:
        raise ConfigError(name, f"is not TOML ({error})", "mend the syntax at that line") from error


def _explain(message: str, text: str, kind: Any, name: str) -> ConfigError:
    """Turn msgspec's sentence into ours: place, reason, mend."""
    what, _, at = message.partition(" - at `")
    path = at.rstrip("`").removeprefix("$").lstrip(".")
    table = _type_at(kind, path)
    if unknown := re.fullmatch(r"Object contains unknown field `(.+)`", what):
        key = unknown[1]
        names = [field.encode_name for field in msgspec.structs.fields(table)] if _is_struct(table) else []
        near = difflib.get_close_matches(key, names, n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"valid keys are {', '.join(sorted(names))}"
        return ConfigError(f"{name}:{_line_of(text, key, path)}", f"unknown key {_join(path, key)!r}", mend)
    if missing := re.fullmatch(r"Object missing required field `(.+)`", what):
        return ConfigError(name, f"missing key {_join(path, missing[1])!r}", "add it")
    key = path.rpartition(".")[2]
    place = f"{name}:{_line_of(text, key, path.rpartition('.')[0])}" if key else name
    words = _words(_type_at(kind, path)) if "enum value" in what else ()
    mend = f"valid are {', '.join(map(str, words))}" if words else "change the value"
    return ConfigError(place, f"{path or 'file'}: {what[0].lower()}{what[1:]}", mend)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _line_of(text: str, key: str, path: str) -> int:
    """The line on which `key` is set inside the table `path` (1 where it cannot be told)."""
    wanted = re.sub(r"\[\d+\]", "", path)
    index = int(found[-1]) if (found := re.findall(r"\[(\d+)\]", path)) else 0
    table, seen, first = "", {"": 0}, 0
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\[?\s*([\w.\-]+)\s*\]?\]", line):
            table = header[1]
            seen[table] = seen.get(table, -1) + 1
        elif re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            first = first or number
            if table == wanted and seen[table] == index:
                return number
    return first or 1


def _type_at(kind: Any, path: str) -> Any:
    """The type found under a msgspec path such as `sensors[0].source`; of a list or an optional Struct the Struct."""
    for step in re.findall(r"[^.\[\]]+", re.sub(r"\[[^\]]*\]", "", path)):
        fields = {f.encode_name: f.type for f in msgspec.structs.fields(kind)} if _is_struct(kind) else {}
        kind = fields.get(step)
        if not _is_struct(kind):  # a list, a table by name or an optional one: what stands inside it
            kind = next((arg for arg in get_args(kind) if _is_struct(arg)), kind)
    return kind


def _words(kind: Any) -> tuple[Any, ...]:
    """The words that a Literal allows, also inside of a list or where it is optional.

    >>> from typing import Literal
    >>> _words(list[Literal["fp32", "int8"]])
    ('fp32', 'int8')
    """
    args = get_args(kind)
    return args if get_origin(kind) is Literal else tuple(word for arg in args for word in _words(arg))


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)

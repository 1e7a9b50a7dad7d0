"""What a value in an app file may be: for the reader of the file, and for the JSON schema that editors use.

A value is turned into the text that would be typed on the command line, and read by the option's own function: both
accept the same things. This table has an entry for each such function, by its name.
"""

from __future__ import annotations

import os
from collections import namedtuple

from daemonkit.cli._options import OPTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from daemonkit.cli._options import Option


class Kind(namedtuple("Kind", ("what", "schema"))):
    """What is accepted: in words, for a message, and as JSON schema."""

    __slots__ = ()
    what: str
    schema: dict[str, Any]


_TEXT: Final[dict[str, Any]] = {"type": "string", "minLength": 1}


def _or_list(item: dict[str, Any], **limits: int) -> dict[str, Any]:
    return {"anyOf": [item, {"type": "array", "items": item, **limits}]}


COMMAND: Final = Kind(
    "a list of strings, or one string that is split as a shell would",
    {"anyOf": [_TEXT, {"type": "array", "items": {"type": "string"}, "minItems": 1}]},
)
NAMES: Final = Kind("a list of names of apps", {"type": "array", "items": _TEXT, "uniqueItems": True})
PATHS: Final = Kind("a path, or a list of paths", _or_list(_TEXT))
VARIABLES: Final = Kind(
    'a table of strings and numbers, such as { STAGE = "live", PORT = 8000 }',
    {
        "type": "object",
        "propertyNames": {"pattern": "^[^=]+$"},
        "additionalProperties": {"type": ["string", "number"]},
    },
)
_ANY_TEXT: Final = Kind("a text", {"type": "string"})
_SWITCH: Final = Kind("true or false", {"type": "boolean"})
_KINDS: Final = {
    "_count": Kind("a whole number from 0 on", {"type": "integer", "minimum": 0}),
    "_instances": Kind(
        'a number from 1 on, or "auto"', {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}
    ),
    "_seconds": Kind("seconds, more than 0", {"type": "number", "exclusiveMinimum": 0}),
    "_patience": Kind("seconds, at least 0", {"type": "number", "minimum": 0}),
    "_size": Kind('bytes, or a size such as "200M"', {"anyOf": [{"type": "integer", "minimum": 1}, _TEXT]}),
    "_numbers": Kind("a list of exit statuses, such as [0, 2]", _or_list({"type": "integer"}, minItems=1)),
    "_backoff": Kind(
        "INITIAL, FACTOR and MAXIMUM, such as [0.1, 2, 30]", _or_list({"type": "number"}, minItems=1, maxItems=3)
    ),
    "_signal": Kind('a signal, such as "INT"', {"anyOf": [_TEXT, {"type": "integer", "minimum": 1}]}),
    "_user": Kind("a name or a number", {"anyOf": [_TEXT, {"type": "integer", "minimum": 0}]}),
    "_octal": Kind('octal digits in quotes, such as "022"', {"type": "string", "pattern": "^[0-7]{1,4}$"}),
    "_path": Kind("a path", _TEXT),
    "_listen": Kind('"HOST:PORT", "unix:PATH", or a list of them', _or_list(_TEXT)),
    "_variable": VARIABLES,
    "_command": COMMAND,
    "_address": Kind('"HOST:PORT"', _TEXT),
    "_at_least_one": Kind("a whole number from 1 on", {"type": "integer", "minimum": 1}),
    "str": _ANY_TEXT,
    "_script": Kind("a shell command", _TEXT),
}


def kind_of(option: Option) -> Kind:
    """Return what an option accepts in a file."""
    if option.choices:
        return Kind(" or ".join(f'"{choice}"' for choice in option.choices), {"enum": list(option.choices)})
    if option.parse is None:
        return _SWITCH
    return _KINDS.get(option.parse.__name__, _ANY_TEXT)


BY_NAME: Final = {option.name: option for option in OPTIONS}


def fits(value: object, schema: dict[str, Any]) -> bool:
    """Tell whether a value has the type that a schema of this module asks for; its size is the option's business."""
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return value in (schema.get("enum") or [schema["const"]])
    found = _JSON_TYPES.get(type(value), "")
    wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if found not in wanted and not (found == "integer" and "number" in wanted):
        return False
    if isinstance(value, list):
        return all(fits(item, schema["items"]) for item in value)
    if isinstance(value, dict):
        return all(fits(item, schema["additionalProperties"]) for item in value.values())
    return True


_JSON_TYPES: Final = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def texts_in(value: object) -> list[str]:
    """Return all texts in a value: itself, or those in a list or a table, with the table's keys."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return [text for one in value for text in texts_in(one)]
    return [value] if isinstance(value, str) else []


def read(option: Option, value: Any, folder: str) -> object:  # noqa: ANN401 - whatever the file has
    """Return the setting for a value of the fitting type; ValueError, KeyError if the option refuses it."""
    if option.parse is None:
        return True
    if option.choices:
        return value
    kind = option.parse.__name__
    if kind == "_variable":
        return {name: str(one) for name, one in value.items()}
    if kind == "_command" and isinstance(value, list):
        if not value:
            raise ValueError
        return value
    if option.several:
        return [option.parse(_resolved(kind, one, folder)) for one in (value if isinstance(value, list) else [value])]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return option.parse(_resolved(kind, text, folder))


def _resolved(kind: str, text: str, folder: str) -> str:
    """Return a path as seen from the file's folder; everything else as it is."""
    if kind == "_path" and text:
        return os.path.join(folder, os.path.expanduser(text))
    if kind == "_listen" and text.startswith("unix:"):
        return f"unix:{_resolved('_path', text.removeprefix('unix:'), folder)}"
    return text

"""YAML that all readers understand alike: those of version 1.1 and of 1.2, in Python and in Go."""

from __future__ import annotations

import re

from daemonkit.cli._appfile import way_to_have

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_PLAIN: Final = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]+")


def dump(value: object) -> str:
    """Return a value as YAML; ValueError without PyYAML.

    A text that any reader might take for a number or a switch ("no", "1e3", "0o17", "y") is in quotes.
    """
    try:
        import yaml  # the extra "cli"
    except ImportError:
        raise ValueError(f"YAML can't be written without PyYAML; {way_to_have('pyyaml')}") from None

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, _data: Any) -> bool:  # noqa: ANN401 - as there
            return True

    def text(dumper: Dumper, value: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if _PLAIN.fullmatch(value) else '"')

    Dumper.add_representer(str, text)
    written: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, width=1 << 30, default_flow_style=False)
    return written

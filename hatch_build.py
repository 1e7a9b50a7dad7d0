"""What the build adds to the metadata: the README as it is shown on a package index, where no file of the source is."""

from __future__ import annotations

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n+")
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)([^)#\s]*)[^)]*\)")


def without_relative_links(text: str) -> str:
    """Return the text without pictures, and with the name of a file beside the words that link to it."""
    return _LINK.sub(r"\1 (`\2`)", _PICTURE.sub("", text))


class Readme(MetadataHookInterface):
    """Sets the description that a package index shows."""

    def update(self, metadata: dict[str, object]) -> None:
        """Add it to the metadata."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": without_relative_links(text)}

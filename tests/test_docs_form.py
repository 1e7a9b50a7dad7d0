"""The form of README and documentation: width, links, pictures, and that the messages they explain are the code's."""

from __future__ import annotations

import ast
import re
import sys
import unicodedata
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<mark>`{3,})(?P<kind>[^\n]*)\n(?P<text>.*?)^(?P=mark)$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<picture>!?)\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<to>[^)\s]+)\)")
COLUMNS = 80  # as much as a page shows without a bar to scroll


def _width(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)


def _shown(page: Path) -> list[str]:
    blocks = [fence["text"] for fence in FENCE.finditer(page.read_text()) if not fence["kind"].startswith("{")]
    included = re.findall(r"^```\{literalinclude\} (\S+)", page.read_text(), re.MULTILINE)
    return [*blocks, *((page.parent / name).read_text() for name in included)]


def test_no_line_of_code_is_cut_off_at_the_right() -> None:
    lines = [(page.stem, line) for page in PAGES for text in _shown(page) for line in text.splitlines()]
    assert [(page, line) for page, line in lines if _width(line) > COLUMNS] == []


def _anchors(page: Path) -> set[str]:
    """Return the names that a link into a page may have, as GitHub and MyST make them of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_link_within_the_project_leads_somewhere() -> None:
    lost = []
    for page in PAGES:
        for link in LINK.finditer(FENCE.sub("", page.read_text())):
            path, _, anchor = link["to"].partition("#")
            to = (page.parent / path).resolve() if path else page
            if "://" in path or path.startswith("mailto:"):
                continue
            if not to.exists() or (anchor and anchor not in _anchors(to)):
                lost.append((page.stem, link[0]))
    assert lost == []


def test_each_picture_is_shown_somewhere() -> None:
    shown = {(page.parent / link["to"]).resolve() for page in PAGES for link in LINK.finditer(page.read_text())}
    assert [path.name for path in (ROOT / "docs" / "pictures").glob("*.svg") if path.resolve() not in shown] == []


def test_each_page_of_the_how_to_is_listed_there() -> None:
    text = (ROOT / "docs" / "howto.md").read_text()
    names = [path.stem for path in (ROOT / "docs" / "howto").glob("*.md")]
    assert [name for name in names if text.count(f"howto/{name}") < 2] == [], "in the list, and in the menu"


def _messages() -> list[str]:
    """Return the texts in the code, with "..." for what they are filled with."""
    texts = []
    for path in (ROOT / "daemonkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[sdr]", "...", node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                texts.append("".join(map(str, parts)))
    return texts


def test_each_message_that_is_explained_is_one_of_the_codes() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    explained = re.findall(r"^### `(.*)`", page, re.MULTILINE)
    assert len(explained) > 40
    messages = _messages()
    missing = []
    for text in explained:
        pattern = ".*".join(re.escape(part) for part in text.split("..."))
        if not any(re.search(pattern, message, re.DOTALL) for message in messages):
            missing.append(text)
    assert missing == []


def test_the_readme_on_pypi_has_no_link_into_the_source() -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from hatch_build import without_relative_links
    finally:
        sys.path.remove(str(ROOT))
    text = without_relative_links((ROOT / "README.md").read_text())
    links = [link for link in LINK.finditer(FENCE.sub("", text)) if "://" not in link["to"]]
    assert links == [] and "docs/tutorial.md" in text

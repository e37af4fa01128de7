"""The pages that people read: links between them lead somewhere, and the first one stays short enough to be read.

What they name in backticks is held by test_layers.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from layers import DOCUMENTS

ROOT = Path(__file__).resolve().parents[1]
LINES = 400  # as many as a module may have
WIDTH = 150  # what a terminal beside an editor still shows; a table's row wraps worse than text
FOR_USERS = [document for document in DOCUMENTS if document not in ("faas/README.md", "bench/README.md")]


def without_code(text: str) -> str:
    """The text with its fenced blocks blanked, so that lines keep their numbers."""
    return re.sub(r"^```.*?^```$", lambda fence: "\n" * fence[0].count("\n"), text, flags=re.S | re.M)


def anchors(text: str) -> set[str]:
    """What the headings of a page can be linked as, by the rule of the common hosts of git."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(root: Path, documents: tuple[str, ...]) -> Iterator[str]:
    """Each link to a file or heading that is not there; links to the web are not looked at."""
    for document in documents:
        page = root / document
        for number, line in enumerate(without_code(page.read_text()).splitlines(), 1):
            for target in re.findall(r"\]\(([^)\s]+)\)", line):
                path, _, anchor = target.partition("#")
                if "://" in target:
                    continue
                file = page.parent / path if path else page
                if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
                    yield f"{document}:{number}: {target}"


def test_links_between_the_pages_lead_somewhere() -> None:
    """Reference parts live where operators and authors look, and the first page only points there."""
    assert list(dead_links(ROOT, DOCUMENTS)) == []


@pytest.mark.parametrize("document", FOR_USERS)
def test_a_page_for_users_is_short_and_narrow(document: str) -> None:
    """Nobody reads to the end of a page that only ever grows."""
    lines = (ROOT / document).read_text().splitlines()

    assert len(lines) <= LINES
    assert [number for number, line in enumerate(lines, 1) if len(line) > WIDTH] == []


def test_a_link_that_leads_nowhere_is_seen(tmp_path: Path) -> None:
    """The rule itself can fail: for a file, a heading of another page, and one of the same."""
    (tmp_path / "a.md").write_text(
        "# One thing: `it`\n[x](b.md#two) [x](b.md#tow) [x](#one-thing-it) [x](#no) [x](c.md)\n```\n[x](d.md)\n```\n"
    )
    (tmp_path / "b.md").write_text("## Two\n")

    assert list(dead_links(tmp_path, ("a.md",))) == ["a.md:2: b.md#tow", "a.md:2: #no", "a.md:2: c.md"]

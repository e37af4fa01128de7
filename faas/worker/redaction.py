"""Takes known secrets out of text before it leaves: as they are, and as base64, percent-encoding, JSON, Python and hex write them.

Both sides use it: the worker before it cuts what it sends, the node on whatever arrives. It finds what is written out, not what
somebody means to hide: a value spelled backwards, or one letter a line, passes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, quote_plus

SHORTEST_BYTES = 8
"""A shorter value, or a shorter part of one, is not looked for: "a" would blank out every log."""
BEGIN_BYTES = 4
"""Of a form, by which its begin is looked for: trying each length of each takes 60 ms for the most secrets that a function may have."""
PIECE_BYTES = 1024
"""A longer form is looked for in pieces, so that a line that is cut anywhere shows no whole piece of it."""


class Redactor:
    """Hides the values of some secrets, by name; without any it returns what it is given."""

    __slots__ = ("_forms",)

    def __init__(self, values: Mapping[str, Iterable[bytes]] | None = None) -> None:
        found: dict[bytes, bytes] = {}
        for name, several in (values or {}).items():
            for value in several:
                for form in _forms(value):
                    found.setdefault(form, f"[secret {name}]".encode())
        self._forms = sorted(found.items(), key=lambda item: -len(item[0]))  # a longer form holds shorter ones

    def __bool__(self) -> bool:
        return bool(self._forms)

    def data(self, data: bytes) -> bytes:
        """The same with every form of every value replaced by the name of the secret."""
        for form, instead in self._forms:
            if form in data:
                data = data.replace(form, instead)
        return data

    def text(self, text: str) -> str:
        """As `data`, of text."""
        return self.data(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass") if self._forms else text

    def begun(self, data: bytes) -> int:
        """How many bytes at the end may be the begin of a form whose rest has not come."""
        tail, longest = data[1 - PIECE_BYTES :], 0
        for form, _ in self._forms:
            at = tail.find(form[:BEGIN_BYTES])
            while at >= 0:
                if form.startswith(tail[at:]):  # the first place makes the longest
                    longest = max(longest, len(tail) - at)
                    break
                at = tail.find(form[:BEGIN_BYTES], at + 1)
            for length in range(BEGIN_BYTES - 1, longest, -1):
                if tail.endswith(form[:length]):
                    longest = length
                    break
        return longest


NOTHING = Redactor()


def _forms(value: bytes) -> Iterator[bytes]:
    """All that a value is looked for as. Of one with several lines each line counts by itself: logs come line by line."""
    parts = {value.strip(), *(line.strip() for line in value.splitlines() if not line.startswith(b"-----"))}
    for part in parts:
        if len(part) >= SHORTEST_BYTES:
            for form in _written(part):
                if len(form) >= SHORTEST_BYTES:
                    yield from _pieces(form)


def _written(value: bytes) -> Iterator[bytes]:
    yield value
    for ahead in range(3):  # inside of something else that was encoded, like user:password, it may begin at any of three places
        whole = base64.b64encode(bytes(ahead) + value)
        first, last = (0, 2, 3)[ahead], {0: None, 1: -3, 2: -2}[(ahead + len(value)) % 3]
        sure = whole[first:last]  # without the letters that its neighbours have a part in
        yield sure
        yield sure.translate(bytes.maketrans(b"+/", b"-_"))
    yield from (value.hex().encode(), value.hex().upper().encode())
    yield from (quote(value, safe="").encode(), quote(value).encode(), quote_plus(value).encode())
    text = value.decode("utf-8", "backslashreplace")
    for shown in (json.dumps(text), json.dumps(text, ensure_ascii=False), repr(text), repr(value)[1:]):
        yield shown[1:-1].encode("utf-8", "surrogatepass")


def _pieces(form: bytes) -> Iterator[bytes]:
    for at in range(0, len(form), PIECE_BYTES):
        piece = form[at : at + PIECE_BYTES]
        if len(piece) >= SHORTEST_BYTES:
            yield piece

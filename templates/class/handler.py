"""Finds the nearest words of a dictionary that is read once. Replace `load` with what is slow to make, `handle` with what uses it."""

import difflib

import msgspec

import faas

WORDS = "apple banana cherry date elderberry fig grape hazelnut lemon mango nectarine orange papaya quince raspberry tangerine"


class Query(msgspec.Struct):
    """The event. A payload that does not fit is rejected, with the field named, before `handle` is called."""

    word: str
    at_most: int = 3


class Matches(msgspec.Struct):
    """The result, sent as JSON."""

    exact: bool
    nearest: list[str]


class Dictionary:
    """One for each worker: made, loaded once, asked many times, closed when the worker is no longer needed."""

    def load(self, ctx: faas.Context) -> None:
        """Run before the first event, within limits.load_timeout."""
        self.words = WORDS.split()
        ctx.log.info("loaded %d words", len(self.words))

    def handle(self, event: Query, ctx: faas.Context) -> Matches:
        """Run once for each event, within limits.timeout."""
        word = event.word.lower()
        if event.at_most < 1:
            raise faas.Reject("at_most must be 1 or more")  # for good: it is not tried again
        return Matches(exact=word in self.words, nearest=difflib.get_close_matches(word, self.words, n=event.at_most))

    def close(self) -> None:
        """Run when the worker retires: give back what `load` took."""
        self.words = []

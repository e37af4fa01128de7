"""Greets whoever an event names: the smallest function that shows a typed event, the context and a typed result."""

from typing import Annotated, Literal

import faas
import msgspec

Language = Literal["de", "en", "es", "fr"]

GREETINGS: dict[Language, str] = {"de": "Hallo", "en": "Hello", "es": "Hola", "fr": "Bonjour"}


class Person(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whom to greet. An event that does not fit is rejected before `handle` is called."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    language: Language = "en"


class Greeting(msgspec.Struct, frozen=True):
    """What was said, and by which attempt of which invocation."""

    text: str
    invocation_id: str
    attempt: int


def handle(event: Person, ctx: faas.Context) -> Greeting:
    """Greet a person in a language."""
    return Greeting(text=f"{GREETINGS[event.language]}, {event.name}!", invocation_id=ctx.invocation_id, attempt=ctx.attempt)

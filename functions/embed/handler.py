"""Sentence embeddings: texts in, one unit vector of 384 numbers each out, so that a dot product tells how close two texts are."""

from typing import Annotated

import faas
import minilm
import msgspec

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=100_000)]
Texts = Annotated[list[Text], msgspec.Meta(min_length=1, max_length=256)]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One text, or several. Of each the first 256 tokens count, about 200 words."""

    text: Text | Texts


class Embeddings(msgspec.Struct, frozen=True):
    """One vector a text, in order, each of length 1."""

    vectors: list[list[float]]
    dimensions: int


class Embed:
    """Holds the model for the life of a worker."""

    def load(self, ctx: faas.Context) -> None:
        self.model = minilm.load(ctx.device)

    def handle(self, event: Request, ctx: faas.Context) -> Embeddings:
        texts = [event.text] if isinstance(event.text, str) else event.text
        ctx.log.info("embedding %d texts on %s", len(texts), ctx.device)
        return Embeddings(vectors=self.model.embed(texts), dimensions=minilm.DIMENSIONS)

    def close(self) -> None:
        del self.model

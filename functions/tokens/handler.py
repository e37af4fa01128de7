"""Streams text character by character: a generator as a handler. Each item that it yields is sent on at once, and together they are the result.

The model is trained when a worker loads, on `text.txt` beside this file. It knows the words of that page and makes new sentences of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import faas
import model
import msgspec
import torch

TEXT = Path(__file__).parent / "text.txt"  # every file of the folder travels with the function


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to go on from, and how. The same prompt, temperature and seed give the same text."""

    prompt: Annotated[str, msgspec.Meta(max_length=10_000, pattern=r"^[\n -~]*$", description="ASCII text; the last 8 characters count")]
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.7
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=4000)] = 200


class Tokens:
    """Holds the model for the life of a worker."""

    def load(self, ctx: faas.Context) -> None:
        self.device = ctx.device
        self.model = model.train(TEXT.read_text(encoding="ascii"), device=ctx.device, seed=1)
        ctx.log.info("the model has read %s on %s", TEXT.name, ctx.device)

    def handle(self, event: Prompt, ctx: faas.Context) -> Iterator[str]:
        """The characters that follow the prompt, one at a time."""
        random = torch.Generator().manual_seed(event.seed)
        window = model.codes(event.prompt)[-model.CONTEXT :]
        for _ in range(event.max_tokens):
            if ctx.cancelled:  # whoever asked has gone, or the node stops: nobody will read what comes now
                return
            with torch.inference_mode():  # not around the loop: while a generator waits at its yield, other code runs
                scores = self.model(torch.tensor([window], device=self.device))[0]
                code = model.choose(scores, temperature=event.temperature, random=random)
            window = [*window[1:], code]
            ctx.meter("tokens", 1)
            yield chr(code)

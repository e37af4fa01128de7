"""The example functions without a node: a handler is imported and called with a context, as its author would in a test.

They run in the environments that a node builds for them, since the packages that they import are nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from node import PROJECT
from samples import hum, png, png_size

from faas.environments.build import Builder
from faas.environments.profile import load_profiles, shipped_functions, shipped_runtimes
from faas.registry.spec import read_functions

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]  # the first one builds

BEGIN = "import json, sys\nsys.path[:0] = sys.argv[1:]\nimport faas, handler\nctx = faas.Context(function='f', tenant='t')\n"


async def run(builder: Builder, name: str, code: str, data: bytes = b"") -> Any:
    """What a few lines print as JSON that have `handler` and `ctx`, and `data` on their standard input."""
    profiles, _ = load_profiles(shipped_runtimes())
    (function,) = (f for f in read_functions(shipped_functions(), profiles).functions if f.spec.name == name)
    environment = await builder.ensure_overlay(function, profiles[function.spec.runtime])
    path = [str(shipped_functions() / name), *filter(None, [environment.overlay]), str(PROJECT)]
    printed = await asyncio.to_thread(
        subprocess.check_output, [environment.python, "-I", "-B", "-c", BEGIN + code, *path], input=data, env={"OMP_NUM_THREADS": "1"}
    )
    return json.loads(printed)


async def test_classify_is_right_on_pictures_that_it_has_not_learnt_from(builder: Builder) -> None:
    """Chance is one in five."""
    code = (
        "import shapes\n"
        "one = handler.Classify()\none.load(ctx)\n"
        "pictures, labels = shapes.draw(500, seed=99)\n"
        "print((one._probabilities(pictures).argmax(1) == labels).float().mean().item())\n"
    )

    assert await run(builder, "classify", code) > 0.95


async def test_resize_takes_the_bytes_of_an_event_and_its_attributes(builder: Builder, tmp_path: Path) -> None:
    """The event is an ordinary object, which a test can make."""
    code = (
        "event = faas.Event('1', '/s', 't', '', None, 'image/png', '', {'height': '30'}, sys.stdin.buffer.read())\n"
        "result = handler.handle(event, ctx)\n"
        "print(json.dumps([result.content_type, result.data.hex()]))\n"
    )

    kind, data = await run(builder, "resize", code, png(90, 60, lambda x, y: x > y))

    assert kind == "image/png"
    assert png_size(bytes.fromhex(data)) == (45, 30)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
async def test_speech_keeps_a_sound_through_resampling(builder: Builder, rate: int) -> None:
    """A tone of 120 Hz has 120 waves a second at any rate: two crossings of zero each."""
    code = (
        "samples, rate = handler.read_wav(sys.stdin.buffer.read())\n"
        "samples = handler.resample(samples, rate, handler.RATE)\n"
        "crossings = ((samples[:-1] < 0) != (samples[1:] < 0)).sum().item()\n"
        "print(json.dumps([len(samples), crossings]))\n"
    )

    count, crossings = await run(builder, "speech", code, hum(1.0, rate))

    assert count == 16_000
    assert crossings == pytest.approx(240, abs=2)


async def test_tokens_works_only_as_far_as_somebody_reads(builder: Builder) -> None:
    """A generator that is left alone runs no further, and what it has metered by then is what was read."""
    code = (
        "import itertools\n"
        "one = handler.Tokens()\none.load(ctx)\n"
        "text = ''.join(itertools.islice(one.handle(handler.Prompt('An event '), ctx), 20))\n"
        "print(json.dumps([text, ctx.meters]))\n"
    )

    text, meters = await run(builder, "tokens", code)

    assert len(text) == 20
    assert meters == {"tokens": 20}


STOPPED = "class Stopped(faas.Context):\n    cancelled = property(lambda self: sum(self.meters.values()) >= {limit})\nctx = Stopped()\n"


async def test_tokens_stops_when_it_is_cancelled(builder: Builder) -> None:
    """A blocking handler is asked; one that never looks holds its worker, and a GPU, until it is killed."""
    code = (
        STOPPED.format(limit=5) + "one = handler.Tokens()\none.load(ctx)\nprint(len(list(one.handle(handler.Prompt('An event '), ctx))))\n"
    )

    assert await run(builder, "tokens", code) == 5


async def test_train_stops_when_it_is_cancelled_and_answers_with_what_it_has(builder: Builder) -> None:
    """Two epochs of 1500 examples are two epochs, though a hundred were asked for."""
    code = STOPPED.format(limit=3000) + "one = handler.Train()\none.load(ctx)\nprint(one.handle(handler.Trial(epochs=100), ctx).epochs)\n"

    assert await run(builder, "train", code) == 2

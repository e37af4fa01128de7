"""The example functions on a real node: what each answers follows from what it was given."""

from __future__ import annotations

import json
import secrets
from itertools import pairwise
from typing import Any

import pytest
from nats.aio.msg import Msg
from node import Node, end, head
from samples import hum, packed_png, png, png_size

from faas.environments.profile import shipped_functions

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]  # the first one builds; then each has its own packages to install, once

WAIT_S = 120.0


async def publish_example(node: Node, name: str, /, **changes: object) -> Msg:
    """Publish a function's example event as the CloudEvent that it is, and wait for its outcome. `changes` replace keys of its data."""
    document = json.loads((shipped_functions() / name / "example_event.json").read_text())
    if changes:
        document["data"] |= changes
    document["id"] = f"{name}-{secrets.token_hex(8)}"
    kind = {"Content-Type": "application/cloudevents+json"}
    return await node.event(document["subject"], json.dumps(document).encode(), id=document["id"], headers=kind, wait_s=WAIT_S)


async def publish(node: Node, name: str, data: bytes, /, **attributes: str) -> Msg:
    """Publish a payload as it is, with attributes beside it."""
    event_id = f"{name}-{secrets.token_hex(8)}"
    headers = {
        "ce-specversion": "1.0",
        "ce-id": event_id,
        "ce-source": "/test",
        "ce-type": "test",
        "Content-Type": "application/octet-stream",
    }
    headers |= {f"ce-{key}": value for key, value in attributes.items()}
    return await node.event(f"demo.{name}", data, id=event_id, headers=headers, wait_s=WAIT_S)


def result(message: Msg) -> Any:
    """What the function answered, as JSON."""
    assert end(message) == ("succeeded", ""), message.data[:2000]
    return json.loads(message.data)


# ---------------------------------------------------------------- hello


async def test_hello_greets_whom_the_event_names(examples: Node) -> None:
    """The first thing that anybody runs."""
    assert result(await publish_example(examples, "hello"))["text"] == "Bonjour, Ada!"
    assert result(await publish_example(examples, "hello", name="Bob", language="de"))["text"] == "Hallo, Bob!"


# ---------------------------------------------------------------- embed


async def test_embed_puts_like_texts_close_to_one_another(examples: Node) -> None:
    """Two texts on the weather are closer than either is to one about a stadium."""
    one, two, three = result(await publish_example(examples, "embed"))["vectors"]

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert cosine(one, two) > max(cosine(one, three), cosine(two, three))


# ---------------------------------------------------------------- classify


async def test_classify_names_the_shape_in_its_example(examples: Node) -> None:
    """A file of colour, drawn by other means than what the network has learnt from."""
    answer = result(await publish_example(examples, "classify"))

    assert answer["label"] == "triangle"
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)


async def test_classify_tells_a_ring_from_a_cross(examples: Node) -> None:
    """Its answer follows the picture; one that names every picture the same would pass with one."""
    ring = png(120, 120, lambda x, y: 0.45 < (x * x + y * y) ** 0.5 < 0.75)
    cross = png(200, 150, lambda x, y: min(max(abs(x), 3 * abs(y)), max(3 * abs(x), abs(y))) > 0.7)

    assert result(await publish(examples, "classify", ring))["label"] == "ring"
    assert result(await publish(examples, "classify", cross))["label"] == "cross"


@pytest.mark.parametrize("data", [b"", b"no picture", png(40, 40, lambda x, y: True)[:60], packed_png(60_000, 60_000, b"\0" * 100)])
async def test_classify_rejects_what_is_no_picture(examples: Node, data: bytes) -> None:
    """It will be none the next time either; the last one would be 3.6 billion pixels."""
    assert end(await publish(examples, "classify", data)) == ("rejected", "rejected_by_handler")


# ---------------------------------------------------------------- resize


async def test_resize_answers_with_a_picture_of_the_asked_size(examples: Node) -> None:
    """Bytes in, bytes out, with a content type of its own."""
    outcome = await publish_example(examples, "resize")

    assert end(outcome) == ("succeeded", "")
    assert head(outcome)["Content-Type"] == "image/png"
    assert png_size(outcome.data) == (160, 120)


async def test_resize_keeps_the_shape_where_one_side_is_asked_for(examples: Node) -> None:
    """The other side follows."""
    outcome = await publish(examples, "resize", png(100, 40, lambda x, y: x > y), width="50")

    assert png_size(outcome.data) == (50, 20)


@pytest.mark.parametrize("attributes", [{}, {"width": "0"}, {"width": "9999"}, {"height": "tall"}, {"width": "4096", "height": "-1"}])
async def test_resize_rejects_a_size_that_is_none(examples: Node, attributes: dict[str, str]) -> None:
    """Extension attributes are text that anybody may have written."""
    outcome = await publish(examples, "resize", png(10, 10, lambda x, y: x > y), **attributes)

    assert end(outcome) == ("rejected", "rejected_by_handler")


async def test_resize_rejects_a_picture_that_unpacks_to_gigabytes(examples: Node) -> None:
    """A few bytes that claim to be more than the worker's memory would kill it, again and again."""
    outcome = await publish(examples, "resize", packed_png(60_000, 60_000, b"\0" * 100), width="10")

    assert end(outcome) == ("rejected", "rejected_by_handler")


# ---------------------------------------------------------------- speech


async def test_speech_finds_the_two_sentences_of_its_example_and_not_the_silence(examples: Node) -> None:
    """The recording was put together: a sentence from 0.40 to 1.46 s, another from 2.06 to 2.67 s, silence around them."""
    answer = result(await publish_example(examples, "speech"))

    bounds = [(segment["start_s"], segment["end_s"]) for segment in answer["segments"]]
    assert [start for start, _ in bounds] == pytest.approx([0.40, 2.06], abs=0.1)
    assert [stop for _, stop in bounds] == pytest.approx([1.46, 2.67], abs=0.15)
    assert all(segment["probability"] > 0.5 for segment in answer["segments"])
    assert answer["duration_s"] == pytest.approx(3.07, abs=0.01)


async def test_speech_finds_none_in_a_hum(examples: Node) -> None:
    """Loud is not spoken; and the file has another sample rate than the model."""
    answer = result(await publish(examples, "speech", hum(2.0, 22_050)))

    assert answer == {"segments": [], "duration_s": 2.0}


async def test_speech_rejects_what_is_no_recording(examples: Node) -> None:
    """It will be none the next time either."""
    assert end(await publish(examples, "speech", b"RIFF but no more")) == ("rejected", "rejected_by_handler")


# ---------------------------------------------------------------- tokens


async def test_tokens_writes_the_same_text_for_the_same_seed_alone(examples: Node) -> None:
    """Whoever repeats an event gets what came of it; whoever changes the seed gets something else."""
    first, again, other = [(await publish_example(examples, "tokens", seed=seed)).data for seed in (7, 7, 8)]

    assert first == again
    assert first != other
    assert len(first) == 200


async def test_tokens_writes_words_of_its_page(examples: Node) -> None:
    """The model has learnt something: untrained, it would write characters that the page does not even have."""
    page = set((shipped_functions() / "tokens" / "text.txt").read_text().split())

    words = (await publish_example(examples, "tokens", temperature=0)).data.decode().split()

    assert set(words[:-1]) <= page  # the last may be cut


async def test_tokens_sends_each_character_on_its_own(examples: Node) -> None:
    """Whoever reads along sees the text grow; what has been sent is what is answered in the end."""
    inbox = examples.client.new_inbox()
    chunks = await examples.client.subscribe(inbox)
    data = json.loads((shipped_functions() / "tokens" / "example_event.json").read_text())["data"]

    answer = await examples.request("tokens", json.dumps(data).encode(), headers={"Faas-Chunk-To": inbox}, wait_s=WAIT_S)

    pieces = []
    while head(chunk := await chunks.next_msg(timeout=8)).get("Faas-Eos") != "true":
        pieces.append(chunk.data.decode())
    assert len(pieces) == data["max_tokens"]
    assert "".join(pieces) == answer.data.decode()


async def test_tokens_rejects_what_the_model_cannot_read(examples: Node) -> None:
    """The bounds are in the type of its first parameter, so the handler is not called."""
    assert end(await publish_example(examples, "tokens", prompt="ein Übel")) == ("rejected", "payload_invalid")


# ---------------------------------------------------------------- train


async def test_train_learns_and_its_seed_counts(examples: Node) -> None:
    """Chance is one in three; the same seed is the same trial."""
    one, again, other = [result(await publish_example(examples, "train", epochs=20, seed=seed)) for seed in (1, 1, 2)]

    assert min(one["accuracy"], other["accuracy"]) > 0.8
    assert one == again
    assert one["loss"] != other["loss"]
    assert one["epochs"] == 20


async def test_train_does_worse_with_a_learning_rate_that_is_too_small(examples: Node) -> None:
    """The hyperparameters of the event are those that it trains with."""
    losses = [result(await publish_example(examples, "train", epochs=5, lr=lr))["loss"] for lr in (1e-2, 1e-3, 1e-6)]

    assert all(better < worse for better, worse in pairwise(losses))


async def test_train_meters_what_it_has_worked_through(examples: Node) -> None:
    """The usage record has the author's own meters beside the runtime's."""
    outcome = await publish_example(examples, "train", epochs=3)

    (record,) = json.loads(head(outcome)["Faas-Usage"])
    assert record["meters"] == {"examples": 4500}

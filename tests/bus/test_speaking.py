"""What attempts say onto a real bus: bounded in time where it does not take it, and silent once they are given up."""

from __future__ import annotations

import asyncio

from faas.bus.connection import Bus, Message
from faas.bus.consumers import Consumer
from faas.bus.speech import Item, Published, Speech, Voice, event_of


def voice_of(speech: Speech, chunk_to: str = "") -> Voice:
    return speech.voice(chunk_to=chunk_to, attempt=1, pause=lambda: None, resume=lambda: None)


def an_event(subject: str, number: int) -> Published:
    return event_of(
        subject, b"1", id=f"{subject}.{number}", source="/s", content_type="application/json", depth=1, trace=("", "")
    )  # fmt: skip


async def test_events_behind_one_that_a_stream_refuses_are_not_tried(bus: Bus, tenant: str) -> None:
    """The attempt has failed with the first; were each tried as long, its slot would be held for hours."""
    config = {"name": f"{tenant}-full", "subjects": [f"{tenant}.out"], "storage": "memory", "max_msgs": 1, "discard": "new"}
    await bus.api(f"STREAM.CREATE.{tenant}-full", config, dict)
    async with Speech.open(bus) as speech:
        voice = voice_of(speech)
        for number in range(1000):
            voice.say(an_event(f"{tenant}.out", number))
        await voice.finish()

    assert "maximum messages exceeded" in voice.failure
    assert (await bus.last_stored(f"{tenant}-full", f"{tenant}.out")) is not None


async def test_a_voice_that_is_dropped_sends_nothing_more_and_ends(bus: Bus, tenant: str) -> None:
    """Another node has the event by then; and a voice that waited for ever would stay for each attempt that was cancelled."""
    heard: list[bytes] = []

    def take(message: Message) -> None:
        heard.append(message.data)

    await bus.subscribe(f"{tenant}.items", take)
    before = asyncio.all_tasks()
    async with Speech.open(bus) as speech:
        voice = voice_of(speech, f"{tenant}.items")
        (speaking,) = asyncio.all_tasks() - before
        voice.say(Item(b"never", "text/plain"))
        voice.drop()
        await speaking
    await bus.fence()

    assert heard == []


async def test_an_event_is_not_kept_out_by_a_stranger_that_used_its_message_id_first(bus: Bus, consumer: Consumer, tenant: str) -> None:
    """Its id follows from its invocation's and what it says; whoever works that out would have it dropped for a repetition."""
    event = an_event(f"faas.submit.{tenant}.f", 1)
    await bus.store(f"{tenant}.in", b"", head=f"Nats-Msg-Id: {event.subject}.1\r\n".encode())
    async with Speech.open(bus) as speech:
        voice = voice_of(speech)
        voice.say(event)
        await voice.finish()

    assert voice.failure == ""
    assert (await bus.last_stored("FAAS_EVENTS", event.subject)) is not None

"""nats-py's client with two ways cut short: a message goes to its callback at once, and a publish to the socket in the same turn of the loop.

nats-py hands each message to a task of its subscription, and each publish to a task that flushes: two more turns of the
loop, which a warm call waits for (bench/dispatch.py), and a task for every subscription. Uses private parts of nats-py;
`tests/bus/test_connection.py` holds them in place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from nats.aio.client import Client
from nats.aio.subscription import Subscription

from faas.bus.messages import HEAD_LINE, Message, inline_status

SOON_BYTES = 64 * 1024
"""A publish above this waits for the socket to take it, so that many large ones do not pile up in memory."""

UNSENT_BYTES = 16 * 2**20
"""What is kept while the connection is away; beyond, a publish is refused."""

Receive = Callable[[Message], None]
Hear = Callable[[str, str], None]


class DirectClient(Client):
    """Its read loop calls the receivers itself: they must return at once and raise nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._receivers: dict[int, Receive] = {}
        self._loop = asyncio.get_running_loop()
        self._write_due = False

    async def reach(self, url: str, *, name: str, inbox: str, seed: str, hear: Hear) -> None:
        """Connect, and go on trying once connected. `hear` is told what becomes of it: error, disconnected, reconnected, closed."""

        async def error(error: Exception) -> None:
            hear("error", str(error) or type(error).__name__)

        def on(what: str) -> Callable[[], Awaitable[None]]:
            async def tell() -> None:
                hear(what, "")

            return tell

        await self.connect(
            url.split(","),
            name=name,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,  # type: ignore[arg-type]  # annotated int, used as a float
            ping_interval=5,
            max_outstanding_pings=2,
            pending_size=UNSENT_BYTES,
            inbox_prefix=inbox.encode(),
            nkeys_seed_str=seed or None,
            error_cb=error,
            disconnected_cb=on("disconnected"),
            reconnected_cb=on("reconnected"),
            closed_cb=on("closed"),
        )

    async def receive(self, subject: str, queue: str, receive: Receive) -> Subscription:
        """Subscribe; whatever comes goes to `receive`."""
        subscription = await self.subscribe(subject, queue=queue)
        self._receivers[subscription._id] = receive
        while not subscription._pending_queue.empty():  # what came while the subscription was made
            early = subscription._pending_queue.get_nowait()
            receive(Message(early.subject, early.reply, early.data, early.headers, inline_status(early.headers, early.data)))
        return subscription

    async def _process_msg(self, sid: int, *parts: bytes) -> None:
        subject, reply, data, headers = parts
        receive = self._receivers.get(sid)
        if receive is None or sid not in self._subs:
            await super()._process_msg(sid, *parts)
            return
        head = await self._process_headers(headers) if headers else None
        receive(Message(subject.decode(), reply.decode(), bytes(data), head, inline_status(head, data)))

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        """A header block that is none must not end the read loop: any publisher could send one."""
        try:
            return await super()._process_headers(headers)
        except (ValueError, IndexError):
            return {"": "unreadable"}

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._receivers.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    async def send(self, subject: str, body: bytes, *, head: bytes, reply: str) -> None:
        """Publish with a head that is encoded already; kept while the connection is away."""
        if head:
            block = b"".join((HEAD_LINE, head, b"\r\n"))
            line = f"HPUB {subject} {reply} {len(block)} {len(block) + len(body)}\r\n".encode()
            command = b"".join((line, block, body, b"\r\n"))
        else:
            command = b"".join((f"PUB {subject} {reply} {len(body)}\r\n".encode(), body, b"\r\n"))
        if len(command) > SOON_BYTES:
            await self._send_command(command)
            if self._flush_queue is not None and self._flush_queue.empty():
                await self._flush_pending()
            return
        self._append(command)

    def send_soon(self, subject: str, body: bytes, *, reply: str) -> None:
        """Publish a small message without a head; kept while the connection is away."""
        self._append(b"".join((f"PUB {subject} {reply} {len(body)}\r\n".encode(), body, b"\r\n")))

    def _append(self, command: bytes) -> None:
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._write_due:
            self._write_due = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        """Everything of this turn in one write; what cannot be written now goes out when nats-py has reconnected."""
        self._write_due = False
        if self._pending and self.is_connected and self._transport is not None:
            self._transport.writelines(self._pending)
            self._pending = []
            self._pending_data_size = 0


async def give_up(client: Client, *, within_s: float = 1.0) -> None:
    """Close a client; what it says about it changes nothing, and a frozen peer may not hold it up."""
    with suppress(Exception):
        async with asyncio.timeout(within_s):
            await client.close()

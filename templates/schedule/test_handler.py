"""The handler without a node: a plain function, called with the event of a schedule."""

from datetime import UTC, datetime

from handler import handle

import faas

CONTEXT = faas.Context(function="FUNCTION", tenant="default")


def test_it_looks_back_from_the_time_at_which_it_was_due() -> None:
    event = faas.Event(
        id="2026-11-24T08:00:00Z",
        source="/faas/default/FUNCTION/schedule/0",
        type="faas.schedule",
        subject="*/5 * * * *",
        time=datetime(2026, 11, 24, 8, tzinfo=UTC),
        datacontenttype="application/json",
        dataschema="",
        extensions={"timezone": "UTC"},
        data={"days": 7},
    )

    assert handle(event, CONTEXT) == {"since": "2026-11-17T08:00:00+00:00", "until": "2026-11-24T08:00:00+00:00"}

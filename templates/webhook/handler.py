"""Says which pull requests are waiting for somebody, as GitHub tells of them. Replace `handle` with what your function does."""

import faas


def handle(event: faas.Event, ctx: faas.Context) -> dict[str, str]:
    """Run once for each delivery, however often GitHub sends it. `event.type` is its kind, `event.subject` the repository, `event.data` the payload."""
    if event.type not in ("com.github.pull_request.opened", "com.github.pull_request.reopened"):
        raise faas.Reject(f"nothing to do for {event.type}")  # or choose at GitHub which events it sends
    request = event.data["pull_request"]
    ctx.log.info("%s: %s", event.subject, request["title"])
    return {"repository": event.subject, "title": request["title"], "url": request["html_url"]}

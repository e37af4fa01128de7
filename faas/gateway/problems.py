"""Errors as `application/problem+json` (RFC 9457): one shape for every refusal, and which error of ours has which status. Knows no route."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from aiohttp import web
from msgspec import Struct

from faas.errors import (
    BusUnavailable,
    ConfigInvalid,
    FaasError,
    KeyReused,
    MessageTooLarge,
    NoSuchFunction,
    NoSuchInvocation,
    PayloadLost,
    SubjectInvalid,
)

MEDIA_TYPE = "application/problem+json"
SERVER = "faas"
"""What every answer says of its server: aiohttp would say its version, and Python's."""
RETRY_AFTER_S = 2
"""Told with every 503: as long as a bus that restarts, or the next node, takes."""

STATUS_OF_ERROR: tuple[tuple[type[FaasError], int], ...] = (
    (NoSuchFunction, 404),
    (NoSuchInvocation, 404),
    (MessageTooLarge, 413),
    (KeyReused, 422),
    (ConfigInvalid, 400),
    (SubjectInvalid, 400),
    (PayloadLost, 410),
    (BusUnavailable, 503),
)


class ProblemDocument(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`code` is stable; `detail` is one sentence for whoever sent the request."""

    title: str
    status: int
    code: str
    detail: str = ""


class Refusal(FaasError):
    """A request is answered with a problem document; raised by whoever reads the request, at any depth."""

    def __init__(self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status, self.detail = status, detail
        self.code = code
        self.headers = dict(headers or {})


def problem(status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None) -> web.Response:
    """One problem document; a 503 says after how long to ask again."""
    document = ProblemDocument(title=HTTPStatus(status).phrase, status=status, code=code, detail=detail)
    again = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    return web.Response(status=status, body=msgspec.json.encode(document), headers={**again, **(headers or {}), "Content-Type": MEDIA_TYPE})


def problem_of(error: FaasError) -> web.Response:
    """An error of this package as what its sender is told."""
    if isinstance(error, Refusal):
        return problem(error.status, error.code, error.detail, headers=error.headers)
    status = next((status for kind, status in STATUS_OF_ERROR if isinstance(error, kind)), 500)
    return problem(status, error.code, str(error))

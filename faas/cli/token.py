"""`faas token new`: a bearer token for the HTTP gateway, shown once, and the lines of `faas.toml` that let it in. Needs no node."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from faas.cli.options import Json, print_json
from faas.errors import ConfigInvalid

if TYPE_CHECKING:
    from faas.config import Scope


def new(
    tenant: Annotated[str, Parameter(help="Whose functions it is for.")],
    *,
    scope: Annotated[
        tuple[str, ...],
        Parameter(help="invoke, read or admin, which holds the others; may be given several times.", negative="", consume_multiple=False),
    ] = ("invoke", "read"),
    name: Annotated[str, Parameter(help="What it is for, like ci; the log names it.")] = "",
    expires: Annotated[
        str | None, Parameter(help='The first day on which it holds no longer, like 2027-01-31, or after how long, like "90d".')
    ] = None,
    json: Json = False,
) -> int:
    """Make a token."""
    from faas.model import NAME_PATTERN
    from faas.security.tokens import digest_of, new_token

    if not re.fullmatch(NAME_PATTERN, tenant):
        raise ConfigInvalid(f"{tenant[:80]!r} is no tenant's name: it begins with a-z, then a-z, 0-9 and -, at most 63")
    if not name.isprintable() or len(name) > 80:
        raise ConfigInvalid("--name: at most 80 characters that can be printed")
    scopes = _scopes(scope)
    last = _date(expires)
    token = new_token(tenant)
    digest = digest_of(token)
    if json:
        print_json(
            {
                "token": token,
                "tenant": tenant,
                "name": name,
                "scopes": list(scopes),
                "sha256": digest,
                "expires": last.isoformat() if last else None,
            }
        )
        return 0
    print(token)
    print(_how_to(tenant, digest, scopes, name=name, expires=last))
    return 0


def _scopes(given: tuple[str, ...]) -> tuple[Scope, ...]:
    from faas.security.tokens import SCOPES

    for scope in given:
        if scope not in SCOPES:
            raise ConfigInvalid(f"--scope {scope[:80]}: use invoke, read or admin")
    return tuple(sorted(set(given)))  # type: ignore[arg-type]


def _date(text: str | None) -> date | None:
    from faas.units import Duration

    if text is None:
        return None
    today = datetime.now(UTC).date()
    try:
        found = date.fromisoformat(text)
    except ValueError:
        try:
            found = today + timedelta(seconds=float(Duration.parse(text)))
        except (ValueError, OverflowError) as error:
            raise ConfigInvalid(f"--expires {text[:80]}: write a day, like 2027-01-31, or a time from now, like 90d") from error
    if found <= today:
        raise ConfigInvalid(f"--expires {text}: the token would never hold; choose a day after {today}")
    return found


def _how_to(tenant: str, digest: str, scopes: tuple[Scope, ...], *, name: str, expires: date | None) -> str:
    """What to put into `faas.toml`; the comment lines make all but the first line of the output TOML."""
    from msgspec import json

    def text(value: object) -> str:
        return json.encode(value).decode()  # a JSON string is a TOML one

    lines = [
        "# The line above is the token, and is shown this once. Put what follows into faas.toml, below",
        f'# [[tenant]] name = "{tenant}", and start the node again:',
        "[[tenant.token]]",
        *([f"name = {text(name)}"] if name else []),
        f"sha256 = {text(digest)}",
        f"scopes = [{', '.join(map(text, scopes))}]",
        *([f"expires = {expires.isoformat()}"] if expires else []),
    ]
    return "\n".join(lines)

"""The table of routes: which handler a raw path means, and that no name of a path gets further than it may."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from faas.gateway.problems import Refusal
from faas.gateway.routes import Call, Route, Routes
from faas.security.tokens import ANYONE, Principal


async def _handle(call: Call) -> web.Response:
    return web.Response()


def _routes() -> Routes:
    routes = Routes()
    routes.add(
        [
            Route("POST", "/invoke/{tenant}/{function}", _handle, scope="invoke"),
            Route("GET", "/invocations/{id}", _handle, scope="read"),
            Route("DELETE", "/invocations/{id}", _handle, scope="invoke"),
        ]
    )
    return routes


def _call(principal: Principal = ANYONE, **names: str) -> Call:
    return Call(make_mocked_request("GET", "/"), principal, names)


def test_a_name_stands_for_one_segment() -> None:
    """A slash in a name would make it another path."""
    route, names = _routes().find("POST", "/invoke/default/a%2Fb")

    assert (route.method, names) == ("POST", {"tenant": "default", "function": "a/b"})
    with pytest.raises(Refusal, match="404"):
        _routes().find("POST", "/invoke/default/a/b")


def test_a_method_that_a_path_does_not_take_is_told_which_it_takes() -> None:
    """405 without Allow leaves the caller to guess."""
    with pytest.raises(Refusal) as refused:
        _routes().find("PUT", "/invocations/x")

    assert (refused.value.status, refused.value.headers) == (405, {"Allow": "DELETE, GET"})


@pytest.mark.parametrize("name", ["", "A", "a.b", "a*", ">", "a b", "a\r\nPUB x", "..", "../../etc/passwd", "a" * 64, "ä", "$(id)", "a\0"])
def test_a_name_that_none_can_have_is_refused_before_anything_is_made_of_it(name: str) -> None:
    """It would become part of a subject: a wildcard or a line break there is another tenant's, or another command."""
    with pytest.raises(Refusal) as refused:
        _call(function=name).name("function")

    assert refused.value.status == 404


def test_a_tenant_of_another_token_is_refused() -> None:
    """The path names whose function it is; the token says who asks."""
    principal = Principal(tenant="one", scopes=frozenset(("admin",)))

    assert _call(principal, tenant="one").tenant() == "one"
    with pytest.raises(Refusal, match="403"):
        _call(principal, tenant="other").tenant()


def test_admin_holds_the_other_scopes_and_they_do_not_hold_it() -> None:
    """A token of an operator needs no list."""
    reader = Principal(tenant="", scopes=frozenset(("read",)))

    assert ANYONE.may("invoke")
    assert reader.may("read")
    assert not reader.may("admin")

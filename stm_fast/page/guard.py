"""Who may talk to the server: only pages that it served itself, to the person who has its address.

Any site that is open in the same browser can send requests to this machine. The token of the address is what they lack;
it moves into a cookie, which scripts cannot read and other sites do not send.
"""

import hmac
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_READS = ("GET", "HEAD")
# of the body of a request that is kept in memory; a lasso of many points takes less
_MOST_BODY = 2**22
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """ASGI middleware that answers, before the application sees them, requests that it must not get.

    Args:
        app: the application.
        token: that a browser must have.
        port: of the server; cookies of several servers on one machine differ by it.
        hosts: names by which the server may be addressed, beside IP addresses.
        public: whether other machines can reach the server; otherwise only addresses of this machine are accepted.
        streams: paths with bodies of any length, which are not kept in memory.
    """

    def __init__(
        self, app: ASGIApp, *, token: str, port: int, hosts: frozenset[str], public: bool, streams: frozenset[str]
    ) -> None:
        self._app = app
        self._token = token
        self._cookie = f"stm_fast_{port}"
        self._hosts = hosts
        self._public = public
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._answer(scope) or self._app
        await answer(scope, receive, with_headers)

    def _answer(self, scope: Scope) -> Response | None:
        """The answer to a request that the application must not see; None for others."""
        headers = Headers(scope=scope)
        if not self._is_ours(headers.get("host", "")):
            return _refused(403, "found another name of the server in the request, expected localhost or its address")
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and given and self._is_token(given):
            return self._admitted()
        if not self._is_token(_cookie(headers.get("cookie", ""), self._cookie)):
            return _refused(403, "open the page with the address that stm-fast printed, which ends in a token")
        if scope["method"] in _READS:
            return None
        return _refuse_write(headers, limited=scope["path"] not in self._streams)

    def _admitted(self) -> Response:
        """Moves the token into a cookie, so that it is neither in the history of the browser nor on the screen."""
        answer = RedirectResponse("/", status_code=303, headers={"Cache-Control": "no-store"})
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
        return answer

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _is_ours(self, host: str) -> bool:
        """Whether a request names this server: a name that someone else can let lead here is not one of ours."""
        name = _hostname(host)
        if name in self._hosts:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return self._public or address.is_loopback


def _refuse_write(headers: Headers, *, limited: bool) -> Response | None:
    """The answer to a request that changes something, if it comes from another site or its body is too large."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers["host"].lower():
        return _refused(403, "found a request from another site")
    if not limited:
        return None
    if "transfer-encoding" in headers:
        return _refused(411, "found a body of unknown length")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > _MOST_BODY:
        return _refused(413, f"found a request of {length[:20]} bytes, expected at most {_MOST_BODY}")
    return None


def _hostname(host: str) -> str:
    """The name in a Host header, in lower case; empty if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _refused(status: int, why: str) -> Response:
    return JSONResponse({"detail": why}, status_code=status, headers={"Connection": "close"})

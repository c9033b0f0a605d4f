"""Serves a session to browsers."""

import logging
import secrets
import socket
from collections.abc import Callable
from ipaddress import ip_address

import uvicorn

from stm_fast.page.guard import Guard
from stm_fast.page.routes import UPLOAD, make_app
from stm_fast.page.session import Session

# for answers that are being sent when the server stops
_SECONDS = 2


class PageServer(uvicorn.Server):
    """A server with a token of its own, to be started by `serve`.

    Args:
        session: what is served.
        listener: a socket that is bound already, so that the address can be shown before the server runs.
        host: by which name or address the user wants to reach it.
        local: whether only this machine can.
        started: called, with the address, once requests are answered and signals end the server.

    Attributes:
        session: as given.
        url: the address for the user, with the token.
    """

    def __init__(
        self,
        session: Session,
        listener: socket.socket,
        host: str,
        *,
        local: bool,
        started: Callable[[str], None] = lambda _: None,
    ) -> None:
        port = listener.getsockname()[1]
        token = secrets.token_urlsafe(24)
        names = frozenset({"localhost", host.lower()} | ({socket.gethostname().lower()} if not local else set()))
        guard = Guard(
            make_app(session), token=token, port=port, hosts=names, public=not local, streams=frozenset({UPLOAD})
        )
        super().__init__(
            uvicorn.Config(
                guard,
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_SECONDS,
            )
        )
        self.url = f"http://{_shown(host)}:{port}/?token={token}"
        self.session = session
        self._listener = listener
        self._started = started

    def serve_until_stopped(self) -> None:
        """Answers requests until SIGINT or SIGTERM arrives, or `should_exit` is set."""
        self.run(sockets=[self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the server, and says so."""
        await super().startup(sockets)
        self._started(self.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the streams of events, which would never end by themselves, and then the server.

        Uploads and downloads are cut off; uvicorn would print the traceback of each.
        """
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.session.events.close()
        await super().shutdown(sockets)


def _shown(host: str) -> str:
    """A host in a URL: for all addresses of this machine, its name."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return socket.gethostname()
    return f"[{host}]" if address.version == 6 else host

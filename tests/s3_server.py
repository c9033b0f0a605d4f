"""An S3 server on this machine, moto's: a test can replace its answers by faults, and look at its requests."""

import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

SECRET, KEY, REGION = "the-secret-of-the-tests", "AKIATHEKEYOFTHETESTS", "us-east-1"
# the names of faults
SLOW_DOWN, DENIED, FULL, CUT = "slow down", "denied", "full", "cut"
_ERRORS = {
    SLOW_DOWN: ("503 Service Unavailable", "SlowDown", "Please reduce your request rate."),
    DENIED: ("403 Forbidden", "AccessDenied", "Access Denied"),
    FULL: ("507 Insufficient Storage", "XMinioStorageFull", "Storage backend has reached its minimum free space."),
}


# moto does not check signatures, but wants one
_SIGNED = f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/{REGION}/s3/aws4_request, SignedHeaders=host, Signature=0"
_HEADERS = {"Content-Type": "binary/octet-stream", "Authorization": _SIGNED}


class Request(NamedTuple):
    """A request, and how many bytes of an object were sent for it."""

    method: str
    path: str
    query: str
    sent: int


@dataclass
class Store:
    """The server: its address, the requests so far, and what replaces its answers.

    Attributes:
        fault: called with the method and the path of a request; returns the name of a fault, or None.
    """

    address: str
    requests: list[Request] = field(default_factory=list)
    fault: Callable[[str, str], str | None] = lambda method, path: None

    @property
    def environment(self) -> dict[str, str]:
        """What programs need to use it."""
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": REGION}
        nothing_else = {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
        return {"AWS_ENDPOINT_URL": self.address, **keys, **nothing_else}

    def put(self, name: str, data: bytes = b"") -> None:
        """Stores an object, "bucket/name", or makes a bucket."""
        self._ask("PUT", name, data)

    def get(self, name: str) -> bytes:
        """The content of an object."""
        return self._ask("GET", name)

    def delete(self, name: str) -> None:
        """Removes an object."""
        self._ask("DELETE", name)

    def names(self, bucket: str) -> list[str]:
        """Of all objects in a bucket."""
        answer = self._ask("GET", bucket).decode()
        return sorted(unquote(part.partition("</Key>")[0]) for part in answer.split("<Key>")[1:])

    def contents(self, folder: str) -> dict[str, bytes]:
        """All objects below "bucket/folder", by their relative names."""
        bucket, _, below = folder.partition("/")
        found = [name for name in self.names(bucket) if name.startswith(f"{below}/")]
        return {name.removeprefix(f"{below}/"): self.get(f"{bucket}/{name}") for name in found}

    def _ask(self, method: str, name: str, data: bytes | None = None) -> bytes:
        before, self.fault = self.fault, lambda method, path: None
        seen = len(self.requests)
        request = urllib.request.Request(f"{self.address}/{quote(name)}", data=data, method=method, headers=_HEADERS)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return bytes(answer.read())
        finally:
            self.fault = before
            del self.requests[seen:]


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None:
        pass


@contextmanager
def s3_server() -> Iterator[Store]:
    """Serves within the block."""
    moto, lock = DomainDispatcherApplication(create_backend_app), Lock()

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        def started(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            # aiohttp refuses two of them
            return start_response(
                status, [item for item in headers if item[0].lower() not in ("server", "date")], *more
            )

        method, path, query = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"]
        with lock:  # moto is not made for several requests at a time
            fault = store.fault(method, path)
            if fault in _ERRORS:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                body = _refuse(fault, start_response)
            else:
                body = b"".join(moto(environ, started))
            store.requests.append(Request(method, path, query, len(body) if method == "GET" else 0))
        return _cut(environ["werkzeug.socket"], body) if fault == CUT else [body]

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Quiet)
    store = Store(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _refuse(fault: str, start_response: Any) -> bytes:
    status, code, message = _ERRORS[fault]
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return body


def _cut(connection: socket.socket, body: bytes) -> Iterator[bytes]:
    """Half of an answer, and then the end of the connection."""
    yield body[: len(body) // 2]
    connection.shutdown(socket.SHUT_RDWR)

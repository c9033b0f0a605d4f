"""A client of the page's server that sends whatever a test wants, and reads its events."""

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Queue
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import urlsplit

SECONDS = 120  # a busy machine


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)

    @property
    def refusal(self) -> tuple[int, str]:
        """The status, and the line that says why."""
        (detail,) = self.data.values()
        assert "\n" not in detail
        return self.status, detail


class Client:
    """One browser.

    Args:
        url: of the server, with the token.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.place = parts.netloc
        self.entrance = f"{parts.path}?{parts.query}"
        self.cookie = ""

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Sends a request; bytes and iterators as they are, everything else as JSON. "_" in a header's name is "-"."""
        connection = http.client.HTTPConnection(self.place, timeout=SECONDS)
        raw = body is None or isinstance(body, bytes | Iterator)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        every = ({"Cookie": self.cookie} if self.cookie else {}) | {"Content-Type": "application/json"} | given
        try:
            connection.request(method, path, body if raw else json.dumps(body), every)
            got = connection.getresponse()
            return Answer(got.status, {name.lower(): value for name, value in got.getheaders()}, got.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return self.send("POST", path, body, **headers)

    def enter(self) -> "Client":
        """Takes the cookie."""
        answer = self.get(self.entrance)
        assert answer.status == 303
        self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return self

    def project(self) -> dict[str, Any]:
        answer = self.get("/api/project")
        assert answer.status == 200, answer
        return answer.data

    def prompt(self, frame: int = 0, **fields: Any) -> Answer:
        return self.post("/api/prompt", {"frame": frame, "object": 1} | fields)

    @contextmanager
    def listening(self) -> Iterator["Listener"]:
        """Events from now on."""
        connection = http.client.HTTPConnection(self.place, timeout=SECONDS)
        connection.request("GET", "/api/events", headers={"Cookie": self.cookie})
        got = connection.getresponse()
        assert got.headers["Content-Type"].startswith("text/event-stream")
        got.readline()  # the comment that comes first: everything after it is heard
        try:
            yield Listener(got)
        finally:
            connection.sock.shutdown(socket.SHUT_RDWR)  # ends the thread that reads
            connection.close()


class Listener:
    """Reads a stream of events."""

    def __init__(self, stream: http.client.HTTPResponse) -> None:
        self._events: Queue[dict[str, Any] | None] = Queue()
        Thread(target=self._read, args=(stream,), daemon=True).start()

    def next(self) -> dict[str, Any] | None:
        """The next event; None at the end."""
        return self._events.get(timeout=SECONDS)

    def until(self, holds: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """The events up to the first one for which something holds."""
        heard = []
        while (event := self.next()) is not None:
            heard.append(event)
            if holds(event):
                return heard
        raise AssertionError(f"the stream has ended after {heard}")

    def until_done(self) -> list[dict[str, Any]]:
        return self.until(lambda event: event["kind"] == "done")

    def _read(self, stream: http.client.HTTPResponse) -> None:
        try:
            for line in stream:
                if line.startswith(b"data: "):
                    self._events.put(json.loads(line.removeprefix(b"data: ")))
        except (OSError, ValueError, AttributeError):  # closed by either side
            pass
        self._events.put(None)

"""A server on this machine that speaks as much of the Hugging Face hub's protocol as loading and pushing need."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import NamedTuple

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "user/gated"


class Hub(NamedTuple):
    """The address, the files of each repository, and the requests so far, such as "GET user/repo main config.json"."""

    address: str
    repositories: dict[str, dict[str, bytes]]
    requests: list[str]


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serves `Hub.repositories` within the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.file(send=False)

        def do_GET(self) -> None:
            self.file(send=True)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append(f"POST {self.path}")
            if self.path == "/api/validate-yaml":
                self.answer(200, {}, b"{}")
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                self.answer(200, {}, json.dumps({"files": modes}).encode())
            elif "/commit/" in self.path:
                self.commit(body)
            else:
                name = "{organization}/{name}".format(**json.loads(body))
                repositories.setdefault(name, {})
                self.answer(200, {}, json.dumps({"url": f"{address}/{name}"}).encode())

        def commit(self, body: bytes) -> None:
            name = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            done = {"commitUrl": f"{address}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
            self.answer(200, {}, json.dumps(done).encode())

        def file(self, *, send: bool) -> None:
            if self.path.startswith("/api/"):
                requests.append(f"{self.command} {self.path}")
                self.answer(200, {}, b"{}")
                return
            user, name, _, revision, *path = self.path.strip("/").split("/")
            repository, file = f"{user}/{name}", "/".join(path)
            requests.append(f"{self.command} {repository} {revision} {file}")
            files = repositories.get(repository)
            if repository == GATED:
                self.answer(403, {"X-Error-Code": "GatedRepo"})
            elif files is None:
                self.answer(404, {"X-Error-Code": "RepoNotFound"})
            elif revision not in ("main", COMMIT):
                self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            elif file not in files:
                self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            else:
                etag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
                self.answer(200, {"X-Repo-Commit": COMMIT, "ETag": etag}, files[file], send=send)

        def answer(self, code: int, headers: dict[str, str], body: bytes = b"", *, send: bool = True) -> None:
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if send:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    repositories: dict[str, dict[str, bytes]] = {}
    requests: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Hub(address, repositories, requests)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

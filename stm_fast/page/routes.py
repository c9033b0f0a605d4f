"""The routes of the page: HTTP around a session. What is not async here runs in threads, so that nothing blocks."""

from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Body, FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from stm_fast.errors import InputError, as_input_error, check_name
from stm_fast.page import upload
from stm_fast.page.bodies import Export, Index, Marks, NewObject, ObjectChange, ObjectId, Prompt, Track
from stm_fast.page.jobs import Conflict
from stm_fast.page.results import zipped
from stm_fast.page.session import Absent, Session

UPLOAD = "/api/video"
STATIC = Path(__file__).parent / "static"
# not from the system, whose table may have other types for modules, which browsers then refuse to run
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
_IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}
_NO_STORE = {"Cache-Control": "no-store"}
# of a frame
_Width = Annotated[int | None, Query(ge=16, le=16_384)]

_STATUS: dict[type[Exception], int] = {upload.TooLarge: 413, InputError: 422, Conflict: 409, Absent: 404}


def make_app(session: Session) -> FastAPI:
    """The application, without the guard."""
    app = FastAPI(openapi_url=None)
    _add_files(app)
    _add_pictures(app, session)
    _add_edits(app, session)
    _add_jobs(app, session)
    _add_upload(app, session)
    for kind, status in _STATUS.items():
        app.add_exception_handler(kind, _handler(status))
    app.add_exception_handler(OSError, _handler(422))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _bug)
    return app


def _add_files(app: FastAPI) -> None:
    @app.get("/")
    def page() -> Response:
        return _static("page.html")

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        return _static(check_name(name, "name"))


def _add_pictures(app: FastAPI, session: Session) -> None:
    @app.get("/api/project")
    def project() -> Response:
        return JSONResponse(session.state(), headers=_NO_STORE)

    @app.get("/api/frame/{index}")
    def frame(index: Index, width: _Width = None, key: str | None = None) -> Response:
        jpeg = session.frame_jpeg(index, width, key)
        return Response(jpeg, media_type="image/jpeg", headers=_IMMUTABLE if key else _NO_STORE)

    @app.get("/api/mask/{index}")
    def mask(index: Index, object: ObjectId | None = None) -> Response:
        return Response(session.mask_png(index, object), media_type="image/png", headers=_NO_STORE)

    @app.get("/api/events")
    def events() -> Response:
        return StreamingResponse(session.events.stream(), media_type="text/event-stream", headers=_NO_STORE)


def _add_edits(app: FastAPI, session: Session) -> None:
    @app.post("/api/prompt")
    def prompt(given: Prompt) -> dict[str, Any]:
        return session.prompt(given)

    @app.post("/api/undo")
    def undo() -> dict[str, Any]:
        return session.undo()

    @app.post("/api/redo")
    def redo() -> dict[str, Any]:
        return session.redo()

    @app.post("/api/objects")
    def add(given: Annotated[NewObject | None, Body()] = None) -> dict[str, Any]:
        return session.add_object(None if given is None else given.name)

    @app.patch("/api/objects/{object_id}")
    def change(object_id: ObjectId, given: ObjectChange) -> dict[str, Any]:
        return session.change_object(object_id, given)

    @app.delete("/api/objects/{object_id}")
    def delete(object_id: ObjectId) -> dict[str, Any]:
        return session.delete_object(object_id)

    @app.post("/api/marks")
    def marks(given: Marks) -> dict[str, Any]:
        return session.set_marks(given)


def _add_jobs(app: FastAPI, session: Session) -> None:
    @app.post("/api/track", status_code=202)
    def track(given: Track) -> dict[str, Any]:
        session.track(given.frame, given.back)
        return {}

    @app.post("/api/stop")
    def stop() -> dict[str, Any]:
        session.stop()
        return {}

    @app.post("/api/export", status_code=202)
    def export(given: Export) -> dict[str, Any]:
        session.export(given.write)
        return {}

    @app.get("/api/results")
    def results() -> Response:
        return JSONResponse(session.results(), headers=_NO_STORE)

    @app.get("/api/results/{name}")
    def result(name: str) -> Response:
        path = session.result(name)
        if path.is_dir():
            return _download(zipped(path), f"{name}.zip")
        return FileResponse(path, filename=name, media_type="application/octet-stream", headers=_NO_STORE)


def _add_upload(app: FastAPI, session: Session) -> None:
    one_at_a_time = Lock()

    @app.post(UPLOAD)
    async def video(request: Request, name: Annotated[str, Query(max_length=1000)]) -> dict[str, Any]:
        session.check_replaceable()  # not only after everything was sent
        if not one_at_a_time.acquire(blocking=False):
            raise Conflict("another video is being received")
        try:
            length = request.headers.get("content-length", "")
            known = int(length) if length.isdecimal() else None
            path, new = await upload.receive(session.folder, name, request.stream(), known)
        except ClientDisconnect as error:
            raise InputError(f"{name}: the upload was interrupted") from error
        finally:
            one_at_a_time.release()
        await run_in_threadpool(session.open_upload, path, new=new)
        return {}


def _static(name: str) -> Response:
    path = STATIC / name
    if path.suffix not in _TYPES or not path.is_file():
        raise Absent(f"{name}: no such file")
    return FileResponse(path, media_type=_TYPES[path.suffix], headers={"Cache-Control": "no-cache"})


def _download(pieces: Iterator[bytes], name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{quote(name)}"'}
    return StreamingResponse(pieces, media_type="application/zip", headers=headers | _NO_STORE)


# errors, each as one line


def _handler(status: int) -> Any:
    def answer(_: Request, error: Exception) -> Response:
        line = str(as_input_error(error) or error)
        return JSONResponse({"detail": line}, status_code=status)

    return answer


def _invalid(_: Request, error: Exception) -> Response:
    """The first thing that is wrong with a request."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"detail": f"{place or 'request'}: {first['msg']}"}, status_code=422)


def _bug(_: Request, __: Exception) -> Response:
    # the server prints the traceback
    return JSONResponse({"detail": "an error of the program, which its terminal shows"}, status_code=500)

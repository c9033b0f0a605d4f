"""An HTTP service that segments videos. `python examples/service.py` starts it; docs/service.md describes it.

A job is a folder named after its id, with what was uploaded, the results and, once it has ended, outcome.json. Jobs
without that file go on when the service is started again.
"""

import json
import logging
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Event, Lock
from typing import Any
from uuid import UUID, uuid4
from zipfile import ZipFile

import typer
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

import stm_fast
from stm_fast.page.folder_lock import FolderLock
from stm_fast.whole_file import make_folder, partial_path, remove_left_over, whole_file, whole_folder

_KEPT_FREE = 10**9  # bytes of the disk, for results


class Job:
    """One video. The state in `status` is "waiting", "running", "done" or "failed"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running, self.deleted = Lock(), False
        self.status: dict[str, Any] = {"state": "waiting"}
        if (folder / "outcome.json").exists():
            self.status = json.loads((folder / "outcome.json").read_text())

    @property
    def has_ended(self) -> bool:
        return self.status["state"] in ("done", "failed")

    def advance(self, done: int, frames: int | None) -> None:
        self.status = {"state": "running", "frames_done": done, "frames": frames}

    def end(self, state: str, **found: Any) -> None:
        status = {"state": state, **found}
        with whole_file(self.folder / "outcome.json", durable=True) as partial:
            partial.write_text(json.dumps(status))
        self.status = status


class Service:
    """Jobs, and the threads that segment them with one model.

    Args:
        folder: of all jobs, which no other process uses.
        threads: how many videos are segmented at the same time.
        waiting: how many more may wait.
        options: of `stm_fast.segment`, such as `model` and `memory`.
    """

    def __init__(self, folder: Path, threads: int, waiting: int, **options: Any) -> None:
        self.folder, self._most, self._options = folder, threads + waiting, options
        self._stopping, self._entering, self._pool = Event(), Lock(), ThreadPoolExecutor(threads)
        remove_left_over(folder)
        videos = sorted(folder.glob("*/video"), key=lambda video: video.stat().st_mtime)
        self._jobs = {video.parent.name: Job(video.parent) for video in videos}
        for job in self._jobs.values():
            if not job.has_ended:
                self._pool.submit(self._run, job)

    @property
    def unfinished(self) -> int:
        """The number of jobs that wait or run."""
        return sum(not job.has_ended for job in [*self._jobs.values()])

    def check_place(self) -> None:
        """Raises HTTPException if too many jobs are unfinished."""
        if self.unfinished >= self._most:
            raise HTTPException(503, f"found {self._most} unfinished jobs; try again later", {"Retry-After": "5"})

    def add(self, video: UploadFile, mask: UploadFile | None, boxes: list[str]) -> str:
        """The id of a new job. Raises InputError if the video cannot be read, or the mask or the boxes do not fit."""
        name = str(uuid4())
        with self._entering:
            self.check_place()
            self._jobs[name] = job = Job(self.folder / name)
        try:
            with whole_folder(job.folder) as folder, _as_uploaded(folder):
                _save(video, folder / "video")
                if mask is not None:
                    _save(mask, folder / "mask")
                (folder / "boxes.json").write_text(json.dumps([text.split(",") for text in boxes]))
                stm_fast.segment(**_inputs(folder), **self._options)  # checks them, and segments nothing yet
        except BaseException:
            del self._jobs[name]
            raise
        self._pool.submit(self._run, job)
        return name

    def find(self, name: UUID) -> Job:
        """A job. Raises HTTPException if there is none."""
        job = self._jobs.get(str(name))
        if job is None:
            raise HTTPException(404, "no such job")
        return job

    def delete(self, name: UUID) -> None:
        """Ends a job after the frame that it segments, and removes its folder."""
        job = self.find(name)
        job.deleted = True
        with job.running:
            if self._jobs.pop(str(name), None) is not None:
                shutil.rmtree(job.folder.rename(partial_path(job.folder)))

    def stop(self) -> None:
        """Ends the running jobs after the frame that they segment. They go on at the next start."""
        self._stopping.set()
        self._pool.shutdown(cancel_futures=True)

    def _run(self, job: Job) -> None:
        with job.running:
            if job.deleted:
                return
            try:
                with _as_uploaded(job.folder):
                    self._segment(job)
            except stm_fast.InterruptedRun:
                pass
            except stm_fast.InputError as error:
                job.end("failed", error=str(error))
            except Exception:
                logging.exception("job %s", job.folder.name)
                job.end("failed", error="internal error; the log of the service has it")

    def _segment(self, job: Job) -> None:
        summary = stm_fast.segment_video(
            **_inputs(job.folder),
            output=job.folder / "results",
            **self._options,
            write=("masks", "csv"),
            resume=True,
            leave_record=True,
            should_stop=lambda: job.deleted or self._stopping.is_set(),
            progress=job.advance,
        )
        with whole_file(job.folder / "results.zip") as partial, ZipFile(partial, "w") as archive:
            for file in (summary.output / "objects.csv", *sorted(summary.output.glob("masks/*.png"))):
                archive.write(file, file.relative_to(summary.output))
        job.end("done", frames=summary.frames, objects=[asdict(sight) for sight in summary.sights])


def _save(upload: UploadFile, file: Path) -> None:
    with file.open("xb") as copy:
        shutil.copyfileobj(upload.file, copy)


def _inputs(folder: Path) -> dict[str, Any]:
    """The arguments of `segment` and `segment_video` for what was uploaded."""
    mask, boxes = folder / "mask", json.loads((folder / "boxes.json").read_text())
    return {"source": folder / "video", "masks": mask if mask.exists() else None, "boxes": boxes or None}


@contextmanager
def _as_uploaded(folder: Path) -> Iterator[None]:
    """Messages name the video, and not where the service keeps it."""
    try:
        yield
    except stm_fast.InputError as error:
        raise stm_fast.InputError(str(error).replace(f"{folder}{os.sep}", "")) from error


def make_app(service: Service, most_bytes: int) -> FastAPI:
    """The routes of a service that accepts uploads of up to this size."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.stop()

    app = FastAPI(title="stm_fast", version=stm_fast.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.exception_handler(stm_fast.InputError)
    async def refuse(request: Request, error: stm_fast.InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(ClientDisconnect)
    async def forget(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # which nobody receives

    @app.post("/jobs", status_code=202)
    async def submit(request: Request) -> dict[str, str]:
        # before the upload is read
        _check_length(request.headers.get("content-length", ""), most_bytes, service.folder)
        service.check_place()
        async with request.form(max_files=2, max_fields=255) as form:
            video, mask = form.get("video"), form.get("mask")
            if not isinstance(video, UploadFile) or not isinstance(mask, UploadFile | None):
                raise HTTPException(422, "video, mask: expected a video file, and a mask file or none")
            boxes = [str(box) for box in form.getlist("box")]
            return {"id": await run_in_threadpool(service.add, video, mask, boxes)}

    @app.get("/jobs/{name}")
    def status(name: UUID) -> dict[str, Any]:
        return service.find(name).status

    @app.delete("/jobs/{name}", status_code=204)
    def delete(name: UUID) -> None:
        service.delete(name)

    @app.get("/jobs/{name}/results.zip")
    def results(name: UUID) -> FileResponse:
        return _file(service.find(name), "results.zip")

    @app.get("/jobs/{name}/masks/{frame}")
    def mask(name: UUID, frame: int) -> FileResponse:
        return _file(service.find(name), f"results/masks/{frame:05d}.png")

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "unfinished": service.unfinished}

    return app


def _check_length(length: str, most: int, folder: Path) -> None:
    """Raises HTTPException for a body of unknown length, that is too large, or for which the disk is too small."""
    if not length.isdecimal():
        raise HTTPException(411, "found a body of unknown length")
    if int(length) > most:
        raise HTTPException(413, f"found {length} bytes, expected at most {most}")
    if int(length) > shutil.disk_usage(folder).free - _KEPT_FREE:
        raise HTTPException(507, f"found {length} bytes, for which the disk of the service has no room")


def _file(job: Job, name: str) -> FileResponse:
    """A file, which is whole if it is there. Raises HTTPException if it is not."""
    if not (job.folder / name).is_file():
        raise HTTPException(404, f"{name}: not there; the job is {job.status['state']}")
    return FileResponse(job.folder / name)


def main(
    folder: Path = Path("jobs"),
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int = 1,
    waiting: int = 16,
    megabytes: int = 1000,
    memory_frames: int = 20,
    min_size: int | None = None,
    max_size: int | None = None,
    weights: str = "default",
    dtype: str = "float32",
) -> None:
    """Segment uploaded videos until SIGTERM or ctrl-C."""
    logging.basicConfig(level=logging.INFO)
    memory = stm_fast.MemoryConfig(max_frames=memory_frames)
    try:
        make_folder(folder)
        lock = FolderLock(folder)
        model = stm_fast.load(weights, dtype=dtype)
    except stm_fast.InputError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    service = Service(folder, threads, waiting, model=model, memory=memory, min_size=min_size, max_size=max_size)
    uvicorn.run(make_app(service, megabytes * 10**6), host=host, port=port, timeout_graceful_shutdown=5)
    lock.close()


if __name__ == "__main__":
    typer.run(main)

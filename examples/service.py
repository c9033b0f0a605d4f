"""An HTTP service that segments videos. `python examples/service.py` starts it; docs/service.md describes it."""

import logging
import re
import shutil
import sys
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event, Lock
from typing import Annotated, Any
from uuid import UUID, uuid4
from zipfile import ZipFile

import typer
import uvicorn
from fastapi import FastAPI, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse

import stm_fast
from stm_fast.whole_file import make_folder, remove_left_over, whole_file, whole_folder


def make_app(folder: Path, threads: int, waiting: int, **options: Any) -> FastAPI:
    """The service. A job is a folder with its video, mask and results; a killed service goes on with those it has.

    Args:
        folder: of all jobs, used by one process at a time.
        threads: how many videos are segmented at the same time, with one model.
        waiting: how many more may wait.
        options: of `stm_fast.segment`, such as `model` and `memory`.
    """
    pool, entering, stopping = ThreadPoolExecutor(threads), Lock(), Event()
    jobs: dict[str, Future[int]] = {}
    frames_done: dict[str, int] = {}

    def segment(name: str) -> int:
        job, results = folder / name, folder / name / "results"
        summary = stm_fast.segment_video(
            *(job / "video", job / "mask", results),
            write=("masks", "csv"),
            resume=True,
            leave_record=True,  # what is finished is not segmented again
            should_stop=stopping.is_set,
            progress=lambda done, _: frames_done.update({name: done}),
            **options,
        )
        with whole_file(job / "results.zip") as partial, ZipFile(partial, "w") as archive:
            for file in (results / "objects.csv", *sorted(results.glob("masks/*.png"))):
                archive.write(file, file.relative_to(results))
        return summary.frames

    def start(name: str) -> None:
        jobs[name] = pool.submit(segment, name)
        jobs[name].add_done_callback(log_faults)

    def unfinished() -> int:
        return sum(not job.done() for job in [*jobs.values()])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        remove_left_over(folder)
        for video in sorted(folder.glob("*/video"), key=lambda video: video.stat().st_mtime):
            start(video.parent.name)
        yield
        stopping.set()  # running jobs end after the frame under way, and go on at the next start
        pool.shutdown(cancel_futures=True)

    app = FastAPI(title="stm_fast", version=stm_fast.__version__, lifespan=lifespan)

    @app.exception_handler(stm_fast.InputError)
    def refuse(request: Request, error: stm_fast.InputError) -> JSONResponse:
        return JSONResponse({"detail": as_uploaded(error)}, 422)

    @app.post("/jobs", status_code=202)
    def submit(video: UploadFile, mask: UploadFile) -> dict[str, str]:
        name = str(uuid4())
        with entering:
            if unfinished() >= threads + waiting:
                raise HTTPException(503, "too many jobs wait; try again later", {"Retry-After": "5"})
            jobs[name] = Future()  # takes the place
        try:
            with whole_folder(folder / name) as partial:
                for upload, file in ((video, partial / "video"), (mask, partial / "mask")):
                    with file.open("xb") as copy:
                        shutil.copyfileobj(upload.file, copy)
                stm_fast.segment(
                    partial / "video", partial / "mask", **options
                )  # checks them, and segments nothing yet
        except BaseException:
            del jobs[name]
            raise
        start(name)
        return {"id": name}

    def find(name: UUID) -> Future[int]:
        if (job := jobs.get(str(name))) is None:
            raise HTTPException(404, "no such job")
        return job

    @app.get("/jobs/{name}")
    def status(name: UUID) -> dict[str, Any]:
        if not (job := find(name)).done():
            return {"state": "running" if job.running() else "waiting", "frames_done": frames_done.get(str(name), 0)}
        if error := job.exception():
            return {"state": "failed", "error": as_uploaded(error)}
        return {"state": "done", "frames": job.result()}

    @app.get("/jobs/{name}/results.zip")
    def results(name: UUID) -> FileResponse:
        return file_of(name, "results.zip")

    @app.get("/jobs/{name}/masks/{frame}")
    def mask(name: UUID, frame: int) -> FileResponse:
        return file_of(name, f"results/masks/{frame:05d}.png")

    def file_of(name: UUID, file: str) -> FileResponse:
        find(name)
        if not (path := folder / str(name) / file).is_file():
            raise HTTPException(404, f"{file}: not there yet")
        return FileResponse(path)

    @app.delete("/jobs/{name}", status_code=204)
    def delete(name: UUID) -> None:
        if not find(name).done():
            raise HTTPException(409, "the job has not ended")
        if jobs.pop(str(name), None) is not None:
            shutil.rmtree(folder / str(name))

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "unfinished": unfinished()}

    return app


def log_faults(job: Future[int]) -> None:
    error = None if job.cancelled() else job.exception()
    if error and not isinstance(error, stm_fast.InputError | stm_fast.InterruptedRun):
        logging.error("a job failed", exc_info=error)


def as_uploaded(error: BaseException) -> str:
    """A message for clients, about "video" or "mask" instead of the place where it is kept."""
    if not isinstance(error, stm_fast.InputError):
        return "internal error; the log of the service has it"
    return re.sub(r"\S*/(?=video|mask)", "", str(error))


def main(
    folder: Path = Path("jobs"),
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    waiting: Annotated[int, typer.Option(min=0)] = 16,
    memory_frames: Annotated[int, typer.Option(min=1)] = 20,
    min_size: int | None = None,
    max_size: int | None = None,
) -> None:
    """Segment uploaded videos until SIGTERM or ctrl-C."""
    options = {"memory": stm_fast.MemoryConfig(max_frames=memory_frames), "min_size": min_size, "max_size": max_size}
    try:
        make_folder(folder)
        model = stm_fast.load(dtype="float32")
        stm_fast.VideoSegmenter(model, **options)  # checks them
        app = make_app(folder, threads, waiting, model=model, **options)
    except stm_fast.InputError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=5)


if __name__ == "__main__":
    typer.run(main)

"""stm-fast open: the page in the browser."""

import logging
import os
import sys
import webbrowser
from pathlib import Path
from socket import socket
from threading import Thread
from typing import NamedTuple

from stm_fast.choices import PrompterName
from stm_fast.frame_source import FrameSource
from stm_fast.inference.engine import check_backend
from stm_fast.inference.options import RunOptions
from stm_fast.network import STM
from stm_fast.network.device import choose_device
from stm_fast.page.events import Events
from stm_fast.page.listening import is_local, listen
from stm_fast.page.prompters import make_prompter
from stm_fast.page.server import PageServer
from stm_fast.page.session import Session, project_folder
from stm_fast.printing import say, warn
from stm_fast.progress import waiting
from stm_fast.tasks.choice import NetworkChoice
from stm_fast.tasks.interruption import stop_on_signals
from stm_fast.tasks.network import load_for_inference
from stm_fast.tasks.progress import print_untrained

_log = logging.getLogger(__name__)


class PageOptions(NamedTuple):
    """How the page is served, and what makes masks of gestures."""

    host: str
    port: int | None
    browser: bool
    prompter: PrompterName
    prompter_weights: str | None


def open_page(
    source: FrameSource | None, folder: Path | None, *, network: NetworkChoice, options: RunOptions, page: PageOptions
) -> None:
    """Serves the page until ctrl-C or SIGTERM.

    Args:
        source: the video; None for that of the project in `folder`, or, without a folder, one that the page asks for.
        folder: of the project; by default, it is named after the video, in the current folder.
        network, options: as of a run over the video.
        page: how it is served.

    Raises:
        InputError: the video or the project cannot be opened, the port is in use, there is no such device, or the
            prompter lacks something.
    """

    def load() -> STM:
        model = load_for_inference(network)
        check_backend(model, options.backend)
        return model

    choose_device(network.device)  # not only once the network is loaded
    with listen(page.host, page.port) as listener:
        # as with --weights, who names a repository of the hub wants it to be downloaded
        prompter = make_prompter(page.prompter, page.prompter_weights, device=network.device, allow_network=True)
        session = Session(Path.cwd(), load, options, prompter, Events())
        try:
            _open(session, source, folder)
            _serve(session, listener, page, untrained=network.untrained)
        finally:
            session.close()


def _open(session: Session, source: FrameSource | None, folder: Path | None) -> None:
    if folder is None:
        if source is None:
            return
        folder = project_folder(source, session.folder)
    begun = (folder / "project.json").exists()
    with waiting("opening the video"):
        session.open(source, folder)
    if begun and source is not None:
        _log.warning("%s: going on with this project", folder)


def _serve(session: Session, listener: socket, page: PageOptions, *, untrained: bool) -> None:
    def started(url: str) -> None:
        say(url)
        if untrained:
            print_untrained()
        _log.warning("ctrl-C ends the server; everything is saved as you work")
        session.load_network()
        if page.browser and _has_screen():
            # a browser in a terminal, or one that is slow to start, must not keep the server from answering
            Thread(target=webbrowser.open, args=(url,), name="stm_fast-browser", daemon=True).start()

    local = is_local(page.host)
    if not local:
        warn(f"--host: {page.host} can be reached from other machines, by everyone who has this address, not encrypted")
    with stop_on_signals():
        PageServer(session, listener, page.host, local=local, started=started).serve_until_stopped()


def _has_screen() -> bool:
    """Whether a browser can open a window; on Linux, without one, a browser that uses the terminal would start."""
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))

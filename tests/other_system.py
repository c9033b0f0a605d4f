"""Runs stm-fast in a process that lacks what macOS or Windows lack: python other_system.py SYSTEM < command lines.

SYSTEM is darwin or win32; the command lines are a JSON list of lists, and the last line of the output is one of
[exit code, stdout, stderr] for each. Other libraries are imported first, since they are not what is tested. What this
cannot show: other libraries on these systems, their file systems, and compilers.
"""

import asyncio
import contextlib
import errno
import fcntl
import importlib
import io
import json
import multiprocessing.popen_spawn_posix  # noqa: F401
import os
import signal
import stat
import sys
import threading
import types
import webbrowser
from http.cookiejar import CookieJar
from urllib.request import HTTPCookieProcessor, build_opener

IMPORTED_FIRST = ("torch", "av", "cv2", "PIL.Image", "psutil", "typer", "rich.progress")
IMPORTED_FIRST += ("fastapi", "uvicorn.server", "safetensors.torch", "pydantic")
MODULES = {
    "darwin": {"triton", "stm_fast._C", "spwd"},
    "win32": {
        *("triton", "stm_fast._C", "fcntl", "grp", "pwd", "readline", "resource", "syslog", "termios", "tty", "pty"),
    },
}
FUNCTIONS = {
    "darwin": {"posix_fadvise", "posix_fallocate", "sched_getaffinity", "memfd_create", "POSIX_FADV_WILLNEED"},
    "win32": {
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "POSIX_FADV_WILLNEED", "posix_fadvise"),
        *("posix_fallocate", "fork", "getloadavg", "getuid", "geteuid", "memfd_create", "mkfifo", "pread", "pwrite"),
        *("register_at_fork", "sched_getaffinity", "setsid", "sysconf", "uname", "killpg", "nice"),
    },
}
SIGNALS = {"darwin": set(), "win32": {"SIGKILL", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGPIPE"}}


class Without:
    """A finder of modules that does not find some names."""

    def __init__(self, finder, names):
        self.finder, self.names = finder, names

    def find_spec(self, name, path=None, target=None):
        return None if name in self.names else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


def become(system):
    """Makes this process lack what the system lacks."""
    for name in IMPORTED_FIRST:
        importlib.import_module(name)
    hidden = MODULES[system]
    sys.meta_path[:] = [Without(finder, hidden) for finder in sys.meta_path]
    for name in hidden:
        sys.modules.pop(name, None)
    for owner, names in ((os, FUNCTIONS[system]), (signal, SIGNALS[system])):
        for name in names:
            delattr(owner, name)
    if system == "win32":
        os.open, os.fsync = opening_files_only(os.open), syncing_what_is_writable(os.fsync)
        asyncio.ProactorEventLoop = asyncio.SelectorEventLoop  # for uvicorn
        sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locked)
    sys.platform = system
    webbrowser.open = visit


def opening_files_only(open_file):
    def opened(path, flags, *more, **named):
        if not isinstance(path, int) and os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, flags, *more, **named)

    return opened


def syncing_what_is_writable(sync):
    def synced(file):
        number = file if isinstance(file, int) else file.fileno()
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        sync(file)

    return synced


def locked(file, mode, length):
    """msvcrt.locking."""
    assert (mode, length) == (2, 1)
    assert stat.S_ISREG(os.fstat(file).st_mode)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


def visit(url):
    """Instead of a browser: asks for the page, and ends the server."""

    def ask():
        browser = build_opener(HTTPCookieProcessor(CookieJar()))
        try:
            with browser.open(url) as page:
                print(f"answer {page.status}: {page.read().decode().splitlines()[0]}")
        finally:
            signal.raise_signal(signal.SIGINT)

    threading.Thread(target=ask).start()
    return True


def run(arguments):
    from stm_fast.__main__ import main

    sys.argv, code = ["stm-fast", *arguments], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main()
        except SystemExit as end:
            code = end.code
    return [code, out.getvalue(), errors.getvalue()]


if __name__ == "__main__":
    become(sys.argv[1])
    print(json.dumps([run(arguments) for arguments in json.load(sys.stdin)]))

"""What the page needs before it can be served: its packages, and a port of this machine."""

import errno
import socket
from importlib import import_module
from ipaddress import ip_address

from stm_fast.errors import InputError, option, reason_of, shown
from stm_fast.system import may_share_ports
from stm_fast.versions import how_to_install

FIRST_PORT = 8765
LOOPBACK = "127.0.0.1"
_PACKAGES = ("fastapi", "uvicorn", "cv2")
# how many ports are tried if none is requested
_PORTS = 50


def require_page() -> None:
    """Raises InputError, which says how to install it, if a package that the page needs cannot be imported."""
    for name in _PACKAGES:
        try:
            import_module(name)
        except ImportError as error:  # also of a library that it needs
            why = f"the page needs {name}, which cannot be imported ({reason_of(error)})"
            raise InputError(f"{why}: {how_to_install('page')}") from error


def is_local(host: str) -> bool:
    """Whether only programs on this machine can connect to a host name or address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that browsers can connect to.

    Args:
        host: an address or a name of this machine.
        port: 0 for any free one; None for `FIRST_PORT`, or the next one that is free.

    Raises:
        InputError: the port is in use, or the host is not one of this machine.
    """
    if port is not None:
        return _bound(host, port)
    for candidate in range(FIRST_PORT, FIRST_PORT + _PORTS):
        try:
            return _bound(host, candidate)
        except _PortInUse:
            continue
    return _bound(host, 0)


class _PortInUse(InputError):
    pass


def _bound(host: str, port: int) -> socket.socket:
    unusable = f"{option('host')}: found {shown(host)}, expected an address of this machine"
    if not host:  # which would be all addresses
        raise InputError(unusable)
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(unusable) from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if not may_share_ports():  # otherwise a port that was just left could not be taken again
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            expected = "a free one, or 0 for any"
            raise _PortInUse(f"{option('port')}: found {port}, which {_why_not(error)}, expected {expected}") from error
        raise InputError(unusable) from error
    return listener


def _why_not(error: OSError) -> str:
    return "is in use" if error.errno == errno.EADDRINUSE else "may not be used"

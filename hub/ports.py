"""Ports that we listen on, claimed or tried before anything else is started."""

from __future__ import annotations

import errno
import socket

from lineside.errors import ConfigError, PortInUseError


def bind(host: str, port: int, key: str) -> socket.socket:
    """A socket bound to `host`:`port`; `key` names the setting that chooses the port.

    Raises PortInUseError when somebody listens there, ConfigError when the address is not of this machine or the port
    needs more rights than we have.
    """
    place = f"port {port} on {host}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            mend = f"stop that program (`ss -ltnp 'sport = :{port}'` names it) or choose another port in {key}"
            raise PortInUseError(place, "somebody else listens there already", mend) from error
        raise ConfigError(place, f"cannot be listened on ({error.strerror})", f"change {key}") from error
    return bound


def require_free(host: str, port: int, key: str) -> None:
    """As `bind`, for a child that will bind the port itself."""
    bind(host, port, key).close()


def answers(host: str, port: int) -> bool:
    """Whether somebody accepts connections there now."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False

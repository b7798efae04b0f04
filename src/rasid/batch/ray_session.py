"""A connection to a Ray cluster, its own or a running one, without what Ray says beside the point."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray.data.exceptions import ExecutionTimeoutError

from rasid.errors import ConfigError, RasidError, first_line
from rasid.parallel import processors

_CONNECT_SECONDS = 10.0
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # what Ray's servers expect to hear first, and web servers refuse
_STORE_BYTES = 500_000_000  # shared memory of a cluster of our own, for the model and for what is read ahead


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A cluster to work on.

    Raises:
        ConfigError: if there is none at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters is raised
    os.environ.setdefault("RAY_worker_niceness", "0")  # on our own cluster; else all other programs go first
    own = {"num_cpus": processors(), "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    try:
        if address is not None:
            _check_listening(address)
        with _silence():
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else own))
    except ConfigError:
        raise
    except Exception as error:  # some of Ray's have no class of their own
        where = f"--address {address}: no Ray cluster can be reached there" if address else "Ray cannot be started here"
        raise ConfigError(f"{where}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Tell at once what Ray would try for minutes.

    Raises:
        ConfigError: if this is no address, or another program's.
        OSError: if nobody answers there.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and "/" not in host):
        raise ConfigError(f"--address {address}: expected HOST:PORT of the head of a Ray cluster, or auto")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS) as connection:
        answer = b""
        with suppress(OSError):  # one that wants encryption may hang up
            connection.sendall(_GREETING)
            answer = connection.recv(4)
    if answer == b"HTTP":
        raise ConfigError(f"--address {address}: a web page, such as Ray's dashboard; give the port of the head, 6379")


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps to itself what is written to standard error past Python."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@contextmanager
def failures_told() -> Iterator[None]:
    """Turns what Ray raises into the error behind it, if it is one of ours, or one line."""
    try:
        yield
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, RasidError):
            raise type(cause)(first_line(cause)) from error  # to which Ray has added advice about itself
        raise RasidError(f"the cluster gave up: {first_line(cause or error)}") from error

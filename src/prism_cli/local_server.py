"""A web server on this machine: an ASGI app on 127.0.0.1, in the background or until it is interrupted."""

import socket
import threading
from collections.abc import Callable
from typing import Any, Self

import uvicorn

from prism_cli.errors import PrismError

HOST = "127.0.0.1"


class LocalServer:
    """A context in which an app is served on 127.0.0.1 from a background thread.

    Args:
        app: An ASGI app.
        port: 0 takes any free one.

    Attributes:
        address: `http://127.0.0.1:PORT/`; known inside the context.

    Raises:
        PrismError: on entering, the port is taken or not allowed.
    """

    address: str

    def __init__(self, app: Any, port: int = 0):
        self._server, self._port = _Server(app), port

    def __enter__(self) -> Self:
        # It listens from here on, so a client that comes before the thread is up waits and is not refused.
        listener = _listen(self._port)
        self.address = _address(listener)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="local-server", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)


def serve_forever(app: Any, port: int, on_ready: Callable[[str], None]) -> None:
    """Serves an app on 127.0.0.1 until interrupted; prints nothing but errors.

    Args:
        app: An ASGI app.
        port: 0 takes any free one.
        on_ready: Called once with the address, `http://127.0.0.1:PORT/`, when requests are taken.

    Raises:
        PrismError: the port is taken or not allowed.
        KeyboardInterrupt: after a clean stop on Ctrl-C.
    """
    with _listen(port) as listener:
        _Server(app, lambda: on_ready(_address(listener))).run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn with our settings.

    Args:
        app: An ASGI app.
        on_ready: Called once requests are taken, and Ctrl-C is.
    """

    def __init__(self, app: Any, on_ready: Callable[[], None] = lambda: None):
        # Answers under way get two seconds when the server stops. No log config: the process's logging stays its own.
        quiet = {"lifespan": "off", "ws": "none", "log_config": None, "log_level": "error"}
        super().__init__(uvicorn.Config(app, timeout_graceful_shutdown=2, **quiet))
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts serving."""
        await super().startup(sockets)
        self._on_ready()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        raise PrismError(
            f"can't serve on {HOST}:{port}: {error}", "choose another port, or 0 for any free one"
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    return f"http://{HOST}:{listener.getsockname()[1]}/"

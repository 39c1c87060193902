"""Serves the page of a run that is going, to this machine alone."""

import threading
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from prism_cli.errors import PrismError

FRESH = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def create_app(version: Callable[[], str], render: Callable[[str], str]) -> Starlette:
    """An app with the page at `/` and its version at `/version`.

    Args:
        version: What the run's files are like now; another text once they have changed.
        render: Gives the page of a version.
    """
    pages: dict[str, str] = {}
    one_at_a_time = threading.Lock()

    def page(request: Request) -> Response:
        with one_at_a_time:
            now = version()
            if now not in pages:
                try:
                    made = render(now)
                except PrismError as error:
                    return PlainTextResponse(f"{error}\n", 503, FRESH)
                pages.clear()
                pages[now] = made
            return HTMLResponse(pages[now], headers=FRESH)

    def current(request: Request) -> Response:
        return JSONResponse({"version": version()}, headers=FRESH)

    # A page elsewhere may have its own name point here (DNS rebinding), and would then read what is served.
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False)
    return Starlette(routes=[Route("/", page), Route("/version", current)], middleware=[guard])

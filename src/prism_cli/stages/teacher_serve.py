"""`prism teacher serve`: a picture world's oracle behind an OpenAI-compatible endpoint."""

import os
from collections.abc import Callable

from prism_cli.assembly.endpoint import world_app
from prism_cli.assembly.response import grammar_of
from prism_cli.errors import TeacherError
from prism_cli.local_server import serve_forever
from prism_cli.recipes.stages import ResponseSection
from prism_cli.teacher.server import base_url
from prism_cli.worlds.shapes import Variant


def run(
    world_name: str,
    variant: Variant,
    port: int,
    on_ready: Callable[[str], None],
    api_key_env: str | None = None,
    delay: float = 0.0,
) -> None:
    """Serves until interrupted.

    Raises:
        PrismError: the port is taken, or the key's variable is not set.
    """
    if api_key_env is not None and not os.environ.get(api_key_env):
        raise TeacherError(f"${api_key_env} is not set", f"export {api_key_env}=… or leave out --api-key-env")
    key = os.environ[api_key_env] if api_key_env else None
    grammar = grammar_of(ResponseSection())
    app = world_app(world_name, variant, grammar, key, delay)
    serve_forever(app, port, lambda address: on_ready(base_url(address)))

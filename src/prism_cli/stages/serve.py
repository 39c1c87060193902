"""`prism teacher serve`: a picture world's oracle behind an OpenAI-compatible endpoint."""

import io
import os
from collections.abc import Callable

from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette

from prism_cli.errors import DataError, RecipeError, TeacherError
from prism_cli.recipes.stages import ResponseSection
from prism_cli.responses import Grammar
from prism_cli.stages.asking import split_caption
from prism_cli.stages.grammar import grammar_of
from prism_cli.teacher.server import ChatRequest, create_app, serve_forever
from prism_cli.worlds import world
from prism_cli.worlds.shapes import Variant

WORLD_BLOCKS = {"caption", "think", "answer"}


def world_app(
    name: str, variant: Variant, grammar: Grammar, api_key: str | None = None, delay: float = 0.0
) -> Starlette:
    """An app that answers about pictures of a world, in a grammar of its blocks (caption, think, answer).

    Raises:
        RecipeError: the grammar has a block the world doesn't write.
    """
    place = world(name)
    if unknown := set(grammar.tags) - WORLD_BLOCKS:
        raise RecipeError(
            f"the embedded teacher writes {', '.join(sorted(WORLD_BLOCKS))}, not {', '.join(sorted(unknown))}",
            "declare response.parts with these tags, or take another teacher",
        )

    def answer(request: ChatRequest) -> list[str]:
        image = _picture(request.images[0]) if request.images else None
        told, question = split_caption(request.question)
        seeds = range(request.seed or 0, (request.seed or 0) + request.n)
        return [grammar.render(place.oracle(question, image, variant, seed, told)) for seed in seeds]

    return create_app(answer, model=f"{name}-{variant}", api_key=api_key, delay=delay)


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
        TeacherError: the port is taken, or the key's variable is not set.
    """
    if api_key_env is not None and not os.environ.get(api_key_env):
        raise TeacherError(f"${api_key_env} is not set", f"export {api_key_env}=… or leave out --api-key-env")
    key = os.environ[api_key_env] if api_key_env else None
    grammar = grammar_of(ResponseSection())
    serve_forever(world_app(world_name, variant, grammar, key, delay), port, on_ready)


def _picture(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"the image can't be decoded: {error}", "send a PNG or JPEG picture") from None

"""What asking a teacher will cost, told before the first question."""

import io
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from PIL import Image
from rich.table import Table
from rich.text import Text

from prism_cli.endpoint.budget import Price
from prism_cli.endpoint.requests import PIXELS_A_TOKEN, EndpointRequest

CHARACTERS_A_TOKEN = 4
ESTIMATED = f"{CHARACTERS_A_TOKEN} characters or {PIXELS_A_TOKEN} pixels a token; answers at most max_tokens long"
AVERAGED = "the average of this model's kept calls"


class Average(NamedTuple):
    """Tokens of a call, on the average of the calls kept from one model."""

    prompt_tokens: float
    completion_tokens: float


class Rates(NamedTuple):
    """From questions to tokens and dollars.

    Attributes:
        max_tokens: Longest answer.
        max_image_pixels: Larger pictures are scaled down to it before they are sent; None for no limit.
        price: What tokens cost, or None.
        average: What is known of this model's calls; None goes by the size of what is asked.
    """

    max_tokens: int
    max_image_pixels: int | None = None
    price: Price | None = None
    average: Average | None = None

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """What tokens cost, or None without a price."""
        return None if self.price is None else self.price.usd(prompt_tokens, completion_tokens)


class TeacherPlan(NamedTuple):
    """What is still to be asked.

    Attributes:
        calls: Distinct questions without a usable answer in the store.
        kept: Distinct questions whose answer is there.
        pictures: Pictures sent with them.
        prompt_tokens: Estimate.
        completion_tokens: Estimate, or the ceiling.
        usd: Dollars, or None without a price.
        averaged: Whether the tokens are those of this model's kept calls; else they are estimated from what is asked.
    """

    calls: int
    kept: int
    pictures: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    averaged: bool

    def lines(self) -> list[tuple[str, str]]:
        """The plan for a table: what, and how much."""
        if not self.calls:
            return [("teacher calls", f"none: all {self.kept:,} answers are kept" if self.kept else "none")]
        cost = "no price given: tokens are counted, dollars are not"
        if self.usd is not None:
            dollars = f"${self.usd:,.2f}" if self.usd >= 0.01 else f"${self.usd:.4f}"
            cost = f"{'about' if self.averaged else 'at most about'} {dollars}" if self.usd else "nothing"
        tokens = f"{self.prompt_tokens:,} to read, {self.completion_tokens:,} to write"
        return [
            ("teacher calls", f"{self.calls:,}, with {self.pictures:,} pictures; {self.kept:,} answers are kept"),
            ("teacher tokens", f"{tokens} ({AVERAGED if self.averaged else ESTIMATED})"),
            ("teacher cost", cost),
        ]

    def table(self) -> Table:
        """The same for a terminal."""
        table = Table(title="asking the teacher", title_justify="left", show_header=False)
        for what, detail in self.lines():
            table.add_row(Text(what), Text(detail))
        return table


NOTHING_TO_ASK = TeacherPlan(0, 0, 0, 0, 0, None, averaged=False)


def teacher_plan(
    requests: Iterable[EndpointRequest],
    key: Callable[[EndpointRequest], str],
    is_kept: Callable[[EndpointRequest], bool],
    rates: Rates,
    at_most: int | None = None,
) -> TeacherPlan:
    """Reads the requests one by one, against what is kept.

    Args:
        requests: All that may be asked; those of one key count once.
        key: What makes two requests the same.
        is_kept: Whether a request's answer is there already.
        rates: From questions to tokens and dollars.
        at_most: How many of the requests will be asked, if fewer.
    """
    seen: set[str] = set()
    kept = calls = pictures = tokens = 0
    for request in requests:
        if (asked := key(request)) in seen:
            continue
        seen.add(asked)
        if is_kept(request):
            kept += 1
            continue
        calls += 1
        pictures += len(request.images)
        tokens += _tokens(request, rates.max_image_pixels)
    share = 1.0 if at_most is None or not calls else min(1.0, at_most / calls)
    calls = round(calls * share)
    prompt_tokens, completion_tokens = round(tokens * share), calls * rates.max_tokens
    if rates.average is not None:
        prompt_tokens, completion_tokens = (round(calls * each) for each in rates.average)
    return TeacherPlan(
        calls,
        kept,
        round(pictures * share),
        prompt_tokens,
        completion_tokens,
        rates.usd(prompt_tokens, completion_tokens),
        averaged=rates.average is not None,
    )


def _tokens(request: EndpointRequest, max_image_pixels: int | None) -> int:
    text = sum(len(message["content"]) for message in request.messages)
    pictures = sum(_picture_tokens(image, max_image_pixels) for image in request.images)
    return math.ceil(text / CHARACTERS_A_TOKEN) + pictures


def _picture_tokens(image: bytes, max_pixels: int | None) -> int:
    """A picture's tokens by its size alone; one that can't be opened counts nothing here and is refused when sent."""
    try:
        width, height = Image.open(io.BytesIO(image)).size
    except (OSError, Image.DecompressionBombError):
        return 0
    return math.ceil(min(width * height, max_pixels or width * height) / PIXELS_A_TOKEN)

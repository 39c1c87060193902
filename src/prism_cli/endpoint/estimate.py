"""Estimate of asking an endpoint: calls, tokens and dollars, before the first question."""

import io
import math
from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image
from rich.table import Table
from rich.text import Text

from prism_cli.endpoint.kept import KeptAnswers
from prism_cli.endpoint.requests import PIXELS_A_TOKEN, EndpointRequest

CHARACTERS_A_TOKEN = 4
# Fewer kept calls than this say little about the next ones.
MIN_CALLS_TO_AVERAGE = 20
ESTIMATED = f"{CHARACTERS_A_TOKEN} characters or {PIXELS_A_TOKEN} pixels a token; answers at most max_tokens long"
AVERAGED = "the average of this model's kept calls"


class Estimate(NamedTuple):
    """Calls that are still to be made, and what they take.

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


def estimate(requests: Iterable[EndpointRequest], kept: KeptAnswers, at_most: int | None = None) -> Estimate:
    """Reads the requests one by one, against what is kept.

    Args:
        requests: All that may be asked; equal ones count once.
        kept: The endpoint's answers so far.
        at_most: How many of the requests will be asked, if fewer.
    """
    endpoint, seen = kept.endpoint, set[str]()
    known = calls = pictures = tokens = 0
    for request in requests:
        if (key := kept.key(request)) in seen:
            continue
        seen.add(key)
        if kept.kept(request) is not None:
            known += 1
            continue
        calls += 1
        pictures += len(request.images)
        tokens += _tokens(request, endpoint.limits.max_image_pixels)
    share = 1.0 if at_most is None or not calls else min(1.0, at_most / calls)
    calls = round(calls * share)
    prompt_tokens, completion_tokens = round(tokens * share), calls * endpoint.sampling.max_tokens
    if (average := _average_tokens(kept)) is not None:
        prompt_tokens, completion_tokens = (round(calls * each) for each in average)
    usd = None if endpoint.price is None else endpoint.price.usd(prompt_tokens, completion_tokens)
    totals = prompt_tokens, completion_tokens, usd
    return Estimate(calls, known, round(pictures * share), *totals, averaged=average is not None)


def _average_tokens(kept: KeptAnswers) -> tuple[float, float] | None:
    """Prompt and completion tokens of a call, on the average of the model's kept calls; None where there are few."""
    for totals in kept.store.summary():
        prompt, completion = totals.mean_prompt_tokens, totals.mean_completion_tokens
        if (totals.teacher, totals.model) != (kept.name, kept.model) or totals.calls < MIN_CALLS_TO_AVERAGE:
            continue
        if prompt is not None and completion is not None:
            return prompt, completion
    return None


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

"""Several data sets as one: shares that are exact, an order that follows from the seed, no row copied."""

from collections.abc import Mapping
from fractions import Fraction
from math import ceil, floor

import numpy as np
from datasets import Dataset, concatenate_datasets

from prism_cli.data.rows import FEATURES


def mix(
    sources: Mapping[str, Dataset],
    *,
    weights: Mapping[str, float] | None = None,
    counts: Mapping[str, int] | None = None,
    seed: int,
) -> Dataset:
    """One epoch of a mixture, interleaved; `source` says where a row is from, ids become `source/id`.

    Args:
        sources: Name → rows.
        weights: Name → its share, relative to the others. The epoch lasts until every row of every source was seen;
            smaller sources are taken again, each time in another order.
        counts: Instead of weights, name → how many of its rows; chosen by the seed, repeated when there are fewer.
        seed: Of the choice and the order.
    """
    if counts is None:
        assert weights is not None, "either weights or counts"
        counts = epoch_counts({name: len(rows) for name, rows in sources.items()}, weights)
    random = np.random.default_rng(seed)
    starts = np.cumsum([0, *(len(rows) for rows in sources.values())])
    chosen = [
        start + _passes(len(rows), counts[name], random)
        for start, (name, rows) in zip(starts, sources.items(), strict=False)
    ]
    rows = concatenate_datasets([_named(name, rows) for name, rows in sources.items()])
    return rows.select(random.permutation(np.concatenate(chosen)))


def epoch_counts(sizes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """Number of rows of each source in an epoch: every row at least once, shares exact to rounding.

    Sizes 3 and 10 with weights 1 and 1 give 10 and 10; with weights 1 and 2 they give 5 and 10.
    """
    parts = {name: Fraction(str(weights[name])) for name in sizes}
    total = sum(parts.values())
    length = max(ceil(size * total / parts[name]) for name, size in sizes.items())
    exact = {name: length * part / total for name, part in parts.items()}
    counts = {name: floor(share) for name, share in exact.items()}
    # What rounding down left goes to the largest remainders.
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[: length - sum(counts.values())]:
        counts[name] += 1
    return counts


def _passes(size: int, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` of `size` rows, (count,): whole passes in new orders, then a part of one."""
    return np.concatenate([random.permutation(size) for _ in range(ceil(count / size))])[:count]


def _named(name: str, rows: Dataset) -> Dataset:
    ids = [f"{name}/{id}" for id in rows["id"]]
    others = rows.remove_columns(["id", "source"])
    return others.add_column("id", ids).add_column("source", [name] * len(rows)).select_columns(list(FEATURES))

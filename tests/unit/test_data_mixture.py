from collections import Counter

import pytest

from prism_cli.data.mixture import epoch_counts, mix
from prism_cli.data.rows import dataset, row, with_instruction


def source(size, name="x"):
    return dataset(row(f"{name}{i}", f"question {i}", [b"picture %d" % i]) for i in range(size))


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [
        ({"a": 3, "b": 10}, {"a": 1, "b": 1}, {"a": 10, "b": 10}),
        ({"a": 3, "b": 10}, {"a": 1, "b": 2}, {"a": 5, "b": 10}),
        ({"a": 10, "b": 3}, {"a": 0.5, "b": 0.5}, {"a": 10, "b": 10}),
        ({"a": 100, "b": 100}, {"a": 0.9, "b": 0.1}, {"a": 900, "b": 100}),
        ({"a": 4}, {"a": 7}, {"a": 4}),
        ({"a": 1, "b": 1, "c": 7}, {"a": 1, "b": 1, "c": 1.5}, {"a": 5, "b": 5, "c": 7}),
    ],
)
def test_an_epoch_shows_every_row_and_keeps_the_shares(sizes, weights, counts):
    assert epoch_counts(sizes, weights) == counts


def test_a_mixture_by_weight_repeats_the_smaller_source():
    mixed = mix({"a": source(3), "b": source(10)}, weights={"a": 1, "b": 2}, seed=0)
    assert Counter(mixed["source"]) == {"a": 5, "b": 10}
    seen = Counter(mixed["id"])
    assert {seen[f"b/x{i}"] for i in range(10)} == {1}
    assert sorted(seen[f"a/x{i}"] for i in range(3)) == [1, 2, 2]  # a whole pass, and two of the next


def test_a_mixture_by_count_has_exactly_so_many_rows():
    mixed = mix({"a": source(3), "b": source(10)}, counts={"a": 7, "b": 4}, seed=0)
    seen = Counter(mixed["id"])
    assert Counter(mixed["source"]) == {"a": 7, "b": 4}
    assert sorted(seen[f"a/x{i}"] for i in range(3)) == [2, 2, 3]
    assert max(seen[f"b/x{i}"] for i in range(10)) == 1


def test_the_order_follows_from_the_seed_alone():
    first, again, other = (
        list(mix({"a": source(20), "b": source(20)}, weights={"a": 1, "b": 1}, seed=seed)["id"]) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert sorted(first) == sorted(other)


def test_sources_are_interleaved():
    names = list(mix({"a": source(50), "b": source(50)}, weights={"a": 1, "b": 1}, seed=0)["source"])
    assert 10 < names[:50].count("a") < 40


def test_passes_of_a_small_source_have_orders_of_their_own():
    ids = list(mix({"a": source(30)}, counts={"a": 60}, seed=0)["id"])
    assert ids[:30] != ids[30:]


def test_rows_keep_what_they_have():
    sources = {"a": with_instruction(source(2), "Be brief."), "b": source(2)}
    mixed = mix(sources, weights={"a": 1, "b": 1}, seed=0)
    raw = mixed.with_format("arrow")[list(mixed["id"]).index("a/x1")].to_pylist()[0]
    assert raw["images"] == [{"bytes": b"picture 1", "path": None}]
    assert [turn["content"] for turn in raw["prompt"]] == ["Be brief.", "question 1"]
    assert raw["source"] == "a"

"""The order of prompts, and the teacher that is asked about them ahead: numbers a person can follow by hand."""

from itertools import islice

import pytest

from prism_cli.errors import TeacherError
from prism_cli.trainers.prompts import EpochSampler, TeachableSampler, epoch_order, first_prompts

FOREVER = 1_000_000


class Teacher:
    """Fails on some rows, and remembers what happened in order: ("ask" or "wait", ids)."""

    def __init__(self, *failing):
        self.failing, self.log = set(failing), []

    def prefetch(self, rows):
        self.log.append(("ask", [row["id"] for row in rows]))

    def teachable(self, rows):
        self.log.append(("wait", [row["id"] for row in rows]))
        return [row["id"] not in self.failing for row in rows]

    def asked(self):
        return [id for what, ids in self.log if what == "ask" for id in ids]

    def waited_for(self):
        return [id for what, ids in self.log if what == "wait" for id in ids]


def sampler(teacher, rows=10, batch=3, window=(0, FOREVER), failed=(), shuffle=False, each=1, times=1, ahead=2):
    """Rows are named by their index: "0", "1", …"""
    inner = EpochSampler(range(rows), each, batch, times, shuffle, seed=5)
    names = [str(row) for row in range(rows)]
    calls = (teacher.prefetch, teacher.teachable, lambda: window, set(failed))
    return TeachableSampler(inner, names, *calls, ahead=ahead)


def epoch(source, number=0, size=3):
    source.set_epoch(number)
    rows = list(source)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def test_without_failures_the_order_is_the_epochs():
    source = sampler(Teacher(), shuffle=True, each=2, times=3)
    plain = EpochSampler(range(10), 2, 3, 3, True, seed=5)
    orders = []
    for number in range(3):
        plain.set_epoch(number)
        orders.append(list(plain))
        source.set_epoch(number)
        assert list(source) == orders[-1]
        assert orders[-1][::2][:3] == epoch_order(10, 5, number)[:3]
    assert len(source) == len(orders[0]) == 3 * 3 * 2 * 3
    assert orders[0] != orders[1] != orders[2]


def test_a_failed_prompt_is_replaced_by_the_next_and_the_epoch_keeps_its_steps():
    # 1 and 4 fail: all others move up, and where the order ends its beginning stands in.
    assert epoch(sampler(Teacher("1", "4"))) == [[0, 2, 3], [5, 6, 7], [8, 9, 0]]


def test_a_replacement_that_fails_is_replaced_too():
    assert epoch(sampler(Teacher("1", "3", "4", "5"))) == [[0, 2, 6], [7, 8, 9], [0, 2, 6]]


def test_known_failures_are_not_asked_about_again():
    teacher = Teacher("1")
    source = sampler(teacher)
    first, again = epoch(source), epoch(source, 1)
    assert first == again == [[0, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert teacher.waited_for().count("1") == 1
    assert sorted(teacher.asked()) == [str(row) for row in range(10)], "each row once, in two epochs"


def test_two_batches_ahead_are_asked_about_before_a_batch_is_waited_for():
    teacher = Teacher()
    source = iter(sampler(teacher, rows=15))
    next(source)
    assert teacher.log == [("ask", [*"012345678"]), ("wait", [*"012"])]
    list(islice(source, 3))
    assert teacher.log[2:] == [("ask", ["9", "10", "11"]), ("wait", [*"345"])]


def test_the_next_epochs_first_prompts_are_asked_about_in_this_one():
    teacher = Teacher()
    source = sampler(teacher, rows=30, batch=10, shuffle=True)
    pulled = iter(source)
    list(islice(pulled, 11))  # the second of three batches: the third and the next epoch's first are asked about
    assert teacher.asked() == [str(row) for row in epoch_order(30, 5, 0)], "every row is known: none is asked twice"
    few = Teacher()
    source = sampler(few, rows=35, batch=10, shuffle=True)
    list(islice(iter(source), 11))
    coming = [row for row in epoch_order(35, 5, 1)[:10] if row in epoch_order(35, 5, 0)[30:]]
    assert coming, "the rows this epoch has left over"
    assert few.asked()[30:] == [str(row) for row in coming]


def test_nothing_is_asked_about_steps_past_the_last():
    teacher = Teacher("1")
    assert epoch(sampler(teacher, rows=12, window=(0, 2))) == [[0, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 0]]
    assert teacher.asked() == teacher.waited_for() == [*"0123456"]


def test_a_continued_epoch_asks_nothing_about_its_past_and_goes_on_alike():
    whole, rest = Teacher("1", "4", "9"), Teacher("9")
    batches = epoch(sampler(whole))
    # What failed before comes from the checkpoint.
    assert epoch(sampler(rest, window=(2, FOREVER), failed={"1", "4"})) == batches == [[0, 2, 3], [5, 6, 7], [8, 0, 2]]
    assert rest.waited_for() == ["8", "9", "0", "2"]


def test_the_first_prompts_are_those_it_asks_about_first():
    for batches, asked in ((1, 3), (2, 6), (FOREVER, 9)):
        teacher = Teacher()
        next(iter(sampler(teacher, shuffle=True, window=(0, batches))))
        assert teacher.asked() == [str(row) for row in first_prompts(10, 3, 5, batches)]
        assert len(teacher.asked()) == asked


def test_too_few_teachable_prompts_for_a_step_are_an_error():
    failing = [str(row) for row in range(2, 10)]
    with pytest.raises(TeacherError, match="the teacher failed on 8 of 10 prompts; a step needs 3"):
        epoch(sampler(Teacher(*failing)))
    assert epoch(sampler(Teacher(*failing[1:]))) == [[0, 1, 2]] * 3


def test_an_error_of_the_teacher_ends_the_order():
    def broke(rows):
        raise TeacherError("down")

    teacher = Teacher()
    teacher.teachable = broke
    with pytest.raises(TeacherError, match="down"):
        epoch(sampler(teacher))

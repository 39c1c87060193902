"""The discriminator on two real processes: the steps, scores and checkpoints that one process would give."""

import faulthandler
import json
import multiprocessing
import os
import socket
import traceback

import deepspeed  # noqa: F401 (imported once, before processes are forked)
import pytest
import torch

from prism_cli import processes
from prism_cli.assembly.data import load_data
from prism_cli.assembly.discriminator import discriminator_settings
from prism_cli.assembly.response import grammar_of
from prism_cli.discriminator.inputs import Comparisons
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.pairs import Pairs
from prism_cli.discriminator.reader import PartReader
from prism_cli.discriminator.warmup import Account, warm_up
from prism_cli.errors import CheckpointError
from prism_cli.models import Policy
from prism_cli.recipes.sections import ResponseSection, WorldData
from prism_cli.recipes.stages import WarmupRecipe
from tests.tiny import tiny_policy
from tests.unit.test_discriminator_learner import batch, learner, parts, same, weights
from tests.unit.test_discriminator_model import discriminator, picture, prompt

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


def pair(work, folder, *given):
    """What `work(folder, *given)` gives on each of two processes."""
    # Forked: importing what is imported here would take them longer than their work.
    fork = multiprocessing.get_context("fork")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    workers = [fork.Process(target=_one, args=(rank, port, work, folder, given), daemon=True) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=420)
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def _one(rank, port, work, folder, given):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    faulthandler.dump_traceback_later(400, exit=True)
    code = 1
    try:
        processes.start()
        torch.save(work(folder, *given), folder / f"{rank}.pt")
        processes.barrier()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def held(rollouts):
    """The batch as a process sees it that holds these rollouts of it."""
    whole = batch()
    kept = [r if n in rollouts else None for n, r in enumerate(whole.rollouts)]
    return whole._replace(rollouts=kept)


CELLS = ["a1", "b2", "c3", "b1"]
# Which rollouts each process holds: a group across both, one alone on a process, none on one, none anywhere, all.
STEPS = [([0, 3], [2, 4]), ([0, 1, 2, 3], [4]), ([0, 1, 2, 3, 4], []), ([1], []), ([0, 3, 4], [2])]


def play(one, steps):
    """The judgements of steps, on one process (all rollouts) or on two."""
    rank, scored = processes.rank(), []
    for step in steps:
        mine = step[rank] if processes.world_size() == 2 else step[0] + step[1]
        scored.append(one.score_and_update(held(mine)))
    return scored


def trained(folder, kind, zero, micro_batch, checkpointing=False):
    one = learner(kind, zero=zero, micro_batch=micro_batch, weight_decay=0.1)
    if checkpointing:
        one.discriminator.recompute_activations()
    scored = play(one, STEPS)
    one.save_discriminator(folder / f"{kind}-{zero}-{micro_batch}-{checkpointing}")
    one.close()
    return {"scored": scored, "step": one.step}


# Kind of discriminator, ZeRO stage, rollouts a pass, and whether activations are computed again.
CASES = [
    ("dense", None, 16, False),
    ("dense", 2, 16, False),
    ("dense", 2, 1, False),
    ("dense", 3, 16, False),
    ("dense", 3, 1, True),
    ("moe", 2, 16, False),
    ("moe", 3, 16, True),
]


def continued(folder, zero):
    """The third step straight on, and after a restart before it; and what a learner laid out otherwise says to the same
    checkpoint."""
    options = {"zero": zero, "dropout": 0.1, "schedule": "cosine", "warmup_steps": 1, "total_steps": 4}
    straight = learner("dense", **options)
    torch.manual_seed(processes.rank())
    play(straight, STEPS[:2])
    straight.save(folder / f"checkpoint-{zero}")
    processes.barrier()
    state = torch.get_rng_state()
    expected = play(straight, STEPS[4:])
    straight.save_discriminator(folder / f"straight-{zero}")
    straight.close()
    resumed = learner("dense", **options)
    resumed.load(folder / f"checkpoint-{zero}")
    torch.set_rng_state(state)
    found = play(resumed, STEPS[4:])
    resumed.save_discriminator(folder / f"resumed-{zero}")
    other = learner("dense", zero=2 if zero is None else None)
    try:
        refused = other.load(folder / f"checkpoint-{zero}")
    except CheckpointError as error:
        refused = str(error)
    return {"straight": expected, "resumed": found, "refused": refused}


def blind_on_one(folder, zero):
    """Process 1 reads no picture, process 0 does."""
    one = learner("dense", zero=zero)
    view = [prompt(picture("red")), prompt(question="what is right of a1 ?")][processes.rank()]
    scored = one.score_and_update(Comparisons([view], [parts("a1 red square")], [parts("b2 red")], [0]))
    one.save_discriminator(folder / f"blind-{zero}")
    return scored.metrics


# A last batch of three, so one process has one pair more; measured on five.
WARMUP = {"pairs": 11, "held_out": 5, "batch_size": 4, "measure_every": 2, "checkpoint_every": 2, "learning_rate": 1e-3}


def warmed(folder, zero):
    """A warm-up that is killed at its third step and run again: the account of it."""
    policy = Policy(*tiny_policy(), grammar_of(ResponseSection()), None)
    rows = load_data(WorldData(type="world", split="train", size=16, seed=3), policy.settings)
    reader = PartReader(policy.processor, policy.grammar)
    said = [f"<caption> {a} red square </caption> <think> so {a} is 4 </think> <answer> 4 </answer>" for a in CELLS]
    taught = [f"<caption> {a} blue circle </caption> <think> 4 is 4 </think> <answer> 4 </answer>" for a in CELLS]
    pairs = Pairs(
        rows,
        range(16),
        [reader.text(taught[i % 4]) for i in range(16)],
        [None if i in (7, 8) else reader.text(said[i % 4]) for i in range(16)],
    )
    shape = {"processes": processes.world_size(), "zero": zero}
    section = {"type": "dense", "dropout": 0.0, "warmup": WARMUP}
    recipe = WarmupRecipe.model_validate({"discriminator": section, "launch": shape})
    settings = discriminator_settings(recipe).warmup
    place = folder / f"warm-{zero}"
    place.mkdir(exist_ok=True)
    processes.barrier()
    step, learner_class = 0, DiscriminatorLearner

    def killed(self, batch, whole=learner_class.score_and_update):
        nonlocal step
        step += 1
        if step == 3:
            raise KeyboardInterrupt
        return whole(self, batch)

    whole = learner_class.score_and_update
    learner_class.score_and_update = killed
    with pytest.raises(KeyboardInterrupt):
        warm_up(discriminator("dense", dropout=0.0), settings, pairs, reader, place)
    learner_class.score_and_update = whole
    return warm_up(discriminator("dense", dropout=0.0), settings, pairs, reader, place)[1]


def all_cases(folder):
    found = {case: trained(folder, *case) for case in CASES}
    found |= {f"continued-{zero}": continued(folder, zero) for zero in (None, 2, 3)}
    found |= {f"blind-{zero}": blind_on_one(folder, zero) for zero in (None, 2, 3)}
    return found | {f"warm-{zero}": warmed(folder, zero) for zero in (None, 3)}


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("discriminators")
    return folder, *pair(all_cases, folder)


@pytest.fixture(scope="module")
def alone():
    """The same steps on one process, by kind of discriminator."""
    found = {}
    for kind in ("dense", "moe"):
        one = learner(kind, weight_decay=0.1)
        found[kind] = play(one, STEPS), weights(one), one.step
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_take_the_steps_that_one_would(played, alone, case):
    folder, first, second = played
    scored, expected, steps = alone[case[0]]
    assert first[case]["step"] == second[case]["step"] == steps == 4
    for step, (a, b, whole) in enumerate(zip(first[case]["scored"], second[case]["scored"], scored, strict=True)):
        assert a.metrics == b.metrics == pytest.approx(whole.metrics, rel=1e-3, abs=1e-4), step
        both = torch.where(a.scores.isnan(), b.scores, a.scores)
        assert torch.allclose(both, whole.scores, atol=1e-4, equal_nan=True), step
    plain = Discriminator.from_pretrained(folder / "-".join(map(str, case))).state_dict()
    assert set(plain) == set(expected)
    differences = torch.cat([(plain[name] - weight).abs().flatten() for name, weight in expected.items()])
    assert differences.quantile(0.999) < 1e-6
    # Adam's first steps, 1e-3 long, are signs of gradients: where one is nearly 0, rounding decides, and processors
    # round differently (46 of 307,232 weights were more than 5e-5 off on one).
    assert differences.max() < 5e-4


def weights_in(folder):
    return Discriminator.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("zero", [None, 2, 3])
def test_a_step_after_a_restart_is_the_same_to_the_bit(played, zero):
    folder, *each = played
    for found in each:
        straight, resumed = (found[f"continued-{zero}"][name][0] for name in ("straight", "resumed"))
        assert torch.equal(straight.scores.nan_to_num(9), resumed.scores.nan_to_num(9))
        assert straight.metrics == resumed.metrics
    assert same(weights_in(folder / f"straight-{zero}"), weights_in(folder / f"resumed-{zero}"))


@pytest.mark.parametrize("zero", [None, 2, 3])
def test_a_checkpoint_laid_out_otherwise_is_refused(played, zero):
    way = "without ZeRO" if zero is None else f"trained with launch.zero={zero} on 2 processes"
    assert all(way in found[f"continued-{zero}"]["refused"] for found in played[1:])


@pytest.mark.parametrize("zero", [None, 2, 3])
def test_a_process_without_a_picture_keeps_up_with_one_that_has(played, zero):
    folder, first, second = played
    one = learner("dense")
    both = [prompt(picture("red")), prompt(question="what is right of a1 ?")]
    said = [parts("a1 red square")] * 2, [parts("b2 red")] * 2
    metrics = one.score_and_update(Comparisons(both, *said, [0, 1])).metrics
    assert first[f"blind-{zero}"] == second[f"blind-{zero}"] == pytest.approx(metrics, rel=1e-3, abs=1e-4)
    found, expected = weights_in(folder / f"blind-{zero}"), weights(one)
    # Where a gradient is next to nothing its sign is rounding, and Adam's first step is the sign times 1e-3.
    assert max(float((found[name] - weight).abs().mean()) for name, weight in expected.items()) < 1e-6


@pytest.mark.parametrize("zero", [None, 3])
def test_a_warm_up_that_was_killed_ends_as_on_one_process(played, tmp_path, zero):
    folder, first, second = played
    account = warmed(tmp_path, None)
    assert first[f"warm-{zero}"] == second[f"warm-{zero}"] == account == Account(pairs=16, steps=3, stopped=None)
    lines, expected = (
        [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        for place in (folder / f"warm-{zero}", tmp_path / "warm-None")
    )
    assert len(lines) == 3
    for line, whole in zip(lines, expected, strict=True):
        assert line == pytest.approx(whole, rel=1e-3, abs=1e-4)
    found, wanted = weights_in(folder / f"warm-{zero}/discriminator"), weights_in(tmp_path / "warm-None/discriminator")
    assert max(float((found[name] - weight).abs().max()) for name, weight in wanted.items()) < 1e-4

import copy
import multiprocessing
import os
import random
import socket

import pytest
import torch
from tests.unit.test_discriminator_model import discriminator, ids, picture, prompt

from prism_cli.discriminator.inputs import Comparisons
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.settings import LearnerSettings
from prism_cli.errors import CheckpointError, PrismError

PARTS = ("perception", "reasoning")


def parts(perception, reasoning="2 plus 2 is 4"):
    return {"perception": ids(perception), "reasoning": ids(reasoning)}


def batch():
    """Two prompts, five rollouts: one malformed, one equal to its teacher in reasoning, one in both."""
    return Comparisons(
        prompts=[prompt(picture("red")), prompt(picture("blue", (16, 16)), question="what is right of a1 ?")],
        teacher=[parts("a1 red square"), parts("b2 blue square", "3 plus 4 is 7")],
        rollouts=[
            parts("a1 red circle"),
            None,
            parts("a1 red square"),
            parts("b2 green square , a1 empty", "3 plus 4 is 8"),
            parts("c1 blue square", "4 is 4"),
        ],
        prompt_of=[0, 0, 0, 1, 1],
    )


def learner(kind="dense", dropout=0.0, **options):
    settings = LearnerSettings(**{"learning_rate": 1e-3, **options})
    return DiscriminatorLearner(discriminator(kind, dropout=dropout), settings)


def weights(one):
    return {name: weight.clone() for name, weight in one.discriminator.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_rewards_are_the_scores_before_the_update():
    one = learner(dropout=0.5)
    before = one.score(batch())
    scored = one.score_and_update(batch())
    assert torch.equal(scored.scores.nan_to_num(99), before.scores.nan_to_num(99))
    assert torch.equal(scored.teacher, before.teacher)
    assert not torch.equal(one.score(batch()).scores[0], before.scores[0])


def test_a_malformed_rollout_has_no_score_and_all_others_have():
    scored = learner().score(batch())
    assert scored.scores.shape == (5, 2)
    assert scored.scores.isnan().all(1).tolist() == [False, True, False, False, False]


def test_scores_come_in_the_order_of_rollouts_and_parts():
    one, comparisons = learner(micro_batch=3), batch()
    shuffled = comparisons._replace(rollouts=comparisons.rollouts[::-1], prompt_of=comparisons.prompt_of[::-1])
    scored = one.score(shuffled)
    rows = [(1, comparisons.rollouts[4]["perception"]), (1, comparisons.rollouts[4]["reasoning"])]
    with torch.no_grad():
        alone = one.discriminator(one.discriminator.inputs(comparisons.prompts, rows))
    assert torch.allclose(scored.scores[0], alone, atol=1e-5)
    assert torch.allclose(scored.scores.flip(0), one.score(comparisons).scores, atol=1e-5, equal_nan=True)


def gradients(kind, micro_batch, comparisons=None, **options):
    one = learner(kind, micro_batch=micro_batch, learning_rate=0.0, max_grad_norm=1e9, **options)
    torch.manual_seed(3)
    found = {}

    def keep(*_):
        found.update((name, weight.grad.clone()) for name, weight in one.discriminator.named_parameters())

    one.optimizer.register_step_pre_hook(keep)
    one.score_and_update(comparisons or batch())
    assert all(weight.grad is None for weight in one.discriminator.parameters())
    return found


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_micro_batches_add_up_to_the_same_gradient(kind):
    whole, split = gradients(kind, 16), gradients(kind, 1)
    assert all(torch.allclose(whole[name], split[name], atol=1e-6) for name in whole)


def test_a_group_read_in_pieces_gives_the_same_gradient_dropout_and_all():
    group = batch()._replace(prompt_of=[0] * 5, prompts=batch().prompts[:1], teacher=batch().teacher[:1])
    whole, pieces = (gradients("dense", size, group, dropout=0.5) for size in (16, 2))
    assert all(torch.allclose(whole[name], pieces[name], atol=1e-6) for name in whole)


def tokens_read(one):
    """Fills with the length of each row the body reads."""
    lengths = []
    one.discriminator.body.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    return lengths


def test_prompts_and_teacher_answers_are_read_once_for_all_their_rollouts_to_score_and_to_learn():
    one, comparisons = learner(), batch()
    lengths = tokens_read(one)
    one.score_and_update(comparisons)
    texts = [*comparisons.teacher, *filter(None, comparisons.rollouts)]
    parts_and_readouts = sum(len(ids) + 1 for text in texts for ids in text.values())
    assert lengths == [sum(len(prompt.input_ids) for prompt in comparisons.prompts) + parts_and_readouts]


def test_a_micro_batch_holds_whole_prompts_and_no_more_rollouts_than_it_says():
    one, comparisons = learner(micro_batch=3), batch()
    lengths = tokens_read(one)
    one.score_and_update(comparisons)
    assert len(lengths) == 2  # Two well-formed rollouts each: three would cut a prompt in two.
    lengths.clear()
    one.micro_batch = 4
    one.score_and_update(comparisons)
    assert len(lengths) == 1


def test_a_group_larger_than_a_micro_batch_is_read_in_even_pieces_the_teachers_answer_once():
    one, view = learner(micro_batch=2), batch().prompts[:1]
    rollouts = [parts(f"a1 {color} square") for color in ("red", "green", "blue", "yellow")]
    group = Comparisons(view, [parts("a1 red circle")], rollouts, [0] * 4)
    lengths = tokens_read(one)
    one.score_and_update(group)
    # The teacher's text and four rollouts in two rows, half each; each row twice: to compare, then to learn.
    text = sum(len(ids) + 1 for ids in rollouts[0].values())
    assert len(lengths) == 4
    assert sum(lengths) == 2 * (2 * len(view[0].input_ids) + 5 * text)
    assert max(lengths) <= len(view[0].input_ids) + 3 * text


def test_micro_batches_do_not_multiply_the_balance_loss():
    # A product of means over a batch's tokens, so batches agree in size only; counted once each it would be fourfold.
    whole, split = (
        {n: g for n, g in gradients("moe", size, balance=1e4).items() if "mlp.gate." in n} for size in (16, 1)
    )
    ratio = sum(float(g.norm()) for g in split.values()) / sum(float(g.norm()) for g in whole.values())
    assert 0.5 < ratio < 2


def test_metrics_say_what_was_measured():
    metrics = learner().score_and_update(batch()).metrics
    quantities = {"loss", "accuracy", "margin", "teacher_score", "policy_score", "saturated_fraction", "equal_pairs"}
    expected = {f"discriminator/{quantity}/{part}" for quantity in quantities for part in PARTS}
    assert set(metrics) == expected | {"discriminator/grad_norm", "discriminator/skipped"}
    assert (metrics["discriminator/equal_pairs/perception"], metrics["discriminator/equal_pairs/reasoning"]) == (1, 2)
    assert metrics["discriminator/skipped"] == 0


def test_without_a_well_formed_rollout_there_is_no_step_and_no_metric():
    one, comparisons = learner(), batch()
    before = weights(one)
    scored = one.score_and_update(comparisons._replace(rollouts=[None] * 5))
    assert scored.metrics == {"discriminator/skipped": 1}
    assert scored.scores.isnan().all()
    assert one.step == 0
    assert same(before, weights(one))


def test_a_malformed_teacher_answer_teaches_nothing_but_its_rollouts_are_scored():
    one = learner()
    scored = one.score_and_update(batch()._replace(teacher=[None, None]))
    assert scored.metrics == {"discriminator/skipped": 1}
    assert scored.scores.isnan().any(1).tolist() == [False, True, False, False, False]
    half = one.score_and_update(batch()._replace(teacher=[None, batch().teacher[1]]))
    assert half.metrics["discriminator/equal_pairs/perception"] == 0
    assert half.teacher.isnan().all(1).tolist() == [True, False]
    assert one.step == 1


@pytest.mark.parametrize("kind", ["moe", "dense"])
@pytest.mark.parametrize("readout", ["last", "mean"])
def test_thirty_steps_separate_two_kinds_of_parts(kind, readout):
    one = DiscriminatorLearner(discriminator(kind, readout), LearnerSettings(learning_rate=1e-3))
    shuffle, view = random.Random(0), prompt(picture("red"))
    cells = ["a1", "a2", "b1", "b2", "c3"]

    def say(color):
        return parts(f"{shuffle.choice(cells)} {color} {shuffle.choice(['square', 'circle'])}", f"so {color}")

    for _ in range(30):
        comparisons = Comparisons([view] * 2, [say("red")] * 2, [say("blue") for _ in range(8)], [0, 1] * 4)
        metrics = one.score_and_update(comparisons).metrics
    assert metrics["discriminator/accuracy/perception"] == 1
    assert metrics["discriminator/accuracy/reasoning"] == 1
    assert metrics["discriminator/margin/perception"] > 1


def test_three_steps_equal_one_saved_and_two_more(tmp_path):
    schedule = {"schedule": "cosine", "warmup_steps": 1, "total_steps": 4}
    straight = learner("moe", dropout=0.1, balance=0.01, **schedule)
    torch.manual_seed(7)
    for _ in range(3):
        straight.score_and_update(batch())
    first = learner("moe", dropout=0.1, balance=0.01, **schedule)
    torch.manual_seed(7)
    first.score_and_update(batch())
    first.save(tmp_path)
    state = torch.get_rng_state()
    resumed = learner("moe", dropout=0.1, balance=0.01, **schedule)
    resumed.load(tmp_path)
    torch.set_rng_state(state)
    for _ in range(2):
        resumed.score_and_update(batch())
    assert resumed.step == 3
    assert resumed.scheduler.get_last_lr() == straight.scheduler.get_last_lr()
    assert same(weights(straight), weights(resumed))


def test_loading_without_an_optimiser_is_refused(tmp_path):
    one = learner()
    one.discriminator.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"optimizer\.pt"):
        one.load(tmp_path)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_in_bfloat16_layers_are_computed_so_and_scores_and_weights_are_not(kind):
    exact, half = learner(kind), learner(kind, bf16=True)
    half.discriminator.recompute_activations()
    outputs = []
    for module in half.discriminator.body.modules():
        if hasattr(module, "down_proj"):
            inner = module.down_proj if kind == "dense" else module
            inner.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    a, b = exact.score_and_update(batch()), half.score_and_update(batch())
    # Experts hand their sums on in float32: whatever the type, each number is one that bfloat16 has.
    assert outputs
    assert all(torch.equal(output.float(), output.bfloat16().float()) for output in outputs)
    assert b.scores.dtype == torch.float32
    assert torch.allclose(a.scores, b.scores, atol=0.02, equal_nan=True)
    assert not torch.equal(a.scores.nan_to_num(), b.scores.nan_to_num())
    assert {weight.dtype for weight in half.discriminator.state_dict().values()} == {torch.float32}
    norms = (one.metrics["discriminator/grad_norm"] for one in (a, b))
    assert next(norms) == pytest.approx(next(norms), rel=0.1)


def test_learning_works_where_gradients_are_switched_off():
    one = learner()
    before = weights(one)
    with torch.no_grad():
        one.score_and_update(batch())
    assert not same(before, weights(one))


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_weights():
    one = learner(score_clip=None)
    with torch.no_grad():
        one.discriminator.head.weight.fill_(torch.nan)
    before = copy.deepcopy(one.discriminator.body.state_dict())
    with pytest.raises(PrismError, match="step 0: discriminator/loss/perception is nan"):
        one.score_and_update(batch())
    assert all(torch.equal(before[name], weight) for name, weight in one.discriminator.body.state_dict().items())


def test_text_only_training_leaves_the_vision_tower_alone():
    one = learner("text_only", weight_decay=0.5)
    before = weights(one)
    one.score_and_update(batch())
    after = weights(one)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(name.startswith("body.visual") for name in changed)


def test_balancing_changes_the_step_of_a_mixture():
    results = []
    for balance in (0.0, 1.0):
        one = learner("moe", balance=balance)
        one.score_and_update(batch())
        results.append(one.discriminator.body.language_model.layers[0].mlp.gate.weight.detach())
    assert not torch.equal(*results)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kind": "dense", "balance": 0.1}, "no experts"), ({"schedule": "cosine"}, "total_steps")],
)
def test_an_option_that_would_be_ignored_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        learner(**options)


def test_the_learning_rate_rises_then_falls_on_the_cosine():
    one = learner(schedule="cosine", warmup_steps=1, total_steps=3)
    rates = []
    for _ in range(3):
        rates.append(one.scheduler.get_last_lr()[0])
        one.score_and_update(batch())
    assert rates == pytest.approx([0, 1e-3, 0.5e-3])


def work(rank, port, folder):
    """What one of two processes does."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    one, whole = learner(), batch()
    # Rank 1 holds a single rollout of the first step, and nothing well-formed in the second.
    for mine in ([0, 1, 2, 3], [4]), ([0, 1, 2, 3, 4], []):
        keep = mine[rank]
        rollouts = [r if n in keep else None for n, r in enumerate(whole.rollouts)]
        scored = one.score_and_update(whole._replace(rollouts=rollouts))
    torch.save({"weights": weights(one), "metrics": scored.metrics}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_take_the_step_that_one_would(tmp_path):
    # Forked: importing what is imported here would take them longer than their work.
    fork = multiprocessing.get_context("fork")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    workers = [fork.Process(target=work, args=(rank, port, tmp_path), daemon=True) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    one = learner()
    one.score_and_update(batch())
    metrics = one.score_and_update(batch()).metrics
    assert same(first["weights"], second["weights"])
    assert first["metrics"] == second["metrics"] == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    expected = weights(one)
    # Adam's first steps are signs of gradients, so rounding is amplified; a step is 1e-3 long.
    assert max(float((expected[name] - weight).abs().max()) for name, weight in first["weights"].items()) < 1e-4

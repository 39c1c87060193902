"""Align and RL on TRL's trainer: a trained tiny policy rolls out for real, the rest is worked out by hand."""

import copy
import statistics

import pytest
import torch

from prism_cli.assembly.data import load_data
from prism_cli.assembly.response import grammar_of
from prism_cli.assembly.rewards import algorithm_of, reward_rules
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.reader import PartReader
from prism_cli.discriminator.settings import LearnerSettings
from prism_cli.discriminator.upcycle import dense_body
from prism_cli.evaluation.sampling import sample_responses
from prism_cli.models import load_policy, multimodal, placeholder_ids
from prism_cli.recipes.sections import ResponseSection, WorldData
from prism_cli.recipes.stages import RLRecipe
from prism_cli.responses import Grammar, Part
from prism_cli.trainers.arguments import RolloutBatch
from prism_cli.trainers.grpo import GRPOTrainer
from prism_cli.trainers.on_policy_distill import AdvantageRule, OnPolicyDistillTrainer, TeacherCalls
from prism_cli.trainers.prompts import epoch_order
from prism_cli.trainers.rollout import Batch, RolloutTrainer
from prism_cli.trainers.setup import TrainerSetup
from prism_cli.trainers.verified_reward import VerifiedReward
from prism_cli.worlds import world

GROUP, PROMPTS = 4, 3
PENALTY = 1.5


@pytest.fixture(scope="module")
def saved(trained):
    return load_policy(trained / "model")


@pytest.fixture
def policy(saved):
    return saved.with_model(copy.deepcopy(saved.model))


@pytest.fixture(scope="module")
def rows(saved):
    return load_data(WorldData(type="world", split="train", size=8, seed=3), saved.settings)


def options(folder, **more):
    batch = RolloutBatch(PROMPTS, GROUP, PROMPTS * GROUP, 1, 48, temperature=1.0)
    common = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False, "num_generations_eval": 2}
    return {**batch.arguments(), **common, "gradient_checkpointing": False, "remove_unused_columns": False, **more}


def groups(rows, count=PROMPTS, size=GROUP):
    """A generation batch as TRL's sampler makes it: each prompt's rows side by side."""
    return [rows[i] for i in range(count) for _ in range(size)]


def oracle_text(policy, row, grammar=None):
    return (grammar or policy.grammar).render(world("shapes").oracle(row["prompt"][-1]["content"], row["images"][0]))


class Align:
    """A trainer with all that was asked of its teacher."""

    def __init__(self, policy, rows, folder, failing=(), taught=None, **more):
        tokenizer = policy.processor.tokenizer
        discriminator = Discriminator(
            dense_body(policy.model),
            tuple((taught or policy.grammar).parts),
            tokenizer.eos_token_id,
            "dense",
            "mean",
            0.0,
        )
        self.asked, self.prefetched = [], []
        self.learner = DiscriminatorLearner(discriminator, LearnerSettings(learning_rate=1e-3))

        def answers(wanted):
            self.asked.append([row["id"] for row in wanted])
            return [None if row["id"] in failing else oracle_text(policy, row, taught) for row in wanted]

        self.trainer = OnPolicyDistillTrainer(
            policy,
            self.learner,
            TeacherCalls(
                lambda wanted: self.prefetched.extend(row["id"] for row in wanted),
                lambda wanted: [row["id"] not in failing for row in wanted],
                answers,
            ),
            AdvantageRule("per_part", "floor", PENALTY, 0.0),
            TrainerSetup(options(folder, **more), rows, rows),
            taught,
        )

    def roll_out(self, batch):
        return self.trainer._generate_and_score_completions(batch)

    def weights(self):
        return {name: weight.clone() for name, weight in self.learner.discriminator.state_dict().items()}

    def metric(self, name, mode="train"):
        return self.trainer._metrics[mode][name][-1]


def equal_weights(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def by_hand(scores, valid):
    """METHOD's per-part rule for one group, in plain Python."""
    total = [0.0] * len(scores)
    for part in range(len(scores[0])):
        known = [row[part] for row, ok in zip(scores, valid, strict=True) if ok]
        column = [
            row[part] if ok else (min(known) - 1 if known else -1.0) for row, ok in zip(scores, valid, strict=True)
        ]
        mean, std = statistics.mean(column), statistics.stdev(column)
        total = [sum_ + 0.5 * (x - mean) / (std + 1e-6) for sum_, x in zip(total, column, strict=True)]
    return [sum_ - (0 if ok else PENALTY) for sum_, ok in zip(total, valid, strict=True)]


# Align ----------------------------------------------------------------------------------------------------------------


def test_advantages_are_the_methods_and_not_trls(policy, rows, tmp_path):
    align = Align(policy, rows, tmp_path, temperature=1.3)
    align.trainer.model.train()
    torch.manual_seed(0)
    given = align.roll_out(groups(rows))["advantages"].tolist()
    scores, valid = align.trainer._scores.tolist(), align.trainer._valid.tolist()
    assert 0 < sum(valid) < len(valid)
    starts = range(0, len(valid), GROUP)
    expected = [a for i in starts for a in by_hand(scores[i : i + GROUP], valid[i : i + GROUP])]
    assert given == pytest.approx(expected, abs=1e-4)
    assert align.metric("responses/malformed_fraction") == pytest.approx(1 - sum(valid) / len(valid))


def test_rewards_and_malformed_responses_are_logged_by_source(policy, rows, tmp_path):
    align = Align(policy, rows, tmp_path, temperature=1.3)
    align.trainer.model.train()
    torch.manual_seed(0)
    # The first prompt is of one source, the others of another.
    batch = [{**row, "source": "one" if i < GROUP else "two"} for i, row in enumerate(groups(rows))]
    align.roll_out(batch)
    valid = align.trainer._valid.tolist()
    assert align.metric("sources/one/malformed_fraction") == pytest.approx(1 - sum(valid[:GROUP]) / GROUP)
    assert align.metric("sources/two/malformed_fraction") == pytest.approx(
        1 - sum(valid[GROUP:]) / (len(valid) - GROUP)
    )
    rewards = align.trainer.discriminator(batch)
    assert align.metric("sources/one/reward") == pytest.approx(statistics.mean(rewards[:GROUP]), abs=1e-5)
    assert align.metric("sources/two/reward") == pytest.approx(statistics.mean(rewards[GROUP:]), abs=1e-5)


def test_the_discriminator_learns_in_training_and_not_in_evaluation(policy, rows, tmp_path):
    align = Align(policy, rows, tmp_path)
    before = align.weights()
    align.trainer.model.eval()
    output = align.roll_out(groups(rows, size=2))
    assert equal_weights(align.weights(), before)
    assert output["advantages"].shape == (PROMPTS * 2,)
    align.trainer.model.train()
    align.roll_out(groups(rows))
    first = align.weights()
    align.roll_out(groups(rows))
    assert not equal_weights(first, before)
    assert not equal_weights(align.weights(), first)
    assert align.learner.step == 2


def test_each_prompts_teacher_answer_is_fetched_once_by_its_row(policy, rows, tmp_path):
    align = Align(policy, rows, tmp_path)
    align.trainer.model.train()
    align.roll_out(groups(rows))
    assert align.asked == [rows["id"][:PROMPTS]]


def test_prompts_are_asked_about_before_their_step_and_failed_ones_are_never_rolled_out(policy, rows, tmp_path):
    order = [rows["id"][i] for i in epoch_order(len(rows), 42, 0)]
    failing = order[1]
    align = Align(policy, rows, tmp_path, failing={failing}, max_steps=2, logging_steps=1)
    align.trainer.train()
    # Eight rows make two steps of three prompts; with the second failing, the seventh is drawn too.
    taken = [order[i] for i in (0, 2, 3, 4, 5, 6)]
    assert [id for step in align.asked for id in step] == taken
    assert align.prefetched == order[:7], "each once, the failed one too, and no prompt of a step past the last"
    first = align.trainer.state.log_history[0]
    assert first["teacher/failed_prompts"] == 1
    assert 0 <= first["teacher/wait_seconds"] < first["step_time"]


def test_failed_prompts_stand_in_the_checkpoint(policy, rows, tmp_path):
    align = Align(policy, rows, tmp_path)
    align.trainer.failed_prompts.update({"b", "a"})
    align.trainer.save_extra(tmp_path)
    assert (tmp_path / "failed_prompts.json").read_text() == '["a", "b"]'
    again = Align(policy, rows, tmp_path)
    again.trainer.load_extra(tmp_path)
    assert again.trainer.failed_prompts == {"a", "b"}


def test_a_held_out_row_without_an_answer_is_not_compared(policy, rows, tmp_path):
    align = Align(policy, rows, tmp_path, failing=set(rows["id"]))
    align.trainer.model.eval()
    align.roll_out(groups(rows, size=2))
    assert align.metric("teacher/malformed_fraction", "eval") == 1
    assert "discriminator/accuracy/perception" not in align.trainer._metrics["eval"]


def test_an_evaluation_asks_about_all_held_out_rows_at_once(policy, rows, tmp_path):
    align = Align(policy, rows, tmp_path)
    align.trainer.evaluate()
    assert align.prefetched == list(rows["id"])


# Text-only teachers ---------------------------------------------------------------------------------------------------


def test_a_text_only_teacher_is_read_by_its_own_grammar(policy):
    reader = PartReader(policy.processor, policy.grammar, policy.grammar.without("perception"))
    blind, whole = "<think> red </think> <answer> red </answer>", "<caption> red </caption> "
    assert reader.text(whole + blind) is None
    assert list(reader.text(blind)) == ["reasoning"]
    rollout = policy.processor.tokenizer(whole + blind)["input_ids"]
    assert reader.tokens(rollout) == reader.text(blind), "without its caption the rollout is what the teacher wrote"
    assert reader.tokens(policy.processor.tokenizer(blind)["input_ids"]) is None


def test_weights_of_taught_parts_keep_the_sum_of_all(policy):
    def weights(declared, taught):
        parts = {name: Part((name,), weight) for name, weight in declared.items()}
        grammar = Grammar(parts, None)
        left = Grammar({name: parts[name] for name in taught}, None)
        return PartReader(policy.processor, grammar, left).weights().tolist()

    assert weights({"a": 0.5, "b": 0.5}, ["b"]) == pytest.approx([1.0])
    assert weights({"a": 0.4, "b": 1.2, "c": 0.4}, ["b", "c"]) == pytest.approx([1.5, 0.5])
    assert weights({"a": 0.4, "b": 1.2}, ["a", "b"]) == pytest.approx([0.4, 1.2])


def test_weights_may_be_given_for_align_alone(policy):
    reader = PartReader(policy.processor, Grammar({"a": Part(("a",), 0.5), "b": Part(("b",), 0.5)}, None))
    assert reader.weights({"a": 3.0, "b": 1.0}).tolist() == pytest.approx([0.75, 0.25])


def test_a_part_that_is_not_taught_is_not_scored(policy, rows, tmp_path):
    align = Align(policy, rows, tmp_path, taught=policy.grammar.without("perception"))
    align.trainer.model.train()
    given = align.roll_out(groups(rows))["advantages"].tolist()
    scores, valid = align.trainer._scores, align.trainer._valid.tolist()
    assert scores.shape == (PROMPTS * GROUP, 1)
    # The one part left weighs what both did, so twice the 0.5 of `by_hand`.
    starts = range(0, len(valid), GROUP)
    twice = [[row[0], row[0]] for row in scores.tolist()]
    expected = [a for i in starts for a in by_hand(twice[i : i + GROUP], valid[i : i + GROUP])]
    assert given == pytest.approx(expected, abs=1e-4)
    floor = min(row[0] for row, ok in zip(twice, valid, strict=True) if ok) - 1
    rewards = [row[0] if ok else floor for row, ok in zip(twice, valid, strict=True)]
    assert align.metric("reward") == pytest.approx(statistics.mean(rewards), abs=1e-5)
    assert "discriminator/accuracy/perception" not in align.trainer._metrics["train"]


# Comparisons ----------------------------------------------------------------------------------------------------------


def test_a_rollout_is_compared_with_its_own_prompts_answer(policy, rows, tmp_path):
    """Rollouts that say what the teacher says are ties, which no accuracy counts; for another prompt they are not."""
    align = Align(policy, rows, tmp_path)
    taught = [oracle_text(policy, rows[i]) for i in range(PROMPTS)]
    conversations = [multimodal(row["prompt"], row["images"]) for row in groups(rows)]
    measured = []
    for order in (taught, taught[1:] + taught[:1]):
        texts = [text for text in order for _ in range(GROUP)]
        tokens = [policy.processor.tokenizer(text)["input_ids"] for text in texts]
        responses = [policy.grammar.parse(text) for text in texts]
        align.trainer.score(Batch(groups(rows), conversations, responses, tokens))
        measured.append("discriminator/accuracy/perception" in align.trainer._pending_metrics)
        align.trainer._pending_metrics.clear()
    assert measured == [False, True]


def test_a_step_without_a_valid_rollout_skips_the_update_and_says_so(policy, rows, tmp_path):
    for weight in policy.model.parameters():
        weight.data.normal_(std=0.5)
    align = Align(policy, rows, tmp_path)
    before = align.weights()
    align.trainer.model.train()
    output = align.roll_out(groups(rows))
    assert align.metric("discriminator/skipped") == 1
    assert align.metric("responses/malformed_fraction") == 1
    assert equal_weights(align.weights(), before)
    assert output["advantages"].tolist() == pytest.approx([-PENALTY] * GROUP * PROMPTS)
    assert "discriminator/accuracy/perception" not in align.trainer._metrics["train"]


# Placeholders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def obsessed(policy):
    """A policy that wants to say nothing but placeholders."""
    wanted = placeholder_ids(policy.processor)

    def push(module, args, logits):
        logits = logits.clone()
        logits[..., wanted] += 100.0
        return logits

    policy.model.lm_head.register_forward_hook(push)
    return policy


def test_no_rollout_holds_a_placeholder_token(obsessed, rows, tmp_path):
    reward = [lambda completions, **kw: [0.0] * len(completions)]
    trainer = RolloutTrainer(obsessed, reward, TrainerSetup(options(tmp_path), rows))
    output = trainer._generate_and_score_completions(groups(rows))
    assert not set(placeholder_ids(obsessed.processor)) & set(output["completion_ids"].flatten().tolist())


def test_no_sampled_response_holds_a_placeholder_token(obsessed, rows):
    def emitted(suppress):
        asked = [multimodal(rows[0]["prompt"], rows[0]["images"])]
        settings = {"max_tokens": 8, "temperature": 1.0, "seed": 0, "batch_size": 1}
        (response,) = sample_responses(obsessed.model, obsessed.processor, asked, suppress=suppress, **settings)
        return set(placeholder_ids(obsessed.processor)) & set(response.token_ids)

    assert emitted(placeholder_ids(obsessed.processor)) == set()
    assert emitted([]), "without suppression it would say them"


# RL -------------------------------------------------------------------------------------------------------------------


def recipe(**settings):
    return RLRecipe.model_validate({"max_response_tokens": 48, **settings})


def reward_of(text, truth, **settings):
    """TRL's weighted sum of the rules for one response."""
    rules = reward_rules(recipe(**settings))
    grammar = grammar_of(ResponseSection())
    row = {"answers": [truth], "prompt": [{"role": "user", "content": "what is at b2 ?"}]}
    rules.score([grammar.parse(text)], [row], [len(text.split())])
    return sum(rules.weights[name] * values[0] for name, values in rules.values.items())


FORM = "<caption> a </caption> <think> b </think> <answer> {} </answer>"


@pytest.mark.parametrize(
    ("text", "reward"),
    [(FORM.format("7"), 1.0), (FORM.format("8"), 0.2), ("7", 0.0), (FORM.format("7") + " 7", 0.0)],
)
def test_the_reward_is_accuracy_and_format_and_nothing_for_a_malformed_response(text, reward):
    assert reward_of(text, "7") == pytest.approx(reward)


def test_dapo_takes_off_what_is_too_long():
    long = FORM.format("7").replace(" b ", " b" * 34 + " ")  # 42 words: 2 of the 8 before 48 are over
    settings = {"algorithm": {"type": "dapo", "overlong_buffer": 8}}
    assert len(long.split()) == 42
    assert reward_of(long, "7", **settings) == pytest.approx(1.0 - 2 / 8)


def test_trl_receives_the_weighted_rewards(policy, rows, tmp_path):
    rules = reward_rules(recipe())
    trainer = GRPOTrainer(policy, rules, TrainerSetup(options(tmp_path), rows))
    trainer.model.train()
    trainer._generate_and_score_completions(groups(rows))
    expected = [0.8 * a + 0.2 * f for a, f in zip(rules.values["accuracy"], rules.values["format"], strict=True)]
    assert trainer._metrics["train"]["reward"][-1] == pytest.approx(statistics.mean(expected))
    assert 0 < statistics.mean(expected) < 1


def test_rules_are_served_under_their_names():
    rules = VerifiedReward({"accuracy": lambda response, row, length: float(length)}, {"accuracy": 1.0})
    rules.score([None, None], [{}, {}], [3, 5])
    (serve,) = rules.functions()
    assert (serve.__name__, serve(completions=[])) == ("accuracy", [3.0, 5.0])


@pytest.mark.parametrize(
    ("kind", "loss", "level", "low", "high", "dual"),
    [
        ("grpo", "dapo", "token", 0.2, 0.2, 3.0),
        ("dapo", "dapo", "token", 0.2, 0.28, 10.0),
        ("gspo", "grpo", "sequence", 3e-4, 4e-4, None),
    ],
)
def test_an_algorithm_is_a_preset_of_trls_options(kind, loss, level, low, high, dual, policy, rows, tmp_path):
    wanted = recipe(algorithm={"type": kind})
    arguments = options(tmp_path, **algorithm_of(wanted.algorithm).loss)
    trainer = GRPOTrainer(policy, reward_rules(wanted), TrainerSetup(arguments, rows))
    assert (trainer.loss_type, trainer.importance_sampling_level) == (loss, level)
    assert (trainer.epsilon_low, trainer.epsilon_high, trainer.args.delta) == (low, high, dual)
    assert trainer.beta == 0


# Batches --------------------------------------------------------------------------------------------------------------


def test_a_step_is_cut_into_micro_batches():
    found = RolloutBatch(4, 16, micro_batch=4, processes=2, max_response_tokens=8, temperature=1.0).arguments()
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == (4, 8)


def test_a_step_that_can_not_be_cut_is_refused():
    with pytest.raises(ValueError, match="= 12 can't be cut into micro_batch × processes = 8"):
        RolloutBatch(3, 4, micro_batch=8, processes=1, max_response_tokens=8, temperature=1.0).arguments()

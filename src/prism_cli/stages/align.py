"""`prism align`: black-box on-policy distillation, the stage between SFT and RL."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import get_console

from prism_cli import processes
from prism_cli.assembly import checks, tracking
from prism_cli.assembly.checks import Plan
from prism_cli.assembly.data import load_data
from prism_cli.assembly.discriminator import check_discriminator, discriminator_settings, questions_of_align
from prism_cli.assembly.generation import check_rollouts, chosen_backend, vllm_rollouts
from prism_cli.assembly.out_of_memory import training_run
from prism_cli.assembly.planned_alignment import align_job
from prism_cli.assembly.policy import lora_config, resolve_start
from prism_cli.assembly.response import grammar_ahead
from prism_cli.assembly.teacher import TeacherQuestions, open_teacher, prompting_of, resolve_teacher
from prism_cli.errors import RecipeError
from prism_cli.evaluation.backend import Backend
from prism_cli.recipes.stages import AlignRecipe
from prism_cli.responses import ResponseSettings
from prism_cli.runs.folder import Run
from prism_cli.runs.references import DISCRIMINATOR
from prism_cli.teacher.teacher import RecordedTeacher

if TYPE_CHECKING:  # torch and datasets cost seconds to import
    from datasets import Dataset

    from prism_cli.assembly.training import TrainingSettings
    from prism_cli.discriminator.model import Discriminator
    from prism_cli.models import Policy
    from prism_cli.teacher.answers import TeacherAnswers
    from prism_cli.trainers.callbacks import Callbacks
    from prism_cli.trainers.on_policy_distill import OnPolicyDistillTrainer
    from prism_cli.trainers.watch import WatchedLearner


def check(recipe: AlignRecipe, pending: bool = False) -> Plan:
    """Plan of the stage; finds mistakes without loading a model.

    Args:
        recipe: The resolved recipe.
        pending: The run it starts from is an earlier step of the same pipeline and need not exist yet.

    Raises:
        PrismError: see the `check_…` functions.
    """
    plan = [*checks.check_start(recipe, "align", pending), *checks.check_data(recipe.data, "align")]
    if recipe.eval_data is not None:
        plan += checks.check_data(recipe.eval_data, "align", "eval_data")
    plan += checks.check_teacher(recipe.teacher, "align", grammar_ahead(recipe))
    checks.check_training(recipe)
    tracking.check(recipe.trainer)
    _check_weights(recipe)
    if (pairs := recipe.discriminator.warmup.data) is not None:
        plan += checks.check_data(pairs, "align", "discriminator.warmup.data")
    discriminator = check_discriminator(recipe)
    start = resolve_start(recipe)
    plan += check_rollouts(
        recipe.generation, start.tiny, start.four_bits, recipe.launch.processes, recipe.longest_tokens
    )
    return [*plan, ("discriminator", discriminator), ("training", _length(recipe))]


def _length(recipe: AlignRecipe) -> str:
    length = f"{recipe.max_steps} steps" if recipe.max_steps else f"{recipe.epochs} epochs"
    if recipe.stop is not None:
        length += f", fewer once drift is flat (measured every {recipe.stop.every} steps)"
    return f"{length}, {recipe.prompts_per_step} prompts × {recipe.rollouts} rollouts a step"


def run(recipe: AlignRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the stage; gives its folder.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    with training_run("align", recipe, partial(align_job, recipe), fresh, command) as run:
        if run.finished:
            return run.folder
        from prism_cli.assembly import training
        from prism_cli.assembly.warmup import warm_discriminator
        from prism_cli.models import free_memory

        policy, asked = training.start(recipe), resolve_teacher(recipe.teacher)
        rows, held_out = _rows(recipe, policy, isinstance(asked, RecordedTeacher))
        backend = chosen_backend(recipe.generation, policy)  # before the teacher costs anything
        sources = tuple(filter(None, (rows, held_out)))
        questions = TeacherQuestions(sources, policy.settings, recipe.data, questions_of_align(recipe))
        with open_teacher(asked, run, questions) as teacher:
            discriminator = warm_discriminator(recipe, policy, rows, teacher, backend, run.folder / "warmup")
            _train(recipe, run, _Parts(policy, discriminator, teacher, rows, held_out, backend))
            # The showcase loads two more policies: what trained goes first.
            del policy, discriminator
            free_memory()
            processes.from_main(lambda: _show(recipe, run, held_out or rows, teacher))
    return run.folder


def _rows(recipe: AlignRecipe, policy: "Policy", by_column: bool) -> "tuple[Dataset, Dataset | None]":
    """The prompts and the held-out ones, refused where they don't fit; `by_column`: with the teacher's answers."""
    from prism_cli.data.lengths import refuse_mixed, refuse_over_long, refuse_too_few, refuse_unanswered

    with processes.main_first():
        rows = load_data(recipe.data, policy.settings, "align", by_column)
        held_out = load_data(recipe.eval_data, policy.settings, "align", by_column) if recipe.eval_data else None
    refuse_mixed(rows)
    refuse_over_long(rows, policy.processor, recipe.max_prompt_tokens, "max_prompt_tokens")
    if by_column:
        refuse_unanswered(*filter(None, (rows, held_out)))
    refuse_too_few(rows, recipe.prompts_per_step)
    return rows, held_out


def _show(recipe: AlignRecipe, run: Run, rows: "Dataset", teacher: "TeacherAnswers") -> None:
    """Writes the showcase: rollouts before and after, scored by the final discriminator."""
    from prism_cli.assembly.policy import start_policy
    from prism_cli.discriminator.model import Discriminator
    from prism_cli.discriminator.reader import PartReader
    from prism_cli.discriminator.scoring import part_scores
    from prism_cli.evaluation.showcase import MAX_PROMPTS, Policies, Prompt, Sampling, write_showcase
    from prism_cli.models import device, load_policy

    first = [rows[i] for i in range(min(MAX_PROMPTS, len(rows)))]
    answered = [(row, text) for row, text in zip(first, teacher.answers(first), strict=True) if text is not None]
    prompts = [Prompt(row, text, teacher.image_url(row["id"])) for row, text in answered]
    discriminator = Discriminator.from_pretrained(run.folder / DISCRIMINATOR).to(device())

    def score(policy: "Policy", conversations: Any, responses: list[list[int]]) -> list[dict[str, float | None]]:
        reader = PartReader(policy.processor, policy.grammar, teacher.grammar)
        return part_scores(discriminator, reader, conversations, [text for _, text in answered], responses)

    policies = Policies(before=lambda: start_policy(recipe), after=lambda: load_policy(run.model))
    sampling = Sampling(recipe.max_response_tokens, recipe.temperature, recipe.seed)
    write_showcase(run.folder, policies, sampling, score, prompts)


def _check_weights(recipe: AlignRecipe) -> None:
    """Refuses weights of parts that are not taught, or of none."""
    weights, grammar = recipe.advantage.weights, grammar_ahead(recipe)
    if weights is None or grammar is None:
        return
    taught = prompting_of(resolve_teacher(recipe.teacher), ResponseSettings(grammar, None)).grammar.parts
    if set(weights) != set(taught) or not sum(weights.values()):
        raise RecipeError(
            f"advantage.weights names {', '.join(weights) or 'nothing'}; the taught parts are {', '.join(taught)}",
            "give each of them a weight, not all of them 0",
        )


class _Parts(NamedTuple):
    """The parts of a training.

    Attributes:
        policy: At its start.
        discriminator: Warm.
        teacher: Its answers.
        rows: The prompts.
        held_out: Those of the evaluation, or None.
        backend: Generates the rollouts.
    """

    policy: "Policy"
    discriminator: "Discriminator"
    teacher: "TeacherAnswers"
    rows: "Dataset"
    held_out: "Dataset | None"
    backend: Backend


def _train(recipe: AlignRecipe, run: Run, parts: _Parts) -> None:
    """Trains policy and discriminator, and leaves both in the run's folder."""
    from prism_cli.assembly import training

    settings = training.training_settings(recipe, run)
    training.seed(settings)
    learner = _learner(recipe, parts)
    trainer, callbacks = _trainer(recipe, settings, learner, parts)
    training.train(trainer, callbacks, run, parts.policy)
    learner.save_discriminator(run.folder / DISCRIMINATOR)
    learner.close()


def _learner(recipe: AlignRecipe, parts: _Parts) -> "WatchedLearner":
    """The discriminator's learner, which also measures drift and shortcuts."""
    from prism_cli.discriminator.learner import DiscriminatorLearner
    from prism_cli.trainers.drift_stop import DriftStop
    from prism_cli.trainers.watch import WatchedLearner

    learner = DiscriminatorLearner.on_device(parts.discriminator, discriminator_settings(recipe).learner)
    stop = None if recipe.stop is None else DriftStop(**recipe.stop.model_dump())
    decode = parts.policy.processor.tokenizer.decode
    return WatchedLearner(learner, decode, recipe.discriminator.probe_every, stop, recipe.seed)


def _trainer(
    recipe: AlignRecipe, settings: "TrainingSettings", learner: "WatchedLearner", parts: _Parts
) -> "tuple[OnPolicyDistillTrainer, Callbacks]":
    from prism_cli.assembly import training
    from prism_cli.trainers.drift_stop import StopWhenFlat
    from prism_cli.trainers.health import HealthWatch, align_detectors
    from prism_cli.trainers.on_policy_distill import AdvantageRule, OnPolicyDistillTrainer, TeacherCalls
    from prism_cli.trainers.setup import TrainerSetup

    policy, teacher, run = parts.policy, parts.teacher, settings.run
    health = HealthWatch(run.folder, align_detectors(teacher.taught), get_console())
    shown = training.Shown("align", _shown(teacher.taught))
    callbacks = training.callbacks(settings, policy, shown, partial(align_job, recipe), (health,))
    callbacks = callbacks._replace(early_stop=StopWhenFlat(learner))
    setup = TrainerSetup(
        *(settings.arguments(_batch(recipe)), parts.rows, parts.held_out, callbacks.all(), lora_config(recipe)),
        rollout_log=training.rollout_log(recipe, callbacks, run),
        vllm=vllm_rollouts(parts.backend, policy, recipe.longest_tokens, resolve_start(recipe).revision),
    )
    calls = TeacherCalls(teacher.prefetch, teacher.teachable, teacher.answers)
    advantage = AdvantageRule(**recipe.advantage.model_dump())
    return OnPolicyDistillTrainer(policy, learner, calls, advantage, setup, teacher.grammar), callbacks


def _shown(parts: Sequence[str]) -> dict[str, str]:
    """The metrics of the progress bar, with their labels."""
    accuracies = {f"discriminator/accuracy/{part}": f"discriminator {part}" for part in parts}
    return accuracies | {"responses/malformed_fraction": "malformed", "completions/mean_length": "length"}


def _batch(recipe: AlignRecipe) -> dict[str, Any]:
    """The stage's own arguments of GRPOConfig."""
    return {
        **checks.rollout_batch(recipe).arguments(),
        # The method's policy loss: clipped ratio, mean over the batch's tokens (TRL calls it dapo), dual clip.
        "loss_type": "dapo",
        "epsilon": recipe.clip,
        "delta": recipe.dual_clip,
        "beta": recipe.kl,
        "num_generations_eval": 2,
        "per_device_eval_batch_size": 2 * recipe.micro_batch,
    }

"""Black-box on-policy distillation: the policy's rollouts are pulled to a teacher's texts by a discriminator.

Each step: roll out, take the teacher's answer, split both into parts, score and train the discriminator in one pass,
and give every token of a rollout its advantage (arXiv 2604.28123).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from accelerate.utils import gather
from datasets import Dataset
from transformers import TrainerCallback

from prism_cli.discriminator.inputs import Comparisons, Parts, PromptInputs
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.models import Policy
from prism_cli.responses import Grammar, Response, token_pieces
from prism_cli.rewards.advantages import align_advantages
from prism_cli.trainers.rollout import RolloutTrainer


class AdvantageRule(NamedTuple):
    """How scores become advantages; see `align_advantages`."""

    rule: Literal["per_part", "combined"]
    malformed: Literal["floor", "apart"]
    malformed_penalty: float
    std_floor: float


class PartReader:
    """Turns texts and tokens into what the discriminator reads: one text form for teacher and rollout alike.

    Args:
        processor: The policy's processor.
        grammar: The declared parts.
    """

    def __init__(self, processor, grammar: Grammar):
        self.processor = processor
        self.grammar = grammar

    def prompt(self, conversation: Sequence[dict[str, Any]]) -> PromptInputs:
        """A prompt with its images as the model reads it, up to where the response begins."""
        encoded = self.processor.apply_chat_template(
            list(conversation), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        return PromptInputs(
            encoded["input_ids"][0].tolist(), encoded.get("pixel_values"), encoded.get("image_grid_thw")
        )

    def tokens(self, token_ids: Sequence[int]) -> Parts | None:
        """A rollout's tokens split into parts, or None when malformed."""
        return self.grammar.split_token_ids(token_ids, token_pieces(self.processor.tokenizer, token_ids))

    def text(self, text: str) -> Parts | None:
        """A teacher's text, tokenised whole like a rollout, then split; None when malformed."""
        return self.tokens(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])


class OnPolicyDistillTrainer(RolloutTrainer):
    """Plays the game of policy and discriminator on TRL's GRPO trainer.

    Args:
        policy: The policy to align.
        learner: The warmed-up discriminator with its optimiser.
        prefetch: Starts asking the teacher about rows, and returns at once.
        answers: The teacher's texts for rows, in order.
        advantage: From scores to advantages.
        arguments: Keyword arguments of GRPOConfig.
        train: Rows with `prompt` and `images`.
        held_out: Rows of the same shape, or None.
        callbacks: Watchers.
        lora: A peft config, or None.
    """

    def __init__(
        self,
        policy: Policy,
        learner: DiscriminatorLearner,
        prefetch: Callable[[list[dict]], None],
        answers: Callable[[list[dict]], list[str]],
        advantage: AdvantageRule,
        arguments: dict[str, Any],
        train: Dataset,
        held_out: Dataset | None,
        callbacks: Sequence[TrainerCallback],
        lora: Any = None,
    ):
        super().__init__(policy, [self.discriminator], arguments, train, held_out, callbacks, lora)
        self.learner = learner
        self.prefetch = prefetch
        self.answers = answers
        self.advantage = advantage
        self.reader = PartReader(policy.processor, policy.grammar)
        self.part_weights = torch.tensor([part.weight for part in policy.grammar.parts.values()])

    def discriminator(self, completions: list, **columns: Any) -> list[float]:
        """TRL's reward column, for the log only: r of the paper's Eq. 3, malformed rollouts at the smallest − 1."""
        scores = (self._scores.cpu() * self.part_weights).sum(1)
        valid = self._valid.cpu()
        floor = scores[valid].min() - 1 if valid.any() else torch.tensor(-1.0)
        return torch.where(valid, scores, floor).tolist()

    def _generate_and_score_completions(self, inputs):
        self.prefetch([row for row, first in zip(inputs, _firsts(inputs), strict=True) if first])
        output = super()._generate_and_score_completions(inputs)
        # TRL normalises the summed reward; the method normalises each part and penalises malformed rollouts.
        output["advantages"] = self._local_advantages(len(inputs)).to(output["advantages"])
        return output

    def judge(self, rows, prompts, responses: list[Response], completion_ids):
        """Scores this process's rollouts against the teacher's answers; when training, updates the discriminator."""
        firsts = [i for i, first in enumerate(_firsts(rows)) if first]
        prompt_of = [sum(first <= i for first in firsts) - 1 for i in range(len(rows))]
        taught = [self.reader.text(answer) for answer in self.answers([rows[i] for i in firsts])]
        batch = Comparisons(
            prompts=[self.reader.prompt(prompts[i]) for i in firsts],
            teacher=taught,
            rollouts=[
                self.reader.tokens(ids) if response.well_formed else None
                for ids, response in zip(completion_ids, responses, strict=True)
            ],
            prompt_of=prompt_of,
        )
        judged = self.learner.score_and_update(batch) if self._training else self.learner.score(batch)
        for name, value in judged.metrics.items():
            self._log_metric(name, value)
        self._log_metric("teacher/malformed_fraction", sum(parts is None for parts in taught) / len(taught))
        self._scores = judged.scores
        self._valid = torch.tensor([parts is not None for parts in batch.rollouts], device=judged.scores.device)

    def _local_advantages(self, count: int) -> torch.Tensor:
        """(N,) advantages of this process's rollouts; groups may lie across processes, so scores are gathered first."""
        advantages = align_advantages(
            cast(torch.Tensor, gather(self._scores)),
            cast(torch.Tensor, gather(self._valid)),
            self.part_weights.to(self._scores.device),
            cast(int, self.num_generations if self._training else self.num_generations_eval),
            rule=self.advantage.rule,
            malformed=self.advantage.malformed,
            std_floor=self.advantage.std_floor,
            malformed_penalty=self.advantage.malformed_penalty,
        )
        start = self.accelerator.process_index * count
        return advantages[start : start + count]

    @property
    def _training(self) -> bool:
        return cast(torch.nn.Module, self.model).training


def _firsts(rows: Sequence[dict]) -> list[bool]:
    """Which rows begin a run of the same prompt: rollouts of a prompt stand side by side."""
    return [i == 0 or row["id"] != rows[i - 1]["id"] for i, row in enumerate(rows)]

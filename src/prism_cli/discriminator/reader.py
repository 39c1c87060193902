"""The discriminator's reader: texts and tokens to parts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prism_cli.discriminator.inputs import Parts, PromptInputs
from prism_cli.responses import Grammar, token_pieces


class PartReader:
    """Turns texts and tokens into what the discriminator reads: one text form for teacher and rollout alike.

    Args:
        processor: The policy's processor.
        grammar: The parts of the policy's responses.
        taught: The parts of the teacher's answers, where it teaches some of them only; the others are not scored.
    """

    def __init__(self, processor, grammar: Grammar, taught: Grammar | None = None):
        self.processor = processor
        self.grammar = grammar
        self.taught = taught or grammar

    def prompt(self, conversation: Sequence[dict[str, Any]]) -> PromptInputs:
        """A prompt with its images as the model reads it, up to where the response begins."""
        encoded = self.processor.apply_chat_template(
            list(conversation), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        return PromptInputs(
            encoded["input_ids"][0].tolist(), encoded.get("pixel_values"), encoded.get("image_grid_thw")
        )

    def tokens(self, token_ids: Sequence[int]) -> Parts | None:
        """The taught parts of a rollout's tokens, or None when it is malformed."""
        parts = self._split(self.grammar, token_ids)
        return parts and {name: parts[name] for name in self.taught.parts}

    def text(self, text: str | None) -> Parts | None:
        """A teacher's text, tokenised in one piece like a rollout, then split; None when malformed or missing."""
        if text is None:
            return None
        return self._split(self.taught, self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def weights(self, instead: Mapping[str, float] | None = None) -> torch.Tensor:
        """(K,) weights of the taught parts, scaled to the sum that all parts' weights have.

        Args:
            instead: Part name → weight, in place of the grammar's.
        """
        known = {name: part.weight for name, part in self.taught.parts.items()} | dict(instead or {})
        weights = torch.tensor([known[name] for name in self.taught.parts])
        return weights * (sum(part.weight for part in self.grammar.parts.values()) / weights.sum())

    def _split(self, grammar: Grammar, token_ids: Sequence[int]) -> Parts | None:
        return grammar.split_token_ids(token_ids, token_pieces(self.processor.tokenizer, token_ids))

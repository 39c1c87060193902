"""The shapes world: examples to train on, a teacher that answers from pixels, and a judge that knows the truth."""

import hashlib
import json
import random
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from prism_cli.errors import DataError
from prism_cli.worlds.drawing import decode, draw, pixels_of
from prism_cli.worlds.questions import (
    CORNER_SUMS,
    DIRECTIONS,
    NOTHING,
    answer_from,
    ask,
    guess,
    read_question,
    reason,
)
from prism_cli.worlds.scenes import CELLS, COLOURS, CORNERS, Split, caption, corrupt, read_caption, sample_scene

Variant = Literal["exact", "weak_perception", "weak_reasoning", "text_only"]

MISSEEN_RATE = 0.25  # things of a weak eye's caption, and of a corrupted demonstration's
WEAK_SLIP_RATE = 0.4
PUBLIC_CORRUPTED_RATE, PUBLIC_SLIP_RATE, PUBLIC_SHORT_RATE = 0.5, 0.2, 0.5
_BLIND_CAPTION, _BLIND_THINK = "i can not see the picture", "i guess the answer"
_OTHER_WORDS = f"what is at of plus corners holds the answer {_BLIND_CAPTION} {_BLIND_THINK} {NOTHING} , ?"


class Example(NamedTuple):
    """A question about a picture.

    Attributes:
        id: Unique over splits and seeds, stable over sizes.
        image: 48×48 RGB.
        question: Words separated by single blanks.
        answer: The right final answer.
        truth: JSON with `kind`, `objects` (cell → thing) and `answer`.
    """

    id: str
    image: Image.Image
    question: str
    answer: str
    truth: str


class Shapes:
    """Coloured shapes on a 3×3 grid; three kinds of questions; all text is lower-case words between single blanks."""

    name = "shapes"

    def examples(self, split: Split, size: int, seed: int) -> list[Example]:
        """The first `size` examples of a split; no scene of one split occurs in another, whatever the seeds.

        Raises:
            DataError: there is no such split.
        """
        if split not in get_args(Split):
            raise DataError(f"no split {split!r} of the shapes world", hint=f"one of {', '.join(get_args(Split))}")
        rng = random.Random(f"{split} {seed}")
        noise = np.random.default_rng(rng.getrandbits(64))
        return [self._example(f"{self.name}-{split}-{seed}-{i}", split, rng, noise) for i in range(size)]

    def _example(self, id: str, split: Split, rng: random.Random, noise: np.random.Generator) -> Example:
        scene = sample_scene(rng, split)
        question = ask(scene, rng)
        answer = answer_from(scene, question)
        truth = json.dumps({"kind": read_question(question).kind, "objects": scene, "answer": answer})
        return Example(id, draw(scene, noise), question, answer, truth)

    def oracle(
        self, question: str, image: Image.Image | None, variant: Variant = "exact", seed: int = 0
    ) -> dict[str, str]:
        """A teacher's answer as blocks (caption, think, answer), read from the pixels.

        Args:
            question: As asked.
            image: The picture; `text_only` never looks at it.
            variant: `exact`; `weak_perception` misses a quarter of the things and reasons from what it saw;
                `weak_reasoning` sees all and slips in 40 % of the answers; `text_only` guesses.
            seed: Another seed, another sample of a weak variant; the same question, pixels, variant and seed give the
                same answer.

        Raises:
            DataError: no question or picture of this world, no picture, or an unknown variant.
        """
        if variant not in get_args(Variant):
            raise DataError(
                f"no variant {variant!r} of the shapes teacher", hint=f"one of {', '.join(get_args(Variant))}"
            )
        if variant == "text_only":
            blind = random.Random(f"{variant} {seed} {question}")
            return {"caption": _BLIND_CAPTION, "think": _BLIND_THINK, "answer": guess(question, blind)}
        if image is None:
            raise DataError("the question came without its picture", hint="send the picture, or take variant text_only")
        pixels = pixels_of(image)
        rng = random.Random(f"{variant} {seed} {question} {hashlib.blake2b(pixels.tobytes()).hexdigest()}")
        seen = decode(pixels)
        if variant == "weak_perception":
            seen = corrupt(seen, MISSEEN_RATE, rng)
        slips = variant == "weak_reasoning" and rng.random() < WEAK_SLIP_RATE
        think, answer = reason(seen, question, slip=rng if slips else None)
        return {"caption": caption(seen), "think": think, "answer": answer}

    def demonstration(self, example: Example, seed: int) -> dict[str, str]:
        """A noisy public answer as blocks: half the captions corrupted, a fifth slipping, half without a look-up."""
        rng = random.Random(f"demonstration {seed} {example.id}")
        seen = json.loads(example.truth)["objects"]
        if rng.random() < PUBLIC_CORRUPTED_RATE:
            seen = corrupt(seen, MISSEEN_RATE, rng)
        slips, short = rng.random() < PUBLIC_SLIP_RATE, rng.random() < PUBLIC_SHORT_RATE
        think, answer = reason(seen, example.question, slip=rng if slips else None)
        return {"caption": caption(seen), "think": f"the answer is {answer}" if short else think, "answer": answer}

    def judge(self, blocks: Mapping[str, str], question: str, truth: str) -> dict[str, bool]:
        """What is right in a response.

        Args:
            blocks: The response's blocks; empty when it is malformed, and then nothing is right.
            question: As asked.
            truth: The example's.

        Returns:
            `perception`: the caption tells exactly the true scene. `reasoning`: the answer follows from the response's
            own caption, right or wrong. `accuracy`: the answer is the true one.

        Raises:
            DataError: it is no question of this world.
        """
        true = json.loads(truth)
        seen = read_caption(blocks.get("caption", ""))
        answer = " ".join(blocks.get("answer", "").lower().split())
        return {
            "perception": seen == true["objects"],
            "reasoning": seen is not None and answer == answer_from(seen, question),
            "accuracy": answer == true["answer"],
        }

    @property
    def vocabulary(self) -> list[str]:
        """Every word of its questions and blocks, sorted; the grammar's tags are not among them."""
        numbers = map(str, range(int(CORNER_SUMS[-1]) + 1))
        directions = " ".join(DIRECTIONS).split()
        return sorted({*CELLS, *COLOURS, *CORNERS, *numbers, *directions, *_OTHER_WORDS.split()})

    def probe(self) -> tuple[str, Image.Image, str]:
        """A question, its picture and the expected answer, the same every time: to see whether a teacher sees."""
        example = self.examples("tune", 1, seed=0)[0]
        return example.question, example.image, example.answer

"""The shapes world: examples to train on, a teacher that answers from pixels, and verdicts that know the truth."""

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
from prism_cli.worlds.scenes import (
    CELLS,
    COLOURS,
    CORNERS,
    Scene,
    Split,
    caption,
    corrupt,
    read_caption,
    sample_scene,
)

Variant = Literal["exact", "weak_perception", "weak_reasoning", "text_only"]

MISSEEN_RATE = 0.25  # things of a weak eye's caption, and of a corrupted demonstration's
WEAK_SLIP_RATE = 0.4
PROBES = 3
_PROBE_SEED = 1  # one at which every variant that looks passes twice or more
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
        caption: Exactly what the picture shows.
    """

    id: str
    image: Image.Image
    question: str
    answer: str
    truth: str
    caption: str


class Probe(NamedTuple):
    """One question about two pictures: who answers both right has seen them.

    Attributes:
        question: As asked about either.
        images: The pictures.
        answers: Their right answers, which differ.
        captions: Exactly what they show.
    """

    question: str
    images: tuple[Image.Image, Image.Image]
    answers: tuple[str, str]
    captions: tuple[str, str]


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
        return Example(id, draw(scene, noise), question, answer, truth, caption(scene))

    def oracle(
        self,
        question: str,
        image: Image.Image | None,
        variant: Variant = "exact",
        seed: int = 0,
        told: str | None = None,
    ) -> dict[str, str]:
        """A teacher's answer as blocks (caption, think, answer), read from the pixels.

        Args:
            question: As asked.
            image: The picture; `text_only` never looks at it.
            variant: `exact`; `weak_perception` misses a quarter of the things and reasons from what it saw;
                `weak_reasoning` sees all and slips in 40 % of the answers; `text_only` guesses.
            seed: Another seed, another sample of a weak variant; the same question, pixels, variant and seed give the
                same answer.
            told: A caption of the picture, for whom it is not shown to; `text_only` reasons from it without a fault.

        Raises:
            DataError: no question, picture or caption of this world, no picture, or an unknown variant.
        """
        if variant not in get_args(Variant):
            raise DataError(
                f"no variant {variant!r} of the shapes teacher", hint=f"one of {', '.join(get_args(Variant))}"
            )
        if variant == "text_only" and told is None:
            blind = random.Random(f"{variant} {seed} {question}")
            return {"caption": _BLIND_CAPTION, "think": _BLIND_THINK, "answer": guess(question, blind)}
        seen, pixels = _told(told) if told is not None else _seen(image)
        rng = random.Random(f"{variant} {seed} {question} {hashlib.blake2b(pixels).hexdigest()}")
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

    def verdicts(self, blocks: Mapping[str, str], question: str, truth: str) -> dict[str, bool]:
        """The verdicts on a response: which parts of it are right.

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

    def probe(self) -> list[Probe]:
        """Questions about two pictures each, the same every time: to see whether a teacher sees.

        Among them is one that every variant that looks answers right about both pictures.
        """
        examples = iter(self.examples("tune", 60, seed=_PROBE_SEED))
        pairs: list[Probe] = []
        while len(pairs) < PROBES:
            first, second = next(examples), next(examples)
            other = answer_from(json.loads(second.truth)["objects"], first.question)
            if other != first.answer:
                images, captions = (first.image, second.image), (first.caption, second.caption)
                pairs.append(Probe(first.question, images, (first.answer, other), captions))
        return pairs


def _seen(image: Image.Image | None) -> tuple[Scene, bytes]:
    """The scene on a picture, and its pixels."""
    if image is None:
        raise DataError("the question came without its picture", hint="send the picture, or take variant text_only")
    pixels = pixels_of(image)
    return decode(pixels), pixels.tobytes()


def _told(text: str) -> tuple[Scene, bytes]:
    """The scene of a caption, and the caption's bytes."""
    if (scene := read_caption(text)) is None:
        raise DataError(f"no caption of the shapes world: {text[:80]!r}", hint="tell it like `a1 red square , c3 …`")
    return scene, text.encode()

"""What prefix packing saves the discriminator: one step's scores, and its scores and update, in three ways.

One sequence at a time, as the paper's code does it (the update on every pair, the teacher repeated, each image encoded
again); all parts in one padded batch, each image encoded once; and packed. Same weights, float32, one thread; medians
of processor time. Stops when scores or gradients differ. Run: .venv/bin/python benchmarks/packing.py
"""

import random
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

import prism_cli  # noqa: F401  (before transformers: it lets torchvision load beside a CPU torch)

# isort: split
from transformers import Qwen3VLConfig, Qwen3VLModel

from prism_cli.discriminator.inputs import Comparisons, PromptInputs
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.losses import discriminator_loss
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.settings import LearnerSettings, Upcycling
from prism_cli.discriminator.upcycle import upcycle

ROLLOUTS, PARTS = 16, ("perception", "reasoning")
LENGTHS = {"perception": (40, 100), "reasoning": (80, 200)}
PROMPTS = {256: 14, 512: 21, 1024: 31}  # tokens → visual tokens a side of the picture
VOCABULARY, IMAGE_TOKEN, READOUT, PATCH = 1000, 999, 998, 8
# One read of a sequence at a time is a sum over many; its own median would take minutes.
REPEATS = {"one at a time": 1, "padded": 1, "packed": 5}


class Measured(NamedTuple):
    """Median seconds of processor time, scores, and the gradient where there was an update."""

    seconds: float
    scores: torch.Tensor
    gradient: torch.Tensor | None


def config(
    hidden: int = 128,
    layers: int = 3,
    vision_layers: int = 2,
    vocabulary: int = VOCABULARY,
    image_token: int = IMAGE_TOKEN,
) -> Qwen3VLConfig:
    """A small Qwen3-VL whose vision tower costs about as much a visual token as its text tower, as the real ones do."""
    text = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 64,
        "head_dim": 32,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
    }
    vision = {
        "depth": vision_layers,
        "hidden_size": hidden // 2,
        "intermediate_size": 2 * hidden,
        "num_heads": hidden // 64,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "out_hidden_size": hidden,
        "num_position_embeddings": 1024,
        "deepstack_visual_indexes": [0],
    }
    marks = {"image_token_id": image_token, "video_token_id": 997, "vision_start_token_id": 996}
    return Qwen3VLConfig(text_config=text, vision_config=vision, **marks, vision_end_token_id=995)


def prompt(tokens: int, side: int, image_token: int = IMAGE_TOKEN) -> PromptInputs:
    """Random words around a picture of side² visual tokens."""
    words = [random.randrange(900) for _ in range(tokens - side * side)]
    ids = [*words[:10], *[image_token] * side * side, *words[10:]]
    return PromptInputs(ids, torch.randn(4 * side * side, 6 * PATCH * PATCH), torch.tensor([[1, 2 * side, 2 * side]]))


def comparisons(tokens: int, side: int) -> Comparisons:
    """One prompt, its teacher's answer and all its rollouts."""

    def text() -> dict[str, list[int]]:
        return {part: [random.randrange(900) for _ in range(random.randint(*LENGTHS[part]))] for part in PARTS}

    return Comparisons([prompt(tokens, side)], [text()], [text() for _ in range(ROLLOUTS)], [0] * ROLLOUTS)


# One sequence at a time ----------------------------------------------------------------------------------------------


def score_alone(discriminator: Discriminator, one: PromptInputs, part: list[int]) -> torch.Tensor:
    """The score of one sequence by the model's own forward."""
    row = torch.tensor([[*one.input_ids, *part, READOUT]])
    states = discriminator.body(
        input_ids=row,
        pixel_values=one.pixel_values,
        image_grid_thw=one.image_grid_thw,
        mm_token_type_ids=(row == IMAGE_TOKEN).int(),
        use_cache=False,
    ).last_hidden_state
    return discriminator.score(states[:, -1])[0]


def one_at_a_time(learner: DiscriminatorLearner, batch: Comparisons, update: bool) -> torch.Tensor:
    """Scores (K + N·K,): the teacher's parts, then each rollout's; the update reads both texts of every pair again."""
    discriminator, (view,) = learner.discriminator, batch.prompts
    texts = [text[part] for text in [*batch.teacher, *batch.rollouts] for part in PARTS]
    with torch.no_grad():
        scores = torch.stack([score_alone(discriminator, view, part) for part in texts])
    if update:
        learner.optimizer.zero_grad()
        for rollout in batch.rollouts:
            for part in PARTS:
                pair = (score_alone(discriminator, view, text[part]).view(1, 1) for text in (batch.teacher[0], rollout))
                loss(*pair, ROLLOUTS, len(PARTS)).backward()
        learner.optimizer.step()
    return scores


def loss(teacher: torch.Tensor, rollouts: torch.Tensor, pairs: int, parts: int = 1) -> torch.Tensor:
    """The learner's loss on some of the step's pairs; its penalty is a mean over parts, so one alone gets its share."""
    valid, teacher_row = torch.ones(len(rollouts), dtype=torch.bool), torch.zeros(len(rollouts), dtype=torch.long)
    return discriminator_loss(
        teacher, rollouts, valid, teacher_row, score_penalty=0.001 / parts, valid_count=pairs
    ).loss


# One padded batch ----------------------------------------------------------------------------------------------------


def padded(learner: DiscriminatorLearner, batch: Comparisons, update: bool) -> torch.Tensor:
    """Scores (K + N·K,) from one right-padded batch whose rows share the encoded image; the update on the same pass."""
    discriminator, (view,) = learner.discriminator, batch.prompts
    texts = [text[part] for text in [*batch.teacher, *batch.rollouts] for part in PARTS]
    rows = [torch.tensor([*view.input_ids, *part, READOUT]) for part in texts]
    ends = torch.tensor([len(row) - 1 for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = (torch.arange(ids.shape[1]) <= ends[:, None]).long()
    is_image = ids == IMAGE_TOKEN
    with torch.set_grad_enabled(update):
        image = discriminator.body.get_image_features(view.pixel_values, view.image_grid_thw)
        embeddings = discriminator.body.get_input_embeddings()(ids)
        embeddings = embeddings.masked_scatter(is_image.unsqueeze(-1), image.pooler_output[0].repeat(len(rows), 1))
        states = discriminator.body.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=discriminator.body.get_rope_index(
                ids, is_image.long(), image_grid_thw=view.image_grid_thw.repeat(len(rows), 1)
            )[0],
            visual_pos_masks=is_image,
            deepstack_visual_embeds=[level.repeat(len(rows), 1) for level in image.deepstack_features],
            use_cache=False,
        ).last_hidden_state
        scores = discriminator.score(states[torch.arange(len(rows)), ends])
    if update:
        learner.optimizer.zero_grad()
        loss(*scores.view(-1, len(PARTS)).split([1, ROLLOUTS]), ROLLOUTS).backward()
        learner.optimizer.step()
    return scores.detach()


def packed(learner: DiscriminatorLearner, batch: Comparisons, update: bool) -> torch.Tensor:
    """Scores (K + N·K,) as PRISM takes them."""
    scored = learner.score_and_update(batch) if update else learner.score(batch)
    return torch.cat([scored.teacher, scored.scores]).flatten()


WAYS: dict[str, Callable] = {"one at a time": one_at_a_time, "padded": padded, "packed": packed}


def measured(way: Callable, learner: DiscriminatorLearner, batch: Comparisons, update: bool, repeats: int) -> Measured:
    """Median processor time over repeats, and what the last one gave."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        scores = way(learner, batch, update)
        taken.append(time.process_time() - start)
    gradient = torch.cat([w.grad.flatten() for w in learner.weights if w.grad is not None]) if update else None
    return Measured(statistics.median(taken), scores, gradient)


def assert_exact(found: dict[str, Measured]) -> None:
    """All ways gave the same scores and gradients."""
    exact = found["one at a time"]
    for name in ("padded", "packed"):
        apart = float((found[name].scores - exact.scores).abs().max())
        relative = float((found[name].gradient - exact.gradient).norm() / exact.gradient.norm())
        print(f"  {name}: scores apart by {apart:.1e} at most, gradient by {relative:.1e} of its norm")
        assert max(apart, relative) < 1e-5, f"{name} is not exact"


def learner_of(kind: str) -> DiscriminatorLearner:
    torch.manual_seed(0)
    dense = Qwen3VLModel(config()).eval()
    body = upcycle(dense, Upcycling()) if kind == "moe" else dense
    discriminator = Discriminator(body, PARTS, READOUT, kind=kind, dropout=0.0)
    # One row for the group, and no step: what is timed is reading.
    settings = LearnerSettings(0.0, weight_decay=0.0, max_grad_norm=1e9, micro_batch=ROLLOUTS)
    return DiscriminatorLearner(discriminator, settings)


def main() -> None:
    """Prints times and ratios for each kind of discriminator and length of prompt."""
    torch.set_num_threads(1)
    random.seed(0)
    for kind, sizes in {"dense": PROMPTS, "moe": {256: PROMPTS[256]}}.items():
        learner = learner_of(kind)
        packed(learner, comparisons(64, 4), update=True)
        for tokens, side in sizes.items():
            batch = comparisons(tokens, side)
            print(f"{kind}, prompt of {tokens} tokens, {side * side} of them visual; {ROLLOUTS} rollouts", flush=True)
            for update, work in ((False, "scores"), (True, "scores and update")):
                found = {name: measured(way, learner, batch, update, REPEATS[name]) for name, way in WAYS.items()}
                base = found["one at a time"].seconds
                times = ", ".join(
                    f"{name} {one.seconds:.2f} s (×{base / one.seconds:.1f})" for name, one in found.items()
                )
                print(f"  {work}: {times}", flush=True)
            assert_exact(found)


if __name__ == "__main__":
    main()

"""Alignment from scratch: PRISM's second stage on a picture world, in one file, in under a minute on one CPU core.

No trainer, no recipe, no run folder: the loops are written out here, and the mathematics are the functions that `prism
align` itself calls (grammar, packed rows, discriminator loss, advantages). SFT on public demonstrations teaches a tiny
Qwen3-VL to see and to write the form; alignment then draws it to a teacher of which only the text is needed.
docs/method.md has the formulas and their reasons. P prompts, N rollouts, K parts, T tokens of a response.
"""

import argparse
import random
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from prism_cli.discriminator.inputs import Comparisons, PromptInputs
from prism_cli.discriminator.losses import PairStatistics, discriminator_loss, pair_statistics
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.reader import PartReader
from prism_cli.discriminator.upcycle import dense_body
from prism_cli.models import multimodal, placeholder_ids
from prism_cli.responses import Grammar, Part
from prism_cli.rewards.advantages import align_advantages
from prism_cli.tiny_models.tiny import tiny_model, tiny_processor
from prism_cli.worlds.drawing import draw
from prism_cli.worlds.questions import reason
from prism_cli.worlds.scenes import CELLS, THINGS, Scene, Split, caption, split_of
from prism_cli.worlds.shapes import Shapes

# Perception and reasoning drift apart, so each is scored on its own; the weight is the part's α in the advantage.
GRAMMAR = Grammar({"perception": Part(("caption",), weight=0.5), "reasoning": Part(("think", "answer"), weight=0.5)})
MAX_RESPONSE_TOKENS, SFT_BATCH, SFT_RATE = 28, 32, 4e-3  # a complete response has 21 tokens
# Warm = tells every part apart this often over 10 steps: below there is no signal, near 1 no gradient is left.
WARM, WARMUP_STEPS, WARMUP_PAIRS, WARMUP_RATE = 0.75, 100, 48, 1e-3  # that many steps at most
# The paper: 4 prompts × 16 rollouts, 1e-6 for both models. A model of 0.2 M parameters takes larger steps.
PROMPTS, ROLLOUTS, POLICY_RATE, DISCRIMINATOR_RATE = 12, 8, 2e-4, 2e-4
CLIP, DUAL_CLIP = 0.2, 3.0  # of the ratio of new to old probability; the dual clip where the advantage is negative


# 1. The task ----------------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """A question about a picture as the model reads it, and two texts that answer it."""

    prompt: PromptInputs
    teacher: str
    demonstration: str  # a public one, for SFT


def make_tasks(reader: PartReader, split: Split, count: int) -> list[Task]:
    """Pictures of two things each; the shapes world itself draws up to six, which takes minutes of SFT to see."""
    rng, noise, tasks = random.Random(split), np.random.default_rng(len(split)), []
    while len(tasks) < count:
        scene = {cell: rng.choice(THINGS) for cell in sorted(rng.sample(CELLS, 2), key=CELLS.index)}
        if split_of(scene) != split:  # no scene is in two splits
            continue
        image, question = draw(scene, noise), f"what is at {rng.choice(list(scene))} ?"
        prompt = reader.prompt(multimodal([{"role": "user", "content": question}], [image]))
        # A black box: it reads the pixels and gives text. No logits, no tokenizer in common.
        teacher = GRAMMAR.render(Shapes().oracle(question, image))
        tasks.append(Task(prompt, teacher, GRAMMAR.render(demonstrate(scene, question, rng))))
    return tasks


def demonstrate(scene: Scene, question: str, rng: random.Random) -> dict[str, str]:
    """A public answer: right, but half of the captions leave a thing out and most reasoning skips the look-up."""
    told, (think, answer) = dict(scene), reason(scene, question)
    if rng.random() < 0.5:
        del told[rng.choice(list(told))]
    if rng.random() < 0.7:
        think = f"the answer is {answer}"
    return {"caption": caption(told), "think": think, "answer": answer}


# 2. The policy --------------------------------------------------------------------------------------------------------


class Policy(NamedTuple):
    """A vision-language model with its processor, and what reads its prompts and the parts of its responses."""

    model: Any  # transformers' classes have more than their annotations say
    processor: Any
    reader: PartReader


def make_policy() -> Policy:
    """A Qwen3-VL of 0.2 M parameters with a vocabulary of words."""
    tags = [mark for tag in GRAMMAR.tags for mark in (f"<{tag}>", f"</{tag}>")]
    processor = tiny_processor([*Shapes().vocabulary, *tags], pixels=48 * 48)
    model = tiny_model(processor, hidden=64, layers=2, vision_hidden=32)
    return Policy(model, processor, PartReader(processor, GRAMMAR))


def model_inputs(policy: Policy, prompts: Sequence[PromptInputs], responses: Tensor | None = None) -> dict[str, Any]:
    """Prompts, with the responses (N, T) behind them if given. All prompts of this task have the same length."""
    ids = torch.tensor([prompt.input_ids for prompt in prompts])
    ids = ids if responses is None else torch.cat([ids, responses], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),  # padding stands behind the response, where no counted token looks
        "mm_token_type_ids": (ids == policy.model.config.image_token_id).long(),
        "pixel_values": torch.cat([prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]),
        "image_grid_thw": torch.cat([prompt.image_grid_thw for prompt in prompts if prompt.image_grid_thw is not None]),
    }


def sample(policy: Policy, prompts: Sequence[PromptInputs]) -> Tensor:
    """A response (N, T) to each prompt, at temperature 1 from the whole distribution; padded behind its end token."""
    inputs, banned = model_inputs(policy, prompts), placeholder_ids(policy.processor)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "suppress_tokens": banned}
    ids = policy.model.generate(**inputs, **options, max_new_tokens=MAX_RESPONSE_TOKENS)
    return ids[:, inputs["input_ids"].shape[1] :]


def log_probabilities(policy: Policy, prompts: Sequence[PromptInputs], responses: Tensor) -> tuple[Tensor, Tensor]:
    """(N, T) log-probability of each response token in nats, and (N, T) bool: the tokens that are no padding."""
    logits = policy.model(**model_inputs(policy, prompts, responses)).logits[:, -responses.shape[1] - 1 : -1]
    logits[..., placeholder_ids(policy.processor)] = -torch.inf  # as in `sample`
    chosen = logits.log_softmax(-1).gather(-1, responses.unsqueeze(-1)).squeeze(-1)
    return chosen, responses != policy.processor.tokenizer.pad_token_id


def encode(policy: Policy, texts: Sequence[str]) -> Tensor:
    """Texts as responses (N, T): tokens, the end token, padding."""
    rows = [f"{text} {policy.processor.tokenizer.eos_token}" for text in texts]
    return policy.processor.tokenizer(rows, padding=True, padding_side="right", return_tensors="pt")["input_ids"]


def take_step(optimizer: Optimizer, loss: Tensor) -> None:
    """One optimiser step, the gradient scaled down to norm 1; one that is not finite ends the run."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0, error_if_nonfinite=True)
    optimizer.step()


def sft(policy: Policy, tasks: Sequence[Task], steps: int, rng: random.Random) -> None:
    """Supervised fine-tuning: cross-entropy of the demonstrations' tokens, prompt excluded."""
    optimizer = AdamW(policy.model.parameters(), SFT_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, SFT_RATE, steps, pct_start=0.1)
    for step in range(1, steps + 1):
        rows = rng.sample(tasks, SFT_BATCH)
        responses = encode(policy, [row.demonstration for row in rows])
        chosen, counted = log_probabilities(policy, [row.prompt for row in rows], responses)
        loss = -chosen[counted].mean()
        take_step(optimizer, loss)
        schedule.step()
        if step % 50 == 0:
            print(f"{step:6d}  loss {loss.item():.3f} nats a token", flush=True)


# 3. The discriminator -------------------------------------------------------------------------------------------------


def make_discriminator(policy: Policy) -> Discriminator:
    """A copy of the policy's body with a linear head. `mean`, no dropout, std 1: steadier at this size than the paper's
    read-out at one token, dropout 0.1 and std 0.02."""
    body, readout_id = dense_body(policy.model), policy.processor.tokenizer.eos_token_id
    options = {"kind": "dense", "readout": "mean", "dropout": 0.0, "head_std": 1.0}
    return Discriminator(body, list(GRAMMAR.parts), readout_id, **options)


def compare(policy: Policy, tasks: Sequence[Task], responses: Tensor) -> Comparisons:
    """Rollouts (N, T), N / P in a row for each task, beside its teacher answer; all texts split into parts alike."""
    return Comparisons(
        prompts=[task.prompt for task in tasks],
        teacher=[policy.reader.text(task.teacher) for task in tasks],
        rollouts=[policy.reader.tokens(row) for row in responses.tolist()],  # None where malformed
        prompt_of=[n * len(tasks) // len(responses) for n in range(len(responses))],
    )


def equal_parts(batch: Comparisons) -> Tensor:
    """(N, K) bool: which parts have the same tokens as the teacher's."""
    pairs = [(parts or {}, batch.teacher[p] or {}) for p, parts in zip(batch.prompt_of, batch.rollouts, strict=True)]
    return torch.tensor([[k in ours and ours[k] == theirs[k] for k in GRAMMAR.parts] for ours, theirs in pairs])


def score_and_update(
    discriminator: Discriminator, optimizer: Optimizer, batch: Comparisons
) -> tuple[Tensor, PairStatistics]:
    """The scores (N, K) of the rollouts, NaN where malformed, and one Bradley-Terry step on the pass that gave them."""
    names, prompt_of = discriminator.parts, torch.tensor(batch.prompt_of)
    valid = torch.tensor([parts is not None for parts in batch.rollouts])
    responses = [*enumerate(batch.teacher), *zip(batch.prompt_of, batch.rollouts, strict=True)]
    texts = [(p, parts[name]) for p, parts in responses if parts is not None for name in names]
    # One row of [prompts | parts]: a prompt and its picture are computed once, however many parts continue it.
    scores = discriminator(discriminator.inputs(batch.prompts, texts)).view(-1, len(names))
    teacher, well_formed = scores.split([len(batch.teacher), int(valid.sum())])
    rollouts = torch.full((len(valid), len(names)), torch.nan)
    rollouts[valid] = well_formed
    loss = discriminator_loss(teacher, rollouts, valid, prompt_of)
    if valid.any():  # else there is nothing to compare
        take_step(optimizer, loss.loss)
    return rollouts.detach(), pair_statistics(teacher, rollouts, valid, prompt_of, equal_parts(batch), loss.parts)


def accuracy(steps: Sequence[PairStatistics]) -> Tensor:
    """(K,) share of pairs in which the teacher scores higher, pairs of equal text left out."""
    return torch.stack([step.wins for step in steps]).sum(0) / torch.stack([step.unequal for step in steps]).sum(0)


def warm_up(policy: Policy, discriminator: Discriminator, tasks: Sequence[Task], rng: random.Random) -> Tensor:
    """Trains the discriminator alone until it is warm, on one sample a prompt; gives its last accuracy (K,)."""
    optimizer, last = AdamW(discriminator.parameters(), WARMUP_RATE, weight_decay=0.01), deque(maxlen=10)
    for _ in range(WARMUP_STEPS):
        rows = rng.sample(tasks, WARMUP_PAIRS)
        batch = compare(policy, rows, sample(policy, [row.prompt for row in rows]))
        last.append(score_and_update(discriminator, optimizer, batch)[1])
        if len(last) == last.maxlen and (accuracy(last) >= WARM).all():
            break
    return accuracy(last)


# 4. Alignment ---------------------------------------------------------------------------------------------------------


def policy_loss(new: Tensor, old: Tensor, advantages: Tensor, counted: Tensor) -> Tensor:
    """Clipped policy gradient, mean over the batch's tokens. No KL: an anchor to the SFT policy would fight the repair.

    (N, T) log-probabilities `new`, with a gradient, and `old`, when sampled; (N,) advantages, a response's for each of
    its tokens; (N, T) `counted`, the tokens that are no padding.
    """
    ratio, advantages = (new - old).exp().clamp(max=DUAL_CLIP), advantages.unsqueeze(1)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)[counted].mean()


def align(policy: Policy, discriminator: Discriminator, tasks: Sequence[Task], steps: int, rng: random.Random) -> None:
    """Adversarial training: the discriminator learns to tell teacher from policy, the policy to be taken for it."""
    policy_optimizer = AdamW(policy.model.parameters(), POLICY_RATE, weight_decay=0.01)
    discriminator_optimizer = AdamW(discriminator.parameters(), DISCRIMINATOR_RATE, weight_decay=0.01)
    weights = policy.reader.weights()
    print(f"{'':6}{'accuracy':>22}{'malformed':>12}{'reward':>8}{'equal to the teacher':>24}")
    print(f"{'step':>6}{'perception':>12}{'reasoning':>10}{'':20}{'perception':>14}{'reasoning':>10}")
    for step in range(1, steps + 1):
        # Roll out, put the teacher's answers beside the rollouts, split all texts into parts.
        rows = rng.sample(tasks, PROMPTS)
        prompts = [row.prompt for row in rows for _ in range(ROLLOUTS)]
        responses = sample(policy, prompts)
        batch = compare(policy, rows, responses)
        # The scores by the weights before its update are the rewards: one pass gives both.
        scores, statistics = score_and_update(discriminator, discriminator_optimizer, batch)
        # Normalised within a prompt's group, part by part; the floor keeps near-equal scores from becoming unit noise.
        valid = ~scores.isnan().any(1)
        advantages = align_advantages(scores, valid, weights, ROLLOUTS, std_floor=0.25)
        # Every batch is used once, so the ratio is 1 here: the clip binds only where a batch is used again.
        new, counted = log_probabilities(policy, prompts, responses)
        take_step(policy_optimizer, policy_loss(new, new.detach(), advantages, counted))
        if step == 1 or step % 5 == 0:
            # The reward may fall while the policy improves: the discriminator learns too.
            reward = (scores[valid] @ weights).mean()
            values = [*accuracy([statistics]), 1 - valid.float().mean(), reward, *equal_parts(batch).float().mean(0)]
            print("{:6}{:12.2f}{:10.2f}{:12.2f}{:8.2f}{:14.2f}{:10.2f}".format(step, *map(float, values)), flush=True)


def nearness(policy: Policy, tasks: Sequence[Task]) -> dict[str, float]:
    """How near the policy is to the teacher on held-out pictures: over samples, and by the teacher's likelihood."""
    rows = [task for task in tasks for _ in range(4)]
    batch = compare(policy, rows, sample(policy, [row.prompt for row in rows]))
    perception, reasoning = equal_parts(batch).float().mean(0).tolist()
    with torch.no_grad():
        answers = encode(policy, [task.teacher for task in tasks])
        chosen, counted = log_probabilities(policy, [task.prompt for task in tasks], answers)
    return {
        "malformed": batch.rollouts.count(None) / len(rows),
        "perception equals the teacher's": perception,
        "reasoning equals the teacher's": reasoning,
        "teacher's log-probability a token": chosen[counted].mean().item(),
    }


def main() -> None:
    """SFT, the discriminator's warm-up, alignment; printed, with the nearness to the teacher before and after."""
    parser = argparse.ArgumentParser(description="PRISM's alignment from scratch on a picture world.")
    parser.add_argument("--sft-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=20, help="of alignment")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads that wait for each other cost more than matrices of this size
    torch.manual_seed(0)
    rng, policy = random.Random(0), make_policy()
    tasks, held_out = make_tasks(policy.reader, "train", 1000), make_tasks(policy.reader, "test", 128)
    print(f"A teacher's answer:   {tasks[0].teacher}\nA demonstration:      {tasks[0].demonstration}\n\nSFT")
    sft(policy, tasks, options.sft_steps, rng)
    before = nearness(policy, held_out)
    discriminator = make_discriminator(policy)
    warm = warm_up(policy, discriminator, tasks, rng)
    print(f"\nDiscriminator, warm: accuracy {warm[0]:.2f} perception, {warm[1]:.2f} reasoning\n\nAlignment")
    align(policy, discriminator, tasks, options.steps, rng)
    print(f"\n{'Held-out pictures':36}{'before':>10}{'after':>10}")
    for name, after in nearness(policy, held_out).items():
        print(f"{name:36}{before[name]:10.3f}{after:10.3f}")


if __name__ == "__main__":
    main()

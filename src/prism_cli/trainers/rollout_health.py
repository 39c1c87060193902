"""Signs in the metrics that rollouts teach nothing, or the wrong thing: pure functions from a history to a warning."""

from collections.abc import Sequence

from prism_cli.discriminator.health import WATCHED_STEPS, HealthWarning, History, lately

LONGER, SHORTER = 1.5, 0.67
MALFORMED = 0.5
# Logged steps that are averaged, so that one odd batch is no alarm.
SMOOTHED = 5
# Three of four rollouts are made for nothing. Runs that go well pass one half as they come to solve their prompts.
ALL_EQUAL = 0.75
# Learning sharpens a policy: runs that go well end at a third of their first entropy.
ENTROPY_LEFT = 0.2
# Nats a token. A response of 100 tokens then has one nat in all: most rollouts of a prompt are the same text.
NO_ENTROPY = 0.01
# A response that was cut has no answer and teaches the policy that what it was about to say is wrong.
CUT = 0.2
# A rise of a tenth in well-formed responses brings a tenth of the right answers with it, unless those get worse.
FORMAT_UP, ACCURACY_UP, FORMAT_STEPS = 0.1, 0.02, 60
# Nats a token: on average, a sampled token has become 1.6 times as likely as at the start.
FAR = 0.5
UNSCORED = 0.2
# Nats a token between vLLM's log-probability of a token it sampled and the trainer's. Rounding to bfloat16 makes about
# 0.02; pictures read otherwise made 0.1.
GENERATOR_GAP = 0.05
# Share of tokens, or with a ratio a response (GSPO) of responses, whose update is cut. GSPO's narrow range cuts half of
# them when all is well.
CLIPPED_TOKENS, CLIPPED_RESPONSES = 0.2, 0.9


def length_drift(history: History) -> HealthWarning | None:
    """Responses grew or shrank much since the start."""
    ends = _ends(history, "completions/mean_length")
    if ends is None or SHORTER * ends[0] <= ends[1] <= LONGER * ends[0]:
        return None
    before, now = ends
    more = now > before
    return HealthWarning(
        "length_drift",
        f"responses went from {before:.0f} to {now:.0f} tokens: being {'long' if more else 'short'} pays",
        "compare with the teacher's length (prism drift); lower optimizer.learning_rate, or start from a checkpoint "
        "before it happened (--from RUN@N)",
    )


def format_collapse(history: History) -> HealthWarning | None:
    """Most responses are malformed, so there is hardly anything to learn from."""
    mean = _now(history, "responses/malformed_fraction")
    if mean is None or mean <= MALFORMED:
        return None
    return HealthWarning(
        "format_collapse",
        f"{mean:.0%} of the responses are malformed: what is learned comes from the few others",
        "raise max_response_tokens if they are cut off, train SFT longer on the form, or lower optimizer.learning_rate",
    )


def cut_responses(history: History) -> HealthWarning | None:
    """Many responses run into the limit."""
    mean = _now(history, "completions/clipped_ratio")
    if mean is None or mean <= CUT:
        return None
    return HealthWarning(
        "cut_responses",
        f"{mean:.0%} of the responses are cut at max_response_tokens: they have no answer, right or wrong",
        "raise max_response_tokens; if they repeat themselves instead (see the rollouts in the report), in RL give "
        "rewards.repetition a weight or take algorithm.type=dapo, which penalises length before the limit; in align "
        "lower optimizer.learning_rate",
    )


def entropy_collapse(history: History) -> HealthWarning | None:
    """The policy says nearly the same each time, so there is nothing to choose from."""
    ends, lasting = _ends(history, "entropy"), lately(history, "entropy")
    if ends is not None and ends[1] < ENTROPY_LEFT * ends[0]:
        trend = f"went from {ends[0]:.3f} to {ends[1]:.3f} nats a token: the policy stops trying other answers"
        cure = (
            "lower optimizer.learning_rate, in RL raise algorithm.clip_high (DAPO has 0.28), or start from a "
            "checkpoint before it happened (--from RUN@N)"
        )
    elif lasting and _mean(lasting) < NO_ENTROPY:
        trend = f"is {_mean(lasting):.3f} nats a token: rollouts of a prompt are nearly all the same text"
        cure = "train SFT for fewer steps, or take another checkpoint of it (--from RUN@N); raise temperature"
    else:
        return None
    return HealthWarning("entropy_collapse", f"entropy {trend}", cure)


def far_from_start(history: History) -> HealthWarning | None:
    """The policy has left the one it started from; seen only where `kl` has a weight."""
    mean = _now(history, "kl")
    if mean is None or mean <= FAR:
        return None
    return HealthWarning(
        "far_from_start",
        f"the policy is {mean:.2f} nats a token from where it started, and `kl` does not hold it",
        "lower optimizer.learning_rate or raise kl; check with prism eval that it is still right, not only rewarded",
    )


def clipped_ratios(history: History, limit: float) -> HealthWarning | None:
    """Later updates of a batch are mostly cut off; seen only where a batch gets several."""
    # The first update of a batch has ratios of 1, so its zeros say nothing.
    values = [value for value in lately(history, "clip_ratio/region_mean") if value]
    if not values or _mean(values) <= limit:
        return None
    return HealthWarning(
        "clipped_ratios",
        f"{_mean(values):.0%} of the ratios are clipped after a batch's first update: the policy moves on from its "
        "rollouts faster than they are made anew",
        "lower optimizer.learning_rate, or trainer.num_iterations",
    )


def generator_gap(history: History) -> HealthWarning | None:
    """vLLM's rollouts are not the policy's; seen only where their log-probabilities are compared."""
    mean = _now(history, "sampling/sampling_logp_difference/mean")
    if mean is None or mean <= GENERATOR_GAP:
        return None
    return HealthWarning(
        "generator_gap",
        f"vLLM and the trainer differ by {mean:.2f} nats on the tokens that vLLM sampled: the policy learns from "
        "rollouts that are not quite its own",
        "compute both in one type (generation.options.dtype), leave quantisation out of generation.options; if it "
        "stays, compare with generation.type=transformers",
    )


def nothing_to_learn(history: History) -> HealthWarning | None:
    """In most groups all rollouts are worth the same."""
    resampled = bool(lately(history, "sampling/kept"))
    values = _dropped_shares(history) if resampled else lately(history, "frac_reward_zero_std")
    if not values or _mean(values) < ALL_EQUAL:
        return None
    accuracy = lately(history, "rewards/accuracy/mean")
    solved = bool(accuracy) and _mean(accuracy) >= 0.5
    cure = (
        "harder prompts: choose them by pass rate with prism data curate"
        if solved
        else "prompts that it sometimes solves: choose them with prism data curate, or train SFT longer"
    )
    return HealthWarning(
        "nothing_to_learn",
        f"in {_mean(values):.0%} of the groups of the last {WATCHED_STEPS} steps all rewards were equal"
        + (f" (accuracy {_mean(accuracy):.0%})" if accuracy else "")
        + ": they teach nothing",
        cure + ("" if resampled else "; algorithm.type=dapo rolls out others in their place"),
    )


def format_milked(history: History) -> HealthWarning | None:
    """More responses are well-formed and yet no more are right."""
    form, right = (_first_and_last(history, f"rewards/{name}/mean") for name in ("format", "accuracy"))
    if form is None or right is None or form[1] - form[0] < FORMAT_UP or right[1] - right[0] >= ACCURACY_UP:
        return None
    return HealthWarning(
        "format_milked",
        f"well-formed responses went from {form[0]:.0%} to {form[1]:.0%} and right ones from {right[0]:.0%} to "
        f"{right[1]:.0%}: the policy collects the reward for its form and answers no better",
        "lower rewards.format, train SFT longer on the form so that there is nothing to collect, and choose prompts "
        "that it sometimes solves (prism data curate)",
    )


def unscored(history: History) -> HealthWarning | None:
    """Many responses have no reward, because the LLM judge or a function of the user's fails."""
    mean = _now(history, "rewards/unscored_fraction")
    if mean is None or mean <= UNSCORED:
        return None
    return HealthWarning(
        "unscored",
        f"{mean:.0%} of the responses could not be scored: they teach nothing",
        "see to the endpoint in rewards.llm_judge, or to what a function in rewards.custom returns None for",
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _values(history: History, name: str) -> list[float]:
    return [line[name] for line in history if name in line]


def _now(history: History, name: str) -> float | None:
    """A metric's mean over its last logged steps; None with too few."""
    values = _values(history, name)
    return _mean(values[-SMOOTHED:]) if len(values) >= SMOOTHED else None


def _ends(history: History, name: str) -> tuple[float, float] | None:
    """A metric's mean over its first logged steps and over its last; None while they are the same ones."""
    values = _values(history, name)
    return (_mean(values[:SMOOTHED]), _mean(values[-SMOOTHED:])) if len(values) >= 2 * SMOOTHED else None


def _first_and_last(history: History, name: str) -> tuple[float, float] | None:
    """A metric's mean over the first 20 steps and over the last 20; None in a young run."""
    if not history or history[-1]["step"] - history[0]["step"] + 1 < FORMAT_STEPS:
        return None
    start = history[0]["step"] + WATCHED_STEPS
    first = [line[name] for line in history if name in line and line["step"] < start]
    last = lately(history, name)
    return (_mean(first), _mean(last)) if first and last else None


def _dropped_shares(history: History) -> list[float]:
    """Of dynamic sampling: the share of groups a step that were dropped because their accuracy was all equal."""
    if not lately(history, "sampling/kept"):
        return []
    shares = []
    for line in history:
        if line["step"] > history[-1]["step"] - WATCHED_STEPS and "sampling/kept" in line:
            dropped = sum(line.get(f"sampling/dropped_{why}", 0) for why in ("solved", "failed"))
            useful = line["sampling/kept"] + line.get("sampling/unused", 0)
            shares.append(dropped / ((useful + dropped) or 1))
    return shares

import copy

import pytest
import torch
from PIL import Image
from tests.tiny import tiny_policy
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import load_balancing_loss_func

from prism_cli.discriminator.inputs import PromptInputs, build_score_inputs
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.settings import Upcycling
from prism_cli.discriminator.upcycle import dense_body, upcycle
from prism_cli.errors import CheckpointError, DataError, RecipeError

READOUT = 60


def picture(color, spot=(0, 0), size=48):
    image = Image.new("RGB", (size, size), (128, 128, 128))
    image.paste(color, (*spot, spot[0] + 16, spot[1] + 16))
    return image


def prompt(*images, question="what is at b2 ?"):
    _, processor = tiny_policy()
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    batch = processor(text=[text], images=list(images) or None, return_tensors="pt")
    return PromptInputs(batch["input_ids"][0].tolist(), batch.get("pixel_values"), batch.get("image_grid_thw"))


def ids(text):
    return tiny_policy()[1].tokenizer(text).input_ids


def discriminator(kind="dense", readout="last", **options):
    policy, _ = tiny_policy()
    body = upcycle(policy, Upcycling(noise_scale="relative", noise=0.1)) if kind == "moe" else dense_body(policy)
    torch.manual_seed(0)
    return Discriminator(body, ("perception", "reasoning"), READOUT, kind=kind, readout=readout, **options)


def scores(scorer, prompts, rows):
    with torch.no_grad():
        return scorer(scorer.inputs(prompts, rows))


SHORT, LONG = "b2 red square", "a1 blue circle , b2 red square , c3 green triangle"
KINDS = ["moe", "dense", "text_only"]


def test_a_row_is_all_prompts_then_all_parts_each_ended_by_the_readout_token():
    batch = build_score_inputs([PromptInputs([1, 2]), PromptInputs([3])], [(1, [5, 6]), (0, [7])], 9)
    assert batch.input_ids.tolist() == [[1, 2, 3, 5, 6, 9, 7, 9]]
    assert batch.packing.starts.tolist() == [3, 6]
    assert batch.packing.ends.tolist() == [5, 7]
    assert batch.packing.prompt_of.tolist() == [1, 0]


def wide(color):
    """A picture of two visual tokens by four, beside the usual three by three."""
    return picture(color).resize((96, 48))


def mixed_batch():
    """Four prompts: one picture, none, two, and one of another size; parts of different lengths, out of order."""
    prompts = [
        prompt(picture("red")),
        prompt(question="what is right of a1 ?"),
        prompt(picture("blue"), picture("red", (16, 32))),
        prompt(wide("green"), question="what is at a1 and so ?"),
    ]
    return prompts, [(0, ids(SHORT)), (2, ids(LONG)), (1, ids(LONG)), (3, ids(SHORT)), (0, ids(LONG)), (3, ids("a1"))]


def alone(scorer, prompts, rows, **options):
    """The model's own forward over `[prompt | part | read-out]`, one sequence at a time, images and all."""
    outputs = []
    for p, part in rows:
        row = torch.tensor([[*prompts[p].input_ids, *part, READOUT]])
        scorer.body.rope_deltas = None  # what it remembers of the last sequence
        outputs.append(
            scorer.body(
                input_ids=row,
                attention_mask=torch.ones_like(row),
                pixel_values=prompts[p].pixel_values,
                image_grid_thw=prompts[p].image_grid_thw,
                mm_token_type_ids=(row == scorer.body.config.image_token_id).int(),
                **options,
            )
        )
    return outputs


def gradients(scorer):
    found = {name: weight.grad.clone() for name, weight in scorer.named_parameters() if weight.grad is not None}
    scorer.zero_grad()
    return found


def assert_same_gradients(packed, expected, relative=1e-5):
    assert set(packed) == set(expected)
    scale = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert float((packed[name] - gradient).norm()) <= relative * max(float(gradient.norm()), 0.1 * scale), name


@pytest.mark.parametrize("kind", ["moe", "dense"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_scores_and_gradients_equal_the_models_own_one_sequence_at_a_time(kind, checkpointing):
    scorer, (prompts, rows) = discriminator(kind), mixed_batch()
    weights = torch.linspace(-1, 1, len(rows))
    own = scorer.score(torch.stack([output.last_hidden_state[0, -1] for output in alone(scorer, prompts, rows)]))
    (own * weights).sum().backward()
    expected = gradients(scorer)
    if checkpointing:
        scorer.recompute_activations()
    packed = scorer(scorer.inputs(prompts, rows))
    assert packed.tolist() == pytest.approx(own.tolist(), abs=1e-5)
    (packed * weights).sum().backward()
    assert_same_gradients(gradients(scorer), expected)


def test_the_mean_readout_equals_the_models_own_one_sequence_at_a_time():
    scorer, (prompts, rows) = discriminator(readout="mean"), mixed_batch()
    with torch.no_grad():
        states = [output.last_hidden_state[0] for output in alone(scorer, prompts, rows)]
        means = [state[-len(part) - 1 : -1].mean(0) for state, (_, part) in zip(states, rows, strict=True)]
        assert scores(scorer, prompts, rows).tolist() == pytest.approx(
            scorer.score(torch.stack(means)).tolist(), abs=1e-5
        )


def test_the_balance_loss_counts_a_prompt_once_a_part():
    scorer, (prompts, rows) = discriminator("moe"), mixed_batch()
    with torch.no_grad():
        own = [output.router_logits for output in alone(scorer, prompts, rows, output_router_logits=True)]
        layers = tuple(torch.cat(layer) for layer in zip(*own, strict=True))
        packed = scorer.read(scorer.inputs(prompts, rows), balance=True).balance
    assert float(packed) == pytest.approx(float(load_balancing_loss_func(layers, 4, 2)), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("readout", ["last", "mean"])
def test_neighbours_do_not_change_a_parts_score(kind, readout):
    scorer = discriminator(kind, readout)
    prompts = [
        prompt(picture("red")),
        prompt(question="what is right of a1 ?"),
        prompt(picture("blue"), picture("red")),
    ]
    rows = [(0, ids(SHORT)), (2, ids(LONG)), (1, ids(LONG)), (0, ids(LONG))]
    together = scores(scorer, prompts, rows)
    alone = [float(scores(scorer, [prompts[p]], [(0, part)])) for p, part in rows]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)


def test_the_mean_is_taken_over_the_parts_tokens_alone():
    scorer, one = discriminator(readout="mean"), prompt()
    batch = scorer.inputs([one], [(0, ids("red square"))])
    with torch.no_grad():
        states = scorer.body(input_ids=batch.input_ids).last_hidden_state[0]
        mean = scorer.read(batch).hidden[0]
    start = len(one.input_ids)
    assert torch.allclose(mean, states[start : start + 2].mean(0), atol=1e-5)


def test_image_positions_have_three_axes_and_text_continues_after_the_larger_side():
    scorer, one = discriminator(), prompt(picture("red"))
    positions = scorer.positions(scorer.inputs([one], [(0, ids(SHORT))]))[:, 0]
    start = one.input_ids.index(scorer.body.config.image_token_id)
    assert (positions[0, start : start + 9] - start).tolist() == [0] * 9
    assert (positions[1, start : start + 9] - start).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (positions[2, start : start + 9] - start).tolist() == [0, 1, 2] * 3
    assert positions[:, start + 9].tolist() == [start + 3] * 3


def test_scores_use_the_three_axes():
    scorer = discriminator()
    batch = scorer.inputs([prompt(picture("red"))], [(0, ids(SHORT))])
    with torch.no_grad():
        before = scorer(batch)
        scorer.positions = lambda batch: torch.arange(batch.input_ids.shape[1]).expand(3, 1, -1)
        flat = scorer(batch)
    assert abs(float(before - flat)) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_text_only_discriminator_is_blind(kind):
    scorer, rows = discriminator(kind), [(0, ids(SHORT))]
    red, blue, moved = (
        float(scores(scorer, [prompt(picture(*spec))], rows)) for spec in [("red",), ("blue",), ("red", (32, 32))]
    )
    if kind == "text_only":
        assert red == blue == moved == float(scores(scorer, [prompt()], rows))
    else:
        assert min(abs(red - blue), abs(red - moved)) > 1e-4


def test_each_row_sees_its_own_prompts_picture():
    scorer = discriminator()
    prompts, rows = [prompt(picture("red")), prompt(picture("blue"))], [(1, ids(SHORT)), (0, ids(SHORT))]
    swapped = scores(scorer, prompts[::-1], [(0, ids(SHORT)), (1, ids(SHORT))])
    assert torch.allclose(scores(scorer, prompts, rows), swapped, atol=1e-6)
    assert abs(float(swapped[0] - swapped[1])) > 1e-4


def test_the_picture_is_encoded_once_however_many_rows_show_it(monkeypatch):
    scorer, sizes = discriminator(), []
    encode = scorer.body.visual.forward
    monkeypatch.setattr(
        scorer.body.visual, "forward", lambda pixels, **k: sizes.append(len(pixels)) or encode(pixels, **k)
    )
    scores(scorer, [prompt(picture("red"))], [(0, ids(SHORT))] * 5)
    assert sizes == [36]


def test_image_tokens_without_an_image_are_refused():
    scorer, one = discriminator(), prompt(picture("red"))
    stray = [scorer.body.config.image_token_id]
    with pytest.raises(DataError, match="10 image tokens for 9"):
        scores(scorer, [one], [(0, stray)])


def test_dropout_acts_in_its_factors_alone():
    scorer = discriminator(dropout=0.5).train()
    hidden = torch.randn(8, 64)
    assert torch.equal(scorer.score(hidden), scorer.score(hidden))
    factors = scorer.dropout_factors(8)
    assert set(factors.unique().tolist()) == {0, 2}
    assert not torch.equal(factors, scorer.dropout_factors(8))
    assert discriminator(dropout=0.0).dropout_factors(8) is None


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_comes_back_bit_equal(kind, tmp_path):
    scorer = discriminator(kind, "mean", dropout=0.3)
    scorer.save_pretrained(tmp_path)
    again = Discriminator.from_pretrained(tmp_path)
    assert (again.kind, again.readout, again.dropout, again.parts) == (kind, "mean", 0.3, ("perception", "reasoning"))
    state = again.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in scorer.state_dict().items())
    rows = [(0, ids(SHORT)), (0, ids(LONG))]
    assert torch.equal(scores(scorer, [prompt(picture("red"))], rows), scores(again, [prompt(picture("red"))], rows))


def test_half_precision_weights_stay_half_and_scores_are_single(tmp_path):
    policy, _ = tiny_policy()
    scorer = Discriminator(upcycle(copy.deepcopy(policy).to(torch.bfloat16), Upcycling()), ("all",), READOUT)
    scorer.save_pretrained(tmp_path)
    again = Discriminator.from_pretrained(tmp_path)
    assert {weight.dtype for weight in again.parameters()} == {torch.bfloat16}
    assert scores(again, [prompt(picture("red"))], [(0, ids(SHORT))]).dtype == torch.float32


def test_a_folder_without_a_discriminator_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Discriminator.from_pretrained(tmp_path)


def test_a_body_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="moe discriminator needs a Qwen3VLMoeModel"):
        Discriminator(dense_body(tiny_policy()[0]), ("all",), READOUT, kind="moe")


def test_upcycling_without_noise_changes_no_hidden_state():
    policy, processor = tiny_policy()
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is at b2 ?"}]}]
    )
    batch = processor(text=[text], images=[picture("red", (16, 0))], return_tensors="pt")
    moe = upcycle(policy, Upcycling(experts=3, top_k=2, noise=0.0))
    with torch.no_grad():
        difference = moe(**batch).last_hidden_state - policy.model(**batch).last_hidden_state
    assert difference.abs().max() < 1e-5


def test_experts_differ_by_the_noise_asked_for():
    policy, _ = tiny_policy()
    dense = policy.model.language_model.layers[0].mlp.down_proj.weight.detach()
    for scale, expected in [("absolute", 0.01), ("relative", 0.01 * float(dense.std()))]:
        experts = (
            upcycle(policy, Upcycling(noise=0.01, noise_scale=scale)).language_model.layers[0].mlp.experts.down_proj
        )
        assert float((experts - dense).detach().std()) == pytest.approx(expected, rel=0.05)
        assert not torch.equal(experts[0], experts[1])


def test_upcycling_copies_all_but_the_mlps_and_makes_every_layer_sparse():
    policy, _ = tiny_policy()
    moe = upcycle(policy, Upcycling(experts=4, top_k=2, seed=3))
    dense, sparse = policy.model.state_dict(), moe.state_dict()
    shared = set(dense) & set(sparse)
    assert {name for name in dense if name not in shared} == {
        f"language_model.layers.{i}.mlp.{m}_proj.weight" for i in (0, 1) for m in ("gate", "up", "down")
    }
    assert all(torch.equal(dense[name], sparse[name]) for name in shared)
    routers = torch.cat([layer.mlp.gate.weight.detach().flatten() for layer in moe.language_model.layers])
    assert float(routers.std()) == pytest.approx(0.02, rel=0.15)
    assert (moe.config.text_config.num_experts, moe.config.text_config.num_experts_per_tok) == (4, 2)


def test_the_seed_decides_the_noise_and_the_global_random_state_is_left_alone():
    policy, _ = tiny_policy()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same, other = (
        upcycle(policy, Upcycling(seed=s)).language_model.layers[1].mlp.experts.gate_up_proj for s in (1, 1, 2)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_more_choices_than_experts_are_refused():
    with pytest.raises(RecipeError, match="can't visit 3"):
        upcycle(tiny_policy()[0], Upcycling(experts=2, top_k=3))


def test_a_dense_body_is_a_copy():
    policy, _ = tiny_policy()
    body = dense_body(policy)
    with torch.no_grad():
        body.language_model.norm.weight.zero_()
    assert policy.model.language_model.norm.weight.abs().sum() > 0


def test_the_balance_loss_is_least_when_all_experts_are_used_alike():
    scorer = discriminator("moe")
    batch = scorer.inputs([prompt(picture("red"))], [(0, ids(LONG))])
    with torch.no_grad():
        for layer in scorer.body.language_model.layers:
            layer.mlp.gate.weight.zero_()
        even = float(scorer.read(batch, balance=True).balance)
    assert even == pytest.approx(2.0, abs=1e-5)  # top-2 of 4 at probability 1/4: 4 · Σ_e (share_e · 1/4) = Σ shares = 2
    assert scorer.read(batch).balance is None

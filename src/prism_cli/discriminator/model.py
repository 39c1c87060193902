"""The discriminator: a Qwen3-VL body and a linear head that gives each part of a response one score."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3VLModel, Qwen3VLMoeModel
from transformers.integrations import deepspeed as transformers_deepspeed
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import load_balancing_loss_func

from prism_cli.discriminator.inputs import PromptInputs, ScoreInputs, build_score_inputs, without_images
from prism_cli.discriminator.saved import HEAD_FILE, SETTINGS_FILE, saved_discriminator
from prism_cli.errors import CheckpointError, DataError
from prism_cli.packing import packed_positions, use_packing

HEAD_STD = 0.02
SETTINGS = ("kind", "parts", "readout", "dropout", "readout_id")
BODY_CLASSES = {"moe": Qwen3VLMoeModel, "dense": Qwen3VLModel, "text_only": Qwen3VLModel}


@contextmanager
def unsharded_models() -> Iterator[None]:
    """Models loaded or built here are unsharded on every process, even while a policy under ZeRO-3 is being trained."""
    # transformers shards whatever is made while such a trainer's settings live.
    settings = transformers_deepspeed._hf_deepspeed_config_weak_ref
    transformers_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        transformers_deepspeed._hf_deepspeed_config_weak_ref = settings


class Reading(NamedTuple):
    """The result of one pass of the body.

    Attributes:
        hidden: (R, H), the state each part is scored by.
        balance: (), load-balancing loss, prompts' tokens counted once a part; None when it was not asked for.
    """

    hidden: Tensor
    balance: Tensor | None


class Head(nn.Linear):
    """A linear layer that computes in float32: in bfloat16 a group's scores would lie a few roundings apart."""

    def forward(self, input: Tensor) -> Tensor:
        """(R, 1) of (R, H)."""
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float())


class Discriminator(nn.Module):
    """Scores `[prompt with image | part | read-out token]`; all parts share the body and the head.

    Args:
        body: `Qwen3VLMoeModel` for `moe`, else `Qwen3VLModel`; no LM head.
        parts: Names of the parts, in the order scores are given.
        readout_id: The fixed token appended to every part; part of the text form, saved with the weights.
        kind: `text_only` is a dense body that gets the prompt without its image.
        readout: Score the state at the read-out token (`last`), or the mean over the part's tokens (`mean`).
        dropout: In the head, and only where its factors are drawn (`dropout_factors`).
        head_std: Standard deviation of the head's initial weights. Scores start at about head_std · √width, and a part
            whose scores start near zero learns slowly beside one whose don't.

    Raises:
        ValueError: the body is not of the class `kind` calls for.
    """

    def __init__(
        self,
        body: Qwen3VLModel | Qwen3VLMoeModel,
        parts: Sequence[str],
        readout_id: int,
        kind: Literal["moe", "dense", "text_only"] = "moe",
        readout: Literal["last", "mean"] = "last",
        dropout: float = 0.1,
        head_std: float = HEAD_STD,
    ):
        super().__init__()
        if not isinstance(body, BODY_CLASSES[kind]):
            raise ValueError(
                f"a {kind} discriminator needs a {BODY_CLASSES[kind].__name__}, not {body.__class__.__name__}"
            )
        # Any: transformers annotates outputs and configs as unions with dict, tuple and None.
        self.body: Any = body.eval()
        self.parts = tuple(parts)
        self.readout_id, self.kind, self.readout, self.dropout = readout_id, kind, readout, dropout
        use_packing(self.body)
        width = self.body.config.text_config.hidden_size
        self.head = Head(width, 1, bias=False, device=body.device, dtype=body.dtype)
        nn.init.normal_(self.head.weight, std=head_std)
        # Untouched by any loss: weight decay alone must not move it.
        self.body.visual.requires_grad_(kind != "text_only")

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.head.weight.device

    def inputs(self, prompts: Sequence[PromptInputs], parts: Sequence[tuple[int, list[int]]]) -> ScoreInputs:
        """The one text form of this discriminator: `parts` are (prompt's index, token ids)."""
        if self.kind == "text_only":
            config = self.body.config
            image_ids = {config.image_token_id, config.vision_start_token_id, config.vision_end_token_id}
            prompts = [without_images(prompt, image_ids) for prompt in prompts]
        return build_score_inputs(prompts, parts, self.readout_id).to(self.device)

    def forward(self, batch: ScoreInputs) -> Tensor:
        """Scores (R,) float32, without dropout."""
        return self.score(self.read(batch).hidden)

    def read(self, batch: ScoreInputs, balance: bool = False, look: bool = False) -> Reading:
        """One pass of the body; prompts and their images are computed once, however many parts follow them.

        Args:
            batch: From `inputs`.
            balance: Also give the load-balancing loss (`moe` only).
            look: Without a picture compute a blank one, which changes nothing, so that processes that share the vision
                tower's weights all come by it.

        Raises:
            DataError: image tokens and images do not match.
        """
        embeddings = self.body.get_input_embeddings()(batch.input_ids)
        is_image = batch.input_ids == self.body.config.image_token_id
        vision = {}
        if batch.pixel_values is not None:
            output = self.body.get_image_features(batch.pixel_values, batch.image_grid_thw)
            features = torch.cat(output.pooler_output)
            if int(is_image.sum()) != len(features):
                raise DataError(f"a prompt has {int(is_image.sum())} image tokens for {len(features)} image features")
            embeddings = embeddings.masked_scatter(is_image.unsqueeze(-1), features.to(embeddings.dtype))
            vision = {"visual_pos_masks": is_image, "deepstack_visual_embeds": output.deepstack_features}
        elif look:
            embeddings = embeddings + 0 * self._seen_in_a_blank(embeddings.device).to(embeddings.dtype)
        router = {"output_router_logits": True} if balance else {}
        output = self.body.language_model(
            inputs_embeds=embeddings,
            position_ids=self.positions(batch),
            packing=batch.packing,
            use_cache=False,
            **vision,
            **router,
        )
        hidden = self._at_readout(output.last_hidden_state[0], batch)
        return Reading(hidden, self._balance(output.router_logits, batch.packing.copies) if balance else None)

    def _seen_in_a_blank(self, device: torch.device) -> Tensor:
        """() sum of all that the vision tower makes of the smallest picture."""
        config = self.body.config.vision_config
        side, channels = config.spatial_merge_size, getattr(config, "in_channels", 3)
        pixels = torch.zeros(side**2, channels * config.temporal_patch_size * config.patch_size**2, device=device)
        output = self.body.get_image_features(pixels, torch.tensor([[1, side, side]], device=device))
        return torch.stack([seen.sum() for seen in (*output.pooler_output, *output.deepstack_features)]).sum()

    def positions(self, batch: ScoreInputs) -> Tensor:
        """The model's own multimodal positions (3, 1, T): time, height, width; parts count on from their prompt."""
        prompts = batch.input_ids[0, : sum(batch.prompt_lengths)].split(batch.prompt_lengths)
        padded = pad_sequence(list(prompts), batch_first=True, padding_value=-1)
        alone = self.body.get_rope_index(
            padded,
            mm_token_type_ids=(padded == self.body.config.image_token_id).long(),
            image_grid_thw=batch.image_grid_thw,
            attention_mask=(padded >= 0).long(),
        )[0]
        prompts = [alone[:, p, :n] for p, n in enumerate(batch.prompt_lengths)]
        prompt_of = batch.packing.prompt_of.tolist()
        # Not self.device: a sharded discriminator would fetch the weight it asks.
        return packed_positions(prompts, batch.part_lengths, prompt_of).to(batch.input_ids.device)

    def score(self, hidden: Tensor) -> Tensor:
        """Scores (R,) float32 of read-outs (R, H), without dropout: the rewards."""
        return self.head(hidden).squeeze(-1)

    def dropout_factors(self, count: int) -> Tensor | None:
        """(count, H) factors of dropout for that many read-outs, drawn anew; None where there is none."""
        width = self.body.config.text_config.hidden_size
        return F.dropout(torch.ones(count, width, device=self.device), self.dropout) if self.dropout else None

    def recompute_activations(self) -> None:
        """Keeps no layer's activations for the backward pass, which computes them again: slower, for less memory."""
        self.body.gradient_checkpointing_enable({"use_reentrant": False})
        for module in self.body.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True  # what it asks; the modules in it stay in eval mode

    def _at_readout(self, states: Tensor, batch: ScoreInputs) -> Tensor:
        """(R, H) float32 of the row's states (T, H)."""
        if self.readout == "last":
            return states[batch.packing.ends].float()
        lengths = torch.tensor(batch.part_lengths, device=states.device, dtype=torch.long)
        part_of = torch.arange(len(lengths), device=states.device).repeat_interleave(lengths)
        states = states[sum(batch.prompt_lengths) :].float()
        spoken = states.index_fill(0, batch.packing.ends - sum(batch.prompt_lengths), 0)
        sums = states.new_zeros(len(lengths), states.shape[1]).index_add(0, part_of, spoken)
        return sums / (lengths - 1).unsqueeze(1)

    def _balance(self, router_logits: tuple[Tensor, ...], copies: Tensor) -> Tensor:
        """Transformers' loss takes a mask; it only ever multiplies by it, so it may as well count tokens."""
        config = self.body.config.text_config
        loss: Any = load_balancing_loss_func
        return loss(router_logits, config.num_experts, config.num_experts_per_tok, copies)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes body (as any transformers model), head and settings; `from_pretrained` gives them back bit-equal."""
        folder = Path(folder)
        self.body.save_pretrained(folder)
        save_file({"weight": self.head.weight.detach().contiguous()}, folder / HEAD_FILE)
        settings = {name: getattr(self, name) for name in SETTINGS}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, otherwise: Mapping[str, Any] | None = None) -> "Discriminator":
        """The discriminator saved in a folder, on CPU, in the dtype it was saved in.

        Args:
            folder: From `save_pretrained`, or a released discriminator (see `discriminator.saved`).
            otherwise: For a released discriminator, which doesn't say how it is read: the arguments beside `body`.

        Raises:
            CheckpointError: the folder holds no discriminator, or not all of its weights.
        """
        folder = Path(folder)
        saved = saved_discriminator(folder)
        settings = saved.settings or otherwise
        if settings is None:
            raise CheckpointError(
                f"{folder} does not say how its discriminator is read ({SETTINGS_FILE} is missing)",
                hint="name it as discriminator.path of a recipe, which says it",
            )
        with unsharded_models():
            opened = BODY_CLASSES[settings["kind"]].from_pretrained(folder, dtype="auto", output_loading_info=True)
        body, loading = opened
        if lost := sorted([*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])]):
            raise CheckpointError(
                f"{folder}: {len(lost)} weights of the body are missing or of another shape, such as {lost[0]}",
                hint="fetch or write the discriminator again",
            )
        discriminator = cls(body, **settings)
        file, name = saved.head or (folder / HEAD_FILE, "weight")
        with safe_open(file, framework="pt") as weights:
            discriminator.head.load_state_dict({"weight": weights.get_tensor(name)})
        return discriminator

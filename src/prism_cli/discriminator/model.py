"""The discriminator: a Qwen3-VL body and a linear head that gives each part of a response one score."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen3VLModel, Qwen3VLMoeModel
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import load_balancing_loss_func

from prism_cli.discriminator.inputs import PromptInputs, ScoreInputs, build_score_inputs, without_images
from prism_cli.errors import CheckpointError, DataError

HEAD_STD = 0.02
SETTINGS_FILE, HEAD_FILE = "discriminator.json", "head.safetensors"
SETTINGS = ("kind", "parts", "readout", "dropout", "readout_id", "pad_id")
BODY_CLASSES = {"moe": Qwen3VLMoeModel, "dense": Qwen3VLModel, "text_only": Qwen3VLModel}


class Reading(NamedTuple):
    """What one pass of the body gave.

    Attributes:
        hidden: (R, H), the state each row is judged by.
        balance: (), load-balancing loss over the batch's tokens; None when it was not asked for.
    """

    hidden: Tensor
    balance: Tensor | None


class Discriminator(nn.Module):
    """Scores `[prompt with image | part | read-out token]`; all parts share the body and the head.

    Args:
        body: `Qwen3VLMoeModel` for `moe`, else `Qwen3VLModel`; no LM head.
        parts: Names of the parts, in the order scores are given.
        readout_id: The fixed token appended to every part; part of the text form, saved with the weights.
        pad_id: Fills rows; never attended to.
        kind: `text_only` is a dense body that gets the prompt without its image.
        readout: Judge the state at the read-out token (`last`), or the mean over the part's tokens (`mean`).
        dropout: In the head, and only in `score_dropped`.
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
        pad_id: int,
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
        self.readout_id, self.pad_id, self.kind, self.readout, self.dropout = readout_id, pad_id, kind, readout, dropout
        width = self.body.config.text_config.hidden_size
        self.head = nn.Linear(width, 1, bias=False, device=body.device, dtype=body.dtype)
        nn.init.normal_(self.head.weight, std=head_std)
        # Untouched by any loss: weight decay alone must not move it.
        self.body.visual.requires_grad_(kind != "text_only")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def inputs(self, prompts: Sequence[PromptInputs], parts: Sequence[tuple[int, list[int]]]) -> ScoreInputs:
        """The one text form of this discriminator: `parts` are (prompt's index, token ids), one a row."""
        if self.kind == "text_only":
            config = self.body.config
            image_ids = {config.image_token_id, config.vision_start_token_id, config.vision_end_token_id}
            prompts = [without_images(prompt, image_ids) for prompt in prompts]
        return build_score_inputs(prompts, parts, self.readout_id, self.pad_id).to(self.device)

    def forward(self, batch: ScoreInputs) -> Tensor:
        """Scores (R,) float32, without dropout."""
        return self.score(self.read(batch).hidden)

    def read(self, batch: ScoreInputs, balance: bool = False) -> Reading:
        """One pass of the body; each image is encoded once, however many rows show it.

        Args:
            batch: From `inputs`.
            balance: Also give the load-balancing loss (`moe` only).

        Raises:
            DataError: image tokens and images do not match.
        """
        embeddings = self.body.get_input_embeddings()(batch.input_ids)
        is_image = batch.input_ids == self.body.config.image_token_id
        vision = {}
        if batch.pixel_values is not None:
            features, deepstack = self._images(batch)
            if int(is_image.sum()) != len(features):
                raise DataError(f"a prompt has {int(is_image.sum())} image tokens for {len(features)} image features")
            embeddings = embeddings.masked_scatter(is_image.unsqueeze(-1), features.to(embeddings.dtype))
            vision = {"visual_pos_masks": is_image, "deepstack_visual_embeds": deepstack}
        router = {"output_router_logits": True} if balance else {}
        output = self.body.language_model(
            inputs_embeds=embeddings,
            attention_mask=batch.attention_mask,
            position_ids=self.positions(batch),
            use_cache=False,
            **vision,
            **router,
        )
        hidden = self._at_readout(output.last_hidden_state, batch)
        return Reading(hidden, self._balance(output.router_logits, batch.attention_mask) if balance else None)

    def positions(self, batch: ScoreInputs) -> Tensor:
        """The model's own multimodal positions (3, R, T): time, height, width."""
        # The model counts images in the order of rows, so a shared image is listed once for each row.
        order = [i for images in batch.row_images for i in images]
        is_image = (batch.input_ids == self.body.config.image_token_id).long()
        return self.body.get_rope_index(
            batch.input_ids,
            mm_token_type_ids=is_image,
            image_grid_thw=batch.image_grid_thw[order] if batch.image_grid_thw is not None else None,
        )[0]

    def score(self, hidden: Tensor) -> Tensor:
        """Scores (R,) float32 of read-outs (R, H), without dropout: the rewards."""
        return self.head(hidden).squeeze(-1).float()

    def score_dropped(self, hidden: Tensor) -> Tensor:
        """Scores (R,) float32 of read-outs (R, H), with dropout: for the loss."""
        return self.score(F.dropout(hidden, self.dropout))

    def _images(self, batch: ScoreInputs) -> tuple[Tensor, list[Tensor]]:
        """Features (image tokens of all rows, H) and the deepstack levels' alike, from one pass of the vision tower."""
        output = self.body.get_image_features(batch.pixel_values, batch.image_grid_thw)
        sizes = [len(features) for features in output.pooler_output]
        order = [i for images in batch.row_images for i in images]
        levels = [torch.split(level, sizes) for level in output.deepstack_features]
        repeated = [torch.cat([level[i] for i in order]) for level in (output.pooler_output, *levels)]
        return repeated[0], repeated[1:]

    def _at_readout(self, states: Tensor, batch: ScoreInputs) -> Tensor:
        if self.readout == "last":
            return states[torch.arange(len(states), device=states.device), batch.readout]
        mask = batch.part_mask.unsqueeze(-1).to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1)

    def _balance(self, router_logits: tuple[Tensor, ...], attention_mask: Tensor) -> Tensor:
        config = self.body.config.text_config
        loss: Any = load_balancing_loss_func
        return loss(router_logits, config.num_experts, config.num_experts_per_tok, attention_mask)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes body (as any transformers model), head and settings; `from_pretrained` gives them back bit-equal."""
        folder = Path(folder)
        self.body.save_pretrained(folder)
        save_file({"weight": self.head.weight.detach().contiguous()}, folder / HEAD_FILE)
        settings = {name: getattr(self, name) for name in SETTINGS}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Discriminator":
        """The discriminator saved in a folder, on CPU, in the dtype it was saved in.

        Raises:
            CheckpointError: the folder holds no discriminator.
        """
        folder = Path(folder)
        if not (folder / SETTINGS_FILE).exists():
            raise CheckpointError(
                f"{folder}: no discriminator here ({SETTINGS_FILE} is missing)",
                hint="give the `discriminator` folder of a finished align run, or of its warm-up",
            )
        settings = json.loads((folder / SETTINGS_FILE).read_text())
        body = BODY_CLASSES[settings["kind"]].from_pretrained(folder, dtype="auto")
        discriminator = cls(body, **settings)
        discriminator.head.load_state_dict(load_file(folder / HEAD_FILE))
        return discriminator

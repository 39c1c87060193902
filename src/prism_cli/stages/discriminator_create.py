"""`prism discriminator create`: a new discriminator's folder from a dense model, and the distance between the two."""

import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prism_cli.assembly.checks import Plan
from prism_cli.assembly.response import grammar_of
from prism_cli.discriminator.saved import model_folder, refuse_no_base
from prism_cli.discriminator.settings import Upcycling
from prism_cli.errors import CheckpointError, PrismError, RecipeError
from prism_cli.progress import say
from prism_cli.recipes.sections import ResponseSection
from prism_cli.responses import read_settings


class Creation(NamedTuple):
    """The options of `prism discriminator create`.

    Attributes:
        source: A dense Qwen3-VL: a run, a folder or a hub id.
        output: The discriminator's folder.
        rule: Of the upcycling.
        readout: Where a part's score is read.
        dropout: In the head.
        head_std: Standard deviation of the head's weights.
        check: Whether to compare hidden states afterwards.
    """

    source: str
    output: Path
    rule: Upcycling
    readout: Literal["last", "mean"]
    dropout: float
    head_std: float
    check: bool


def check(creation: Creation) -> Plan:
    """Plan of the creation; reads configs, no weights.

    Raises:
        PrismError: a model that can't be upcycled, impossible settings, or a folder that is taken.
    """
    from prism_cli.discriminator.create import mixture

    if creation.output.exists() and (not creation.output.is_dir() or any(creation.output.iterdir())):
        raise CheckpointError(f"{creation.output} is there already", "choose another --output, or remove it")
    config = _dense_config(model_folder(creation.source, ("*.json",)), creation.source)
    moe = mixture(config, creation.rule)
    billions = sum(weight.numel() for weight in moe.parameters()) / 1e9
    size = sum(weight.nbytes for weight in moe.parameters()) / 2**30
    text: Any = moe.config.text_config
    return [
        ("from", f"{creation.source}, {text.num_hidden_layers} layers of width {text.hidden_size}"),
        ("makes", f"{text.num_experts} experts a layer, {text.num_experts_per_tok} a token: {billions:,.2f} B weights"),
        ("writes", f"{size:,.2f} GiB to {creation.output}"),
    ]


def create(creation: Creation) -> None:
    """Makes the discriminator's folder and says what came of it.

    Raises:
        PrismError: see `check`; hidden states that differ although there is no noise.
    """
    check(creation)
    from prism_cli.assembly.run_folder import quiet_libraries
    from prism_cli.discriminator.create import NewDiscriminator, mixture
    from prism_cli.discriminator.create import create as write_discriminator
    from prism_cli.progress import progress

    quiet_libraries()
    folder = model_folder(creation.source)
    weights = mixture(_dense_config(folder, creation.source), creation.rule).state_dict()
    new = NewDiscriminator(creation.source, creation.rule, _settings(folder, creation), creation.head_std)
    with progress("upcycling", len(weights)) as on_progress:
        write_discriminator(folder, creation.output, new, on_progress=on_progress)
    size = sum(path.stat().st_size for path in creation.output.glob("model*.safetensors"))
    say(f"{creation.output}: {size / 2**30:,.2f} GiB, {creation.rule.experts} experts a layer")
    _compare(folder, creation, need=4 * 2 * sum(weight.numel() for weight in weights.values()))
    say(f"next     prism discriminator warmup … discriminator.path={creation.output}")


def _dense_config(folder: Path, source: str) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(f"{source}: no model's config: {reason}", "give a Qwen3-VL's folder or hub id") from None
    refuse_no_base(config.model_type, source)
    return config


def _settings(folder: Path, creation: Creation) -> dict[str, Any]:
    """Contents of discriminator.json; parts are those of the run, else the usual ones, until a warm-up says
    otherwise."""
    from transformers import AutoTokenizer

    responses = folder / "response.json"
    grammar = (
        read_settings(json.loads(responses.read_text(encoding="utf-8"))).grammar
        if responses.is_file()
        else grammar_of(ResponseSection())
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(f"{creation.source}: no tokenizer: {reason}", "give a folder that holds it too") from None
    parts = list(grammar.parts)
    reading = {"readout": creation.readout, "dropout": creation.dropout, "readout_id": tokenizer.eos_token_id}
    return {"kind": "moe", "parts": parts, **reading}


# The check -----------------------------------------------------------------------------------------------------------


def _compare(folder: Path, creation: Creation, need: int) -> None:
    """Compares hidden states on a picture and a question, where the models fit in memory.

    Raises:
        PrismError: without noise they differ.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if not creation.check or need > free:
        why = "--no-check" if not creation.check else f"{need / 2**30:,.0f} GiB wanted, {free / 2**30:,.0f} free"
        say(f"hidden states not compared with the dense model's: {why}")
        return
    from prism_cli.discriminator.create import SAME, distance, upcycled_distance
    from prism_cli.discriminator.model import Discriminator
    from prism_cli.models import load_pretrained

    model, processor = load_pretrained(str(folder), dtype="float32")
    dense, inputs = model.model.eval(), _probe(processor)
    silent = upcycled_distance(dense, creation.rule, inputs)
    if not silent < SAME:
        raise PrismError(
            f"upcycled without noise, hidden states differ from the dense model's by {silent:.1e} of the largest",
            f"this model is not upcycled rightly; don't use {creation.output}",
        )
    noisy = distance(Discriminator.from_pretrained(creation.output).float().body, dense, inputs)
    say(f"hidden states beside the dense model's, at most: {silent:.1e} of the largest without noise, {noisy:.1e} with")


def _probe(processor: Any) -> dict[str, Any]:
    """A question about a picture, as the model reads it."""
    from PIL import Image

    picture = Image.linear_gradient("L").convert("RGB")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What does the picture show?"}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )

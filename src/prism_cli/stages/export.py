"""`prism export`: a run's model as one plain Hugging Face folder, with a card, and on the hub if wanted."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import get_console

from prism_cli.errors import CheckpointError
from prism_cli.progress import say
from prism_cli.publishing.hub import ABOUT
from prism_cli.publishing.lineage import lineage_of
from prism_cli.runs.folder import Run
from prism_cli.runs.references import COMPLETE, read_manifest, resolve_model

if TYPE_CHECKING:
    from prism_cli.models import Policy


class Export(NamedTuple):
    """The options of `prism export`.

    Attributes:
        run: A run, or RUN@N for its checkpoint N.
        output: Folder to write, or None for exports/<pipeline>/<step>.
        dtype: Type of the weights, or None for that of the run's.
        repo: Hub repository to push to, or None.
    """

    run: str
    output: Path | None
    dtype: str | None
    repo: str | None


class Source(NamedTuple):
    """A model to export.

    Attributes:
        run: Its run.
        checkpoint: Step of the checkpoint, or None for the final model.
        folder: The model's folder, or that of adapters alone.
        adapter: Whether it holds adapters alone.
    """

    run: Run
    checkpoint: int | None
    folder: Path
    adapter: bool


def check(export: Export) -> list[tuple[str, str]]:
    """The plan; loads nothing.

    Raises:
        CheckpointError: no such model, or a folder that is taken.
        RecipeError: a push without a token, or to no repository's name.
    """
    source = _source(export.run)
    output = _output(export, source)
    there = _there(output, _about(source, export.dtype))
    merged = ", adapters merged into the model they were trained on" if source.adapter else ""
    plan = [
        ("model", f"{source.folder}{merged}"),
        ("weights", export.dtype or "as the run's"),
        ("writes", f"{output}, which is there already" if there else str(output)),
    ]
    if export.repo is not None:
        from prism_cli.publishing.hub import check_push

        check_push(export.repo)
        plan.append(("pushes to", f"{export.repo}, private if it is new"))
    return plan


def run(export: Export) -> Path:
    """Writes the folder, and pushes it; gives the folder.

    Raises:
        PrismError: see `check`; or the hub refuses.
    """
    check(export)
    source = _source(export.run)
    output, about = _output(export, source), _about(source, export.dtype)
    if _there(output, about):
        say(f"{output} holds this export already")
    else:
        _write(source, export.dtype, output, about)
    if export.repo is not None:
        from prism_cli.publishing.hub import push

        with get_console().status(f"pushing {output} to {export.repo}"):
            say(push(output, export.repo, about))
    return output


def _source(reference: str) -> Source:
    base, _, selected = reference.partition("@")
    adapter = Path(base) / "checkpoints" / f"checkpoint-{selected}"
    if selected.isdigit() and (adapter / COMPLETE).is_file() and (adapter / "adapter_config.json").is_file():
        run = Run(Path(base), read_manifest(Path(base)))
        return Source(run, int(selected), adapter, True)
    folder, source = resolve_model(reference)
    run = Run(Path(source["run"]), read_manifest(Path(source["run"])))
    return Source(run, source["checkpoint"], folder, False)


def _output(export: Export, source: Source) -> Path:
    if export.output is not None:
        return export.output
    folder = source.run.folder.resolve()
    at = "" if source.checkpoint is None else f"-{source.checkpoint}"
    place = Path("exports") if folder.parent.name == "runs" else Path("exports") / folder.parent.name
    return place / f"{folder.name}{at}"


def _about(source: Source, dtype: str | None) -> dict[str, Any]:
    """The identity of an export: its run, checkpoint, lineage and type of weights."""
    manifest = source.run.manifest
    lineage = lineage_of(source.run.folder, source.checkpoint)
    return {
        "run": {"id": manifest["id"], "stage": manifest["stage"]},
        "checkpoint": source.checkpoint,
        "made": manifest.get("finished" if source.checkpoint is None else "created"),
        "dtype": dtype,
        "start": lineage.start,
        "steps": [step.facts() for step in lineage.steps],
        "versions": manifest.get("versions", {}),
    }


def _there(output: Path, about: dict[str, Any]) -> bool:
    """Whether a folder holds this very export already.

    Raises:
        CheckpointError: it holds something else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        known = json.loads((output / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if known != about:
        what = "something else" if known is None else "another export"
        raise CheckpointError(f"{output} holds {what}", "choose another --output, or remove it")
    return True


def _write(source: Source, dtype: str | None, output: Path, about: dict[str, Any]) -> None:
    """Writes the folder beside its place and moves it there once it is complete."""
    from prism_cli.assembly.run_folder import quiet_libraries
    from prism_cli.data.sources import is_local_name
    from prism_cli.publishing.model_card import model_card

    quiet_libraries()
    with get_console().status(f"loading {source.folder}"):
        policy = _policy(source, dtype)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a kill left
    try:
        partial.mkdir(parents=True)
        with get_console().status(f"writing {output}"):
            policy.save(partial)
            card = model_card(source.run, policy.grammar.tags, is_local_name, source.checkpoint)
            (partial / "README.md").write_text(card, encoding="utf-8")
            (partial / ABOUT).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            for path in filter(Path.is_file, partial.iterdir()):
                path.chmod((partial / "README.md").stat().st_mode)  # weights are written for their owner alone
            partial.rename(output)
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        raise CheckpointError(f"can't write {output}: {reason}", "choose another --output") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(path.stat().st_size for path in output.glob("*.safetensors")) / 2**20
    say(f"{output}: {size:,.0f} MiB of weights, processor, chat template, model card")


def _policy(source: Source, dtype: str | None) -> "Policy":
    """The model to write: adapters merged, in the wanted type."""
    import torch

    from prism_cli.assembly.policy import with_adapter
    from prism_cli.models import load_policy

    if not source.adapter:
        return load_policy(source.folder, dtype or "auto")
    policy = with_adapter(source.run, source.folder)
    return policy if dtype is None else policy.with_model(policy.model.to(getattr(torch, dtype)))

"""`prism discriminator`: create a discriminator, warm one up."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from prism_cli.cli import options
from prism_cli.cli.conduct import conduct, print_plan, resolve
from prism_cli.cli.shrink import scaled_down
from prism_cli.cli.words import sort_words

discriminator = typer.Typer(name="discriminator", help="Create a discriminator, warm one up.", no_args_is_help=True)


@discriminator.command()
def create(
    from_: Annotated[
        str, typer.Option("--from", metavar="DENSE", help="A dense Qwen3-VL: a hub id, a folder, or a finished run.")
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder of the discriminator; must not exist.")
    ],
    experts: Annotated[int, typer.Option(min=1, help="Experts per layer.")] = 4,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Experts per token.")] = 2,
    noise: Annotated[float, typer.Option(min=0, help="Standard deviation of the noise on the copied experts.")] = 0.01,
    noise_scale: Annotated[
        Literal["absolute", "relative"],
        typer.Option("--noise-scale", help="Absolute, or relative to the standard deviation of each weight matrix."),
    ] = "absolute",
    readout: Annotated[
        Literal["last", "mean"], typer.Option(help="Score at the part's last token, or the mean over its tokens.")
    ] = "last",
    dropout: Annotated[float, typer.Option(min=0, max=1, help="Dropout in the head.")] = 0.1,
    head_std: Annotated[
        float, typer.Option("--head-std", min=0, help="Standard deviation of the head's initial weights.")
    ] = 0.02,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of noise, router and head.")] = 0,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check", help="Compare hidden states with the dense model's, if both fit into memory."
        ),
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
) -> None:
    """Create a mixture-of-experts discriminator from a dense Qwen3-VL, shard by shard, without loading all of it.

    Each layer's MLP becomes several noisy copies behind a router; a head is added. It is untrained: `prism
    discriminator warmup`, or an align run with it as discriminator.path, warms it up first.
    """
    from prism_cli.discriminator.settings import Upcycling
    from prism_cli.stages import discriminator_create as stage

    creation = stage.Creation(
        from_,
        output,
        Upcycling(experts, top_k, noise, noise_scale, seed),
        readout,
        dropout,
        head_std,
        check,
    )
    if dry_run:
        print_plan("discriminator create", stage.check(creation))
    else:
        stage.create(creation)


@discriminator.command()
def warmup(
    words: options.Words = None,
    model: options.ModelOption = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="PAIRS", help="Pairs of teacher and policy, as `prism collect --from` writes."),
    ] = None,
    from_: options.FromOption = None,
    output: options.OutputOption = None,
    teacher_endpoint: options.EndpointOption = None,
    teacher_model: options.TeacherModelOption = None,
    max_teacher_calls: options.MaxCallsOption = None,
    max_teacher_usd: options.MaxUsdOption = None,
    teacher_preview: options.PreviewOption = None,
    seed: options.SeedOption = None,
    dry_run: options.DryRunOption = False,
    shrink: options.ShrinkOption = False,
    resume: options.ResumeOption = None,
) -> None:
    """Train a discriminator to separate teacher and policy for each part, for later align runs.

    The pairs come from --data, or are sampled: the policy of --from answers the recipe's prompts, and so does the
    teacher. Without RECIPE it takes ./warmup.yaml if there is one, else the defaults; without --from and --model the
    newest finished sft run under ./runs.
    """
    pairs = {"discriminator.warmup.data": {"type": "file", "path": data}} if data is not None else {}
    chosen = pairs | options.given(
        model=model,
        from_=from_,
        output=output,
        teacher__endpoint=teacher_endpoint,
        teacher__model=teacher_model,
        teacher__max_calls=max_teacher_calls,
        teacher__max_usd=max_teacher_usd,
        seed=seed,
    )
    recipe = resolve("warmup", sort_words(words), chosen, *(() if shrink else ("sft",)))
    if shrink:
        recipe = scaled_down("warmup", recipe, write=not dry_run and teacher_preview is None)
    conduct("warmup", recipe, dry_run, resume, preview=teacher_preview)

"""`prism rl`."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from prism_cli.cli import options
from prism_cli.cli.conduct import conduct, resolve
from prism_cli.cli.shrink import scaled_down
from prism_cli.cli.words import sort_words

if TYPE_CHECKING:  # pydantic and the types of recipes are imported by the command that runs
    from prism_cli.recipes.stages import RLRecipe


def rl(
    words: options.Words = None,
    model: options.ModelOption = None,
    data: options.DataOption = None,
    from_: options.FromOption = None,
    output: options.OutputOption = None,
    max_steps: options.MaxStepsOption = None,
    seed: options.SeedOption = None,
    audit: Annotated[
        bool,
        typer.Option("--audit", help="Only print the rewards of known texts. Exit code 1 if they fail the audit."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the audit as JSON and nothing else.")] = False,
    dry_run: options.DryRunOption = False,
    shrink: options.ShrinkOption = False,
    sbatch: options.SbatchOption = None,
    resume: options.ResumeOption = None,
) -> None:
    """Reinforcement learning with verified final answers: GRPO, DAPO or GSPO.

    Without RECIPE it takes ./rl.yaml if there is one, else the defaults; without --from and --model it starts from the
    newest finished align run under ./runs, else from the newest sft run.
    """
    if as_json and not audit:
        raise typer.BadParameter("--json prints the audit: give --audit too")
    if audit and resume is not None:  # --dry-run may stand beside it: an audit writes nothing either
        raise typer.BadParameter("--audit trains nothing: leave out --resume and --fresh")
    chosen = options.given(model=model, data=data, from_=from_, output=output, max_steps=max_steps, seed=seed)
    recipe = resolve("rl", sort_words(words), chosen, *(() if shrink else ("align", "sft")))
    if shrink:
        recipe = scaled_down("rl", recipe, write=not dry_run)
    if audit:
        _audit(cast("RLRecipe", recipe), as_json)
    else:
        conduct("rl", recipe, dry_run, resume, sbatch=sbatch)


def _audit(recipe: "RLRecipe", as_json: bool) -> None:
    """Prints the audit; exit code 1 where training would be refused."""
    import json

    from rich import get_console
    from rich.console import Console

    from prism_cli.stages import rl_audit

    audit = rl_audit.run(recipe)
    problems = audit.problems(recipe.rewards.max_wrong)
    if as_json:
        typer.echo(json.dumps(rl_audit.values(audit, recipe), indent=2, ensure_ascii=False))
    else:
        get_console().print(rl_audit.table(audit))
    if problems:
        lines = [f"refused: {problem}" for problem in problems] + [f"hint: {rl_audit.cure(audit)}"]
        Console(stderr=True).print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)

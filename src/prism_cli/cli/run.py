"""`prism run`."""

from pathlib import Path

from prism_cli.cli import options
from prism_cli.cli.conduct import conduct
from prism_cli.cli.shrink import scaled_down_pipeline
from prism_cli.cli.words import sort_words


def run(
    words: options.Words = None,
    output: options.OutputOption = None,
    seed: options.SeedOption = None,
    dry_run: options.DryRunOption = False,
    shrink: options.ShrinkOption = False,
    sbatch: options.SbatchOption = None,
    resume: options.ResumeOption = None,
) -> None:
    """Run a pipeline of stages, each starting from the previous one, with a report at the end.

    Without RECIPE it takes ./pipeline.yaml. A value of one step is set by the step's name: align.max_steps=30.
    """
    from prism_cli.recipes.load import load_recipe
    from prism_cli.recipes.sources import find_recipe

    sorted_words = sort_words(words)
    recipe = load_recipe("run", sorted_words.recipe, sorted_words.overrides, options.given(output=output, seed=seed))
    file = find_recipe("run", sorted_words.recipe)
    base = file.parent if file else None
    if shrink:
        recipe = scaled_down_pipeline(recipe, base or Path(), write=not dry_run)
    conduct("run", recipe, dry_run, resume, base=base, sbatch=sbatch)

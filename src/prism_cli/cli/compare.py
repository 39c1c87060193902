"""`prism compare`."""

from prism_cli.cli import options
from prism_cli.cli.conduct import conduct
from prism_cli.cli.words import sort_words


def compare(
    words: options.Words = None,
    output: options.OutputOption = None,
    dry_run: options.DryRunOption = False,
    resume: options.ResumeOption = None,
) -> None:
    """Run a study: several variants over the same seeds, in parallel, in one table of paired gains with intervals.

    Without RECIPE it takes ./study.yaml. Seeds and arms may be added to a study; what is done is not done again.
    """
    from prism_cli.recipes.load import load_recipe
    from prism_cli.recipes.sources import find_recipe

    sorted_words = sort_words(words)
    recipe = load_recipe("compare", sorted_words.recipe, sorted_words.overrides, options.given(output=output))
    file = find_recipe("compare", sorted_words.recipe)
    conduct("compare", recipe, dry_run, resume, base=file.parent if file else None)

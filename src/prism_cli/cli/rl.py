"""`prism rl`."""

from prism_cli.cli import options
from prism_cli.cli.conduct import conduct, resolve
from prism_cli.cli.words import sort_words


def rl(
    words: options.Words = None,
    model: options.ModelOption = None,
    data: options.DataOption = None,
    from_: options.FromOption = None,
    output: options.OutputOption = None,
    max_steps: options.MaxStepsOption = None,
    seed: options.SeedOption = None,
    dry_run: options.DryRunOption = False,
    resume: options.ResumeOption = None,
) -> None:
    """Reinforce verified final answers: GRPO, DAPO or GSPO.

    Without RECIPE it takes ./rl.yaml if there is one, else the defaults; without --from and --model it starts from the
    newest finished align run under ./runs, else from the newest sft run.
    """
    chosen = options.given(model=model, data=data, from_=from_, output=output, max_steps=max_steps, seed=seed)
    recipe = resolve("rl", sort_words(words), chosen, "align", "sft")
    conduct("rl", recipe, dry_run, resume)

"""`prism align`."""

from prism_cli.cli import options
from prism_cli.cli.conduct import conduct, resolve
from prism_cli.cli.shrink import scaled_down
from prism_cli.cli.words import sort_words


def align(
    words: options.Words = None,
    model: options.ModelOption = None,
    data: options.DataOption = None,
    from_: options.FromOption = None,
    output: options.OutputOption = None,
    teacher_endpoint: options.EndpointOption = None,
    teacher_model: options.TeacherModelOption = None,
    max_teacher_calls: options.MaxCallsOption = None,
    max_teacher_usd: options.MaxUsdOption = None,
    teacher_preview: options.PreviewOption = None,
    max_steps: options.MaxStepsOption = None,
    seed: options.SeedOption = None,
    dry_run: options.DryRunOption = False,
    shrink: options.ShrinkOption = False,
    sbatch: options.SbatchOption = None,
    resume: options.ResumeOption = None,
) -> None:
    """Align the policy's rollouts to a teacher's answers; only their text is needed.

    Without RECIPE it takes ./align.yaml if there is one, else the defaults; without --from and --model it starts from
    the newest finished sft run under ./runs.
    """
    chosen = options.given(
        model=model,
        data=data,
        from_=from_,
        output=output,
        teacher__endpoint=teacher_endpoint,
        teacher__model=teacher_model,
        teacher__max_calls=max_teacher_calls,
        teacher__max_usd=max_teacher_usd,
        max_steps=max_steps,
        seed=seed,
    )
    recipe = resolve("align", sort_words(words), chosen, *(() if shrink else ("sft",)))
    if shrink:
        recipe = scaled_down("align", recipe, write=not dry_run and teacher_preview is None)
    conduct("align", recipe, dry_run, resume, preview=teacher_preview, sbatch=sbatch)

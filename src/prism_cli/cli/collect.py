"""`prism collect`."""

from prism_cli.cli import options
from prism_cli.cli.conduct import conduct, resolve
from prism_cli.cli.shrink import scaled_down
from prism_cli.cli.words import sort_words


def collect(
    words: options.Words = None,
    data: options.DataOption = None,
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
    """Collect a teacher's answers to prompts as demonstrations for `prism sft`.

    With --from, the policy of that run answers too, and the result is pairs for the discriminator's warm-up. Without
    RECIPE it takes ./collect.yaml if there is one, else the defaults. `samples=4` asks four answers of each prompt,
    `batch=true` asks through the provider's batch endpoint.
    """
    chosen = options.given(
        data=data,
        from_=from_,
        output=output,
        teacher__endpoint=teacher_endpoint,
        teacher__model=teacher_model,
        teacher__max_calls=max_teacher_calls,
        teacher__max_usd=max_teacher_usd,
        seed=seed,
    )
    recipe = resolve("collect", sort_words(words), chosen)
    if shrink:
        recipe = scaled_down("collect", recipe, write=not dry_run and teacher_preview is None)
    conduct("collect", recipe, dry_run, resume, preview=teacher_preview)

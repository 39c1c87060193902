"""Several stages as one run: a pipeline of steps, and a study of several variants over several seeds."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from prism_cli.recipes.section import Section, UserPath


class PipelineStep(Section):
    """One step of a pipeline: a stage's recipe and what to change in it."""

    stage: Literal["sft", "warmup", "align", "rl", "eval"]
    """Which command; `warmup` is `prism discriminator warmup`."""
    recipe: str
    """Recipe file, relative to the pipeline's own."""
    id: str | None = None
    """Name of the step and its folder; null takes the stage's name. Unique."""
    from_: str | None = Field(default=None, alias="from")
    """The step it starts from; null takes the last training step before it, or none when `set` names a `model`."""
    discriminator: str | None = None
    """For align, the warm-up step whose discriminator it trains with; null warms one up itself."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Values that replace the recipe's, by dotted key."""

    @model_validator(mode="after")
    def _only_align_has_a_discriminator(self):
        if self.discriminator is not None and self.stage != "align":
            raise ValueError("only an align step has a `discriminator`")
        return self


class PipelineRecipe(Section):
    """Any list of stages, in any order, as one resumable run (`prism run`)."""

    name: str
    """The run's folder is runs/<name>, a step's is runs/<name>/<step id>."""
    seed: NonNegativeInt | None = None
    """Replaces the seed of every step."""
    steps: Annotated[tuple[PipelineStep, ...], Field(min_length=1, strict=False)]
    """The steps in order."""
    output: UserPath | None = None
    """Run folder; null gives runs/<name>."""

    @model_validator(mode="after")
    def _ids_are_unique(self):
        ids = [step.id or step.stage for step in self.steps]
        if repeated := {i for i in ids if ids.count(i) > 1}:
            raise ValueError(f"step ids must be unique; give `id` to these: {', '.join(sorted(repeated))}")
        for position, step in enumerate(self.steps):
            if step.from_ is not None and step.from_ not in ids[:position]:
                raise ValueError(f"step {ids[position]!r} starts from {step.from_!r}, which is no earlier step")
        return self


class StudyRecipe(Section):
    """Several variants over the same seeds, measured on the same questions (`prism compare`)."""

    name: str
    """The study's folder is runs/<name>; a seed's shared steps are in seed-<n>/, an arm's in seed-<n>/<arm>/."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, strict=False)] = (0, 1, 2)
    """Every arm runs once with each."""
    shared: Annotated[tuple[PipelineStep, ...], Field(strict=False)] = ()
    """Steps that all arms of a seed start after; run once a seed."""
    arms: Annotated[dict[str, Annotated[tuple[PipelineStep, ...], Field(strict=False)]], Field(min_length=1)]
    """Name → steps. They start from the last shared step, or from the step `from` names: a shared one, or a step of an
    arm before this one (`from: exact/align`), which then is run once. An arm without steps is what the shared ones end
    with."""
    baseline: str
    """The arm that the others are compared with."""
    measure: PipelineStep
    """The evaluation of each arm's last policy."""
    metrics: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Metrics of the table, such as accuracy/sampled, in order; none takes all that the evaluation measures."""
    processes: PositiveInt | None = None
    """Arms that run side by side; null takes one a CPU core, or one where there is an accelerator."""
    output: UserPath | None = None
    """Folder of the study; null gives runs/<name>."""

    @model_validator(mode="after")
    def _makes_sense(self):
        if self.baseline not in self.arms:
            raise ValueError(f"baseline {self.baseline!r} is no arm; there are: {', '.join(self.arms)}")
        if self.measure.stage != "eval":
            raise ValueError("measure must be an eval step")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed stands twice")
        for arm, steps in {"shared": self.shared, **self.arms}.items():
            ids = [step.id or step.stage for step in (*(() if arm == "shared" else self.shared), *steps)]
            if repeated := {i for i in ids if ids.count(i) > 1}:
                raise ValueError(f"{arm}: step ids must be unique; give `id` to these: {', '.join(sorted(repeated))}")
        if not self.shared and not all(self.arms.values()):
            raise ValueError("an arm without steps needs shared steps")
        names = list(self.arms)
        for position, arm in enumerate(names):
            before = {f"{other}/{step.id or step.stage}" for other in names[:position] for step in self.arms[other]}
            if unknown := [
                step.from_ for step in self.arms[arm] if "/" in (step.from_ or "") and step.from_ not in before
            ]:
                raise ValueError(f"arm {arm!r} starts from {', '.join(map(str, unknown))}, no step of an arm before it")
        return self

    def arms_before(self, arm: str) -> list[str]:
        """The arms whose steps an arm's own start from."""
        starts = [step.from_ or "" for step in self.arms[arm]]
        return list(dict.fromkeys(start.split("/")[0] for start in starts if "/" in start))


def steps_of(recipe: Section) -> list[PipelineStep]:
    """Every step a recipe names: a pipeline's, a study's with its measure, none of any other."""
    if isinstance(recipe, PipelineRecipe):
        return list(recipe.steps)
    if isinstance(recipe, StudyRecipe):
        return [*recipe.shared, *(step for steps in recipe.arms.values() for step in steps), recipe.measure]
    return []

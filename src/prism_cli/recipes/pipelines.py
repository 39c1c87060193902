"""Pipelines and studies: several stages as one run, and several variants over several seeds."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from prism_cli.recipes.section import Section, UserPath


class PipelineStep(Section):
    """One step of a pipeline: a stage's recipe and changes to it."""

    stage: Literal["sft", "warmup", "align", "rl", "eval"]
    """Command of the step; `warmup` is `prism discriminator warmup`."""
    recipe: str
    """Recipe file, relative to the pipeline's file."""
    id: str | None = None
    """Unique name of the step and its folder; null takes the stage's name."""
    from_: str | None = Field(default=None, alias="from")
    """Step to start from; null takes the previous training step, or none where `set` has a `model`."""
    discriminator: str | None = None
    """For align: the warm-up step whose discriminator it uses; null warms one up in the align step."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted key → value that replaces the recipe's."""

    @model_validator(mode="after")
    def _only_align_has_a_discriminator(self):
        if self.discriminator is not None and self.stage != "align":
            raise ValueError("only an align step has a `discriminator`")
        return self


class PipelineRecipe(Section):
    """Stages in any order as one resumable run (`prism run`)."""

    name: str
    """Name of the run: its folder is runs/<name>, a step's is runs/<name>/<step id>."""
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
    """Name of the study: its folder is runs/<name>, with shared steps in seed-<n>/ and those of an arm in
    seed-<n>/<arm>/."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, strict=False)] = (0, 1, 2)
    """Seeds; every arm runs once with each."""
    shared: Annotated[tuple[PipelineStep, ...], Field(strict=False)] = ()
    """Steps before all arms, run once per seed."""
    arms: Annotated[dict[str, Annotated[tuple[PipelineStep, ...], Field(strict=False)]], Field(min_length=1)]
    """Name → steps. They start from the last shared step, or from the step in `from`: a shared one, or one of an
    earlier arm (`from: exact/align`), which is run once. An arm without steps is the model of the last shared step."""
    baseline: str
    """Arm with which the others are compared."""
    measure: PipelineStep
    """Eval step, applied to the final policy of each arm."""
    metrics: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Metrics of the table in order, such as accuracy/sampled; none for all metrics of the evaluation."""
    processes: PositiveInt | None = None
    """Arms run in parallel; null takes one per CPU core, or one where there is an accelerator."""
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
        """The earlier arms from whose steps an arm starts."""
        starts = [step.from_ or "" for step in self.arms[arm]]
        return list(dict.fromkeys(start.split("/")[0] for start in starts if "/" in start))


def steps_of(recipe: Section) -> list[PipelineStep]:
    """All steps of a pipeline, or of a study with its measure; none of another recipe."""
    if isinstance(recipe, PipelineRecipe):
        return list(recipe.steps)
    if isinstance(recipe, StudyRecipe):
        return [*recipe.shared, *(step for steps in recipe.arms.values() for step in steps), recipe.measure]
    return []

"""`prism plan`: memory, time and teacher calls of a stage or a pipeline before anything is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prism_cli.assembly.planned_alignment import PLANNED, PlannedRecipe, job_of
from prism_cli.assembly.planned_job import start_of
from prism_cli.assembly.teacher_plan import teacher_lines
from prism_cli.errors import RecipeError
from prism_cli.planning.effort import Effort, effort
from prism_cli.planning.job import GB, Device, Job
from prism_cli.planning.memory import Moment, host_bytes, peak, peaks
from prism_cli.planning.savings import Saving, best_savings
from prism_cli.planning.start import Start
from prism_cli.recipes.identity import run_folder
from prism_cli.recipes.pipelines import PipelineRecipe
from prism_cli.recipes.steps import resolve_steps

USUAL_GB = 80.0
# Peak in bfloat16 without sparsity, by the makers' data sheets, in 10¹² operations a second.
PEAKS = {"H100": 989.0, "H200": 989.0, "H800": 989.0, "B200": 2250.0, "A100": 312.0, "A800": 312.0, "L40S": 362.0}
USUAL_TFLOPS = 989.0


@dataclass(frozen=True)
class StagePlan:
    """Plan of one stage.

    Attributes:
        step: Its name.
        stage: Its command.
        job: What was planned for.
        phases: Phase → its largest moment, on one device.
        savings: The settings that save most, where it doesn't fit.
        effort: Time, or None.
        teacher: What asking the teacher takes, as lines.
    """

    step: str
    stage: str
    job: Job
    phases: dict[str, Moment]
    savings: list[Saving]
    effort: Effort | None
    teacher: list[tuple[str, str]]

    @property
    def peak(self) -> float:
        """Bytes on a device at the worst moment."""
        return max(moment.total for moment in self.phases.values())

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.peak <= self.job.device.memory

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values; gigabytes are 10⁹ bytes."""
        return {
            "step": self.step,
            "stage": self.stage,
            "devices": self.job.launch.world_size,
            "gpu_memory_gb": round(self.job.device.memory / GB, 3),
            "peak_gb": round(self.peak / GB, 3),
            "fits": self.fits,
            "phases": {
                phase: {name: round(size / GB, 3) for name, size in moment.parts.items()}
                for phase, moment in self.phases.items()
            },
            "host_gb": round(host_bytes(self.job) / GB, 3),
            "savings": [
                {"overrides": list(saving.overrides), "peak_gb": round(peak(saving.job) / GB, 3)}
                for saving in self.savings
            ],
            "hours": round(self.effort.seconds / 3600, 1) if self.effort and self.effort.seconds else None,
            "seconds_a_step": {name: round(value, 1) for name, value in self.effort.step.items()}
            if self.effort
            else None,
            "tflops": self.job.device.tflops,
            "teacher": dict(self.teacher),
        }


def here(gpu_memory: float | None, tflops: float | None) -> Device:
    """The GPU to plan for: the one there is, unless said otherwise, else a usual one.

    Args:
        gpu_memory: Gigabytes, or None.
        tflops: Its peak, or None.
    """
    import torch

    name, memory = "", USUAL_GB * GB
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        name, memory = found.name, float(found.total_memory)
    known = next((value for word, value in PEAKS.items() if word in name), USUAL_TFLOPS)
    return Device(True, memory if gpu_memory is None else gpu_memory * GB, tflops or known)


def plan_stage(stage: str, recipe: PlannedRecipe, device: Device) -> StagePlan:
    """Plan of a stage's memory, time and teacher calls.

    Args:
        stage: sft, warmup, align or rl.
        recipe: Its recipe.
        device: What it will run on.

    Raises:
        RecipeError: a stage that isn't planned, or a model without a config.
    """
    if stage not in PLANNED:
        raise RecipeError(
            f"`prism plan` plans training, not {stage}", "name a recipe of sft, warmup, align, rl or a pipeline"
        )
    return _planned(stage, stage, recipe, device, start_of(recipe))


def plan_pipeline(recipe: PipelineRecipe, device: Device, base: Path) -> list[StagePlan]:
    """Plans of a pipeline's training steps.

    Args:
        recipe: The pipeline's.
        device: What it will run on.
        base: Folder of the pipeline's file.

    Raises:
        RecipeError: a model without a config.
    """
    plans: list[StagePlan] = []
    starts: dict[str, Start] = {}
    for step, resolved in resolve_steps(recipe.steps, base, run_folder("run", recipe), recipe.seed):
        if step.stage not in PLANNED:
            continue
        planned = cast(PlannedRecipe, resolved)
        name = step.id or step.stage
        # What it starts from is an earlier step, known by its folder.
        earlier = starts.get(Path(planned.from_).name) if planned.from_ else None
        starts[name] = start_of(planned, earlier)
        plans.append(_planned(name, step.stage, planned, device, starts[name]))
    return plans


def _planned(name: str, stage: str, recipe: PlannedRecipe, device: Device, start: Start) -> StagePlan:
    job = job_of(recipe, device, start)
    phases = peaks(job)
    fits = max(moment.total for moment in phases.values()) <= device.memory
    savings = [] if fits else best_savings(job)
    return StagePlan(name, stage, job, phases, savings, effort(job), teacher_lines(stage, recipe))

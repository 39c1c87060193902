"""A pipeline that warms a discriminator up once, for an align step of its own."""

import json
from textwrap import dedent

import pytest

from prism_cli.recipes.sources import shipped

PIPELINE = """
    name: paired
    steps:
      - {{stage: warmup, recipe: {warmup}, set: {{from: {start}, data.size: 16, batch_size: 16,
          discriminator.warmup.pairs: 16, discriminator.warmup.held_out: 4, max_response_tokens: 24}}}}
      - {{stage: align, recipe: {align}, {discriminator}, set: {{from: {start}, max_steps: 1, data.size: 16,
          eval_data.size: 4, prompts_per_step: 2, rollouts: 4, micro_batch: 8,
          max_response_tokens: 24, checkpoint.every: 1}}}}
"""


@pytest.fixture
def pipeline(trained, tmp_path):
    def write(discriminator):
        recipes = shipped()
        names = {"warmup": recipes["tiny/warmup"], "align": recipes["tiny/align"], "start": trained}
        (tmp_path / "pipeline.yaml").write_text(dedent(PIPELINE).format(discriminator=discriminator, **names))
        return tmp_path

    return write


def test_align_trains_with_the_discriminator_of_the_step_it_names(prism, pipeline):
    folder = pipeline("discriminator: warmup")
    done = prism("run", cwd=folder)
    assert done.code == 0, done.stderr
    align = folder / "runs/paired/align"
    recipe = json.loads((align / "run.json").read_text())["recipe"]
    assert recipe["discriminator"]["path"] == "runs/paired/warmup/discriminator"
    assert not (align / "warmup").exists()
    assert (align / "discriminator/head.safetensors").is_file()


def test_a_discriminator_that_no_step_warms_up_is_refused_before_anything_runs(prism, pipeline):
    folder = pipeline("discriminator: nobody")
    done = prism("run", cwd=folder)
    assert done.code == 2
    assert "'align' takes the discriminator of 'nobody', which is no earlier warm-up step" in done.stderr
    assert not (folder / "runs").exists()


def test_only_align_has_a_discriminator(prism, pipeline):
    folder = pipeline("discriminator: warmup")
    text = (folder / "pipeline.yaml").read_text()
    (folder / "pipeline.yaml").write_text(text.replace("stage: warmup,", "stage: warmup, discriminator: warmup,"))
    done = prism("run", "--dry-run", cwd=folder)
    assert done.code == 2
    assert "only an align step has a `discriminator`" in done.stderr

"""A small task of our own in lmms-eval's form: yaml, its functions, and a parquet file with pictures."""

import io
from pathlib import Path

TASK = """\
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {parquet}
task: {name}
test_split: test
output_type: generate_until
doc_to_visual: !function functions.visuals
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  max_new_tokens: 16
process_results: !function functions.{scored}
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """\
from lmms_eval.llm_judge import Request, ServerConfig, get_server


def visuals(doc):
    return [doc["image"].convert("RGB")]


def by_rule(doc, results):
    return {"right": float(results[0] == doc["answer"])}


def by_judge(doc, results):
    server = get_server("openai", ServerConfig(model_name="judge", num_retries=1, retry_delay=0))
    try:
        said = server.evaluate(Request(messages=[{"role": "user", "content": results[0]}])).content
    except Exception:
        said = "no"
    return {"right": float(said == "yes")}
"""


def write_tasks(folder: Path, questions: int) -> list[str]:
    """Writes `by_rule` and `by_judge`; gives the accepted answers."""
    from datasets import Dataset, Features, Image, Value

    from prism_cli.worlds import world

    folder.mkdir()
    examples = list(world("shapes").examples("test", questions, seed=5))
    rows = []
    for example in examples:
        example.image.save(png := io.BytesIO(), "PNG")
        rows.append({"image": {"bytes": png.getvalue()}, "question": example.question, "answer": example.answer})
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    Dataset.from_list(rows, features=features).to_parquet(folder / "test.parquet")
    (folder / "functions.py").write_text(FUNCTIONS)
    for name in ("by_rule", "by_judge"):
        text = TASK.format(parquet=folder / "test.parquet", name=f"shapes_{name}", scored=name)
        (folder / f"{name}.yaml").write_text(text)
    return [example.answer for example in examples]

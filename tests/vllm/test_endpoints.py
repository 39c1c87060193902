"""The teacher's client against two real servers with pictures: vLLM's, and transformers'. They serve a tiny model."""

import copy
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from prism_cli.assembly.response import grammar_of
from prism_cli.models import Policy
from prism_cli.recipes.sections import ResponseSection
from tests.tiny import tiny_policy

READY_SECONDS = 240
QUESTIONS = 3


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A tiny model, and rows with pictures."""
    folder = tmp_path_factory.mktemp("endpoints")
    model, processor = tiny_policy()
    Policy(copy.deepcopy(model), processor, grammar_of(ResponseSection()), None).save(folder / "model")
    (folder / "data").mkdir()
    lines = []
    for i in range(QUESTIONS):
        Image.new("RGB", (48, 48), (80 * i, 30, 200)).save(folder / f"data/{i}.png")
        lines.append({"id": str(i), "question": f"what is at a{i + 1} ?", "answer": "red", "images": [f"{i}.png"]})
    (folder / "data/rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


class Server:
    """A server in a process of its own, asked until it answers."""

    def __init__(self, folder, arguments):
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = str(bound.getsockname()[1])
        self.url, self.log = f"http://127.0.0.1:{port}/v1", folder / f"server-{port}.log"
        with open(self.log, "w") as log:
            command = [sys.executable, "-m", *(port if word == "PORT" else word for word in arguments)]
            # The development endpoints are those that a training needs. transformers' server wants a cache folder.
            environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "HF_HUB_CACHE": str(folder)}
            environment["PYTHONPATH"] = str(Path(__file__).parents[2])
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)

    def __enter__(self):
        try:
            until = time.monotonic() + READY_SECONDS
            while time.monotonic() < until and self.process.poll() is None:
                with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self.url}/models", timeout=5):
                    return self
                time.sleep(1)
            raise AssertionError(self.log.read_text()[-3000:])
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exception):
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


VLLM = (
    *("vllm.entrypoints.openai.api_server", "--model", "model", "--host", "127.0.0.1", "--port", "PORT"),
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "512"),
    *("--limit-mm-per-prompt", '{"image": 1, "video": 0}', "--enable-scale-out"),
)
TRANSFORMERS = (
    *("tests.vllm.transformers_server", "serve", "model", "--host", "127.0.0.1", "--port", "PORT"),
    *("--dtype", "float32", "--device", "cpu"),
)


@pytest.fixture(scope="module")
def endpoint(workplace, request):
    with Server(workplace, request.param) as server:
        yield server


@pytest.mark.parametrize("endpoint", [VLLM, TRANSFORMERS], ids=["vllm", "transformers"], indirect=True)
def test_answers_about_pictures_are_collected_with_the_tokens_they_took(workplace, endpoint):
    """A random model writes in no form and is no teacher; what matters: each picture was read, and counted."""
    from prism_cli.endpoint.store import AnswerStore

    output = endpoint.log.with_suffix(".collected")
    asked = [sys.executable, "-m", "prism_cli"]
    flags = ["--teacher-endpoint", endpoint.url, "--teacher-model", "model", f"teacher.store={output}.sqlite"]
    limits = ["teacher.max_tokens=24", "teacher.attempts=1", "teacher.max_failed=1.0", "teacher.check=false"]
    collect = ["collect", "--data", "data/rows.jsonl", *flags, *limits, "--output", str(output)]
    collected = subprocess.run([*asked, *collect], cwd=workplace, capture_output=True, text=True)
    check = ["teacher", "check", *flags, *limits, "--json"]
    checked = subprocess.run([*asked, *check], cwd=workplace, capture_output=True, text=True)
    assert "Traceback" not in collected.stderr, collected.stderr
    store = AnswerStore(f"{output}.sqlite")
    (totals,) = store.summary()
    store.close()
    assert totals.prompt_tokens > 9 * QUESTIONS, "a picture is nine tokens"
    assert checked.returncode == 1, checked.stderr
    assert not json.loads(checked.stdout)["passed"], "it reads the probes' pictures, and knows nothing of them"


@pytest.mark.parametrize("endpoint", [VLLM], ids=["vllm"], indirect=True)
def test_rollouts_through_a_server_are_the_policys_and_it_forgets_pictures(workplace, endpoint):
    """All that a training asks of a server but new weights: those travel over NCCL only."""
    from trl.generation.vllm_client import VLLMClient
    from trl.generation.vllm_generation import VLLMGeneration

    from prism_cli.evaluation.sampling import encode_prompts, sample_responses
    from prism_cli.models import load_policy, multimodal, placeholder_ids
    from prism_cli.trainers.vllm_rollouts import forget_pictures, suppressing

    policy, picture = load_policy(workplace / "model"), Image.open(workplace / "data/1.png")
    conversation = multimodal([{"role": "user", "content": "what is at a1 ?"}], [picture])
    prompt = encode_prompts(policy.processor, [conversation])["input_ids"][0].tolist()
    placeholders = placeholder_ids(policy.processor)
    client = VLLMClient(base_url=endpoint.url.removesuffix("/v1"))
    (features,) = client.image_features([[picture]])
    features = VLLMGeneration._place_features(SimpleNamespace(processing_class=policy.processor), features, prompt)
    options = {"max_tokens": 16, "temperature": 0.0, "generation_kwargs": suppressing(policy, placeholders)}
    output = client.generate([prompt], [features], **options)
    (wanted,) = sample_responses(
        policy.model,
        policy.processor,
        [conversation],
        max_tokens=16,
        temperature=0.0,
        seed=0,
        suppress=placeholders,
        batch_size=1,
    )
    assert output["prompt_ids"] == [prompt]
    assert output["completion_ids"] == [wanted.token_ids]
    forget_pictures(client)

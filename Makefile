# Everything a person types; `make help` lists it. The first target that needs it sets up .venv.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
EXTRAS := demo,tensorboard,fast,bench,timm,hf,lora,text,parquet,completion,dev
SCRIPTS = .ci/run $(shell find slurm tests -name '*.sbatch' -o -name '*.sh')

# Ranks bring their own threads; tests and benchmarks run many ranks on few cores.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo docs test test-unit test-slurm test-launchers test-gpu test-stand-in test-cpu-torch test-torch test-package test-docs test-deploy test-signals test-faults sweep sweep-replay balance plans test-all lint type format bench gpu chaos venv clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(READY) ## train a ResNet-18 on handwritten digits: two nodes of two bundles on this machine
	$(RUN) examples/write_digits.py
	$(RUN) examples/demo.py

# Tests start hundreds of programs: where PYTHONDONTWRITEBYTECODE is set, each would compile this
# project anew.
test: $(READY) ## all tests that this machine can run; skipped ones say why
	@$(RUN) -m compileall -q -j 0 $(addprefix bundlerun/,launcher slurm splits workers) benchmarks
	$(RUN) -m pytest --numprocesses 2 --dist loadscope $(ARGS)

test-unit: $(READY) ## the quick tests, without processes
	$(RUN) -m pytest tests/unit $(ARGS)

test-slurm: $(READY) ## jobs on a real Slurm of four nodes, with every fault; needs root: about 15 minutes
	BUNDLERUN_TEST_SLURM=all $(RUN) -m pytest tests/slurm $(ARGS)

test-gpu: $(READY) ## the tests for machines with a GPU or two; on such a machine
	BUNDLERUN_TEST_GPU=1 $(RUN) -m pytest -m gpu $(ARGS)

test-stand-in: $(READY) ## the program of make gpu, every case, where there is no GPU: 3 minutes
	BUNDLERUN_TEST_SLOW=all $(RUN) -m pytest tests/e2e/test_gpu_benchmark.py $(ARGS)

test-launchers: $(READY) ## torchrun, mpirun, accelerate, deepspeed, Ray and others, where they are installed
	BUNDLERUN_TEST_SLOW=all $(RUN) -m pytest tests/launchers $(ARGS)

test-cpu-torch: ## on a torch without NCCL, in an environment that is thrown away
	tests/cpu_torch.sh $(ARGS)

test-torch: ## on another torch, in an environment that is thrown away; VERSION=2.11.0 ARGS=tests/unit
	VERSION=$(VERSION) PYTHON=$(PYTHON) tests/torch_version.sh $(ARGS)

test-package: ## sdist and wheel, used without the checkout; PYTHON=python3.13
	PYTHON=$(PYTHON) tests/package.sh

test-docs: $(READY) ## every command of README and docs that one machine can run: half an hour; ARGS="-k tutorial"
	BUNDLERUN_TEST_SLOW=all $(RUN) -m pytest tests/docs $(ARGS)

test-deploy: $(READY) ## examples/deploy against the schemas and programs that read them: some minutes
	tests/deploy.sh $(ARGS)

sweep: $(READY) ## every torchvision model and one of each timm family against plain torch: half an hour
	$(RUN) -m pip install --quiet -e '.[sweep]'
	$(RUN) -m tests.sweep_models $(ARGS)

sweep-replay: $(READY) ## models of transformers, detection and other tasks, cut by replay: some minutes
	$(RUN) -m pip install --quiet -e '.[sweep]'
	$(RUN) -m tests.sweep_replay $(ARGS)

balance: $(READY) ## how equally the same models can be cut in two: some minutes
	$(RUN) -m pip install --quiet -e '.[sweep]'
	$(RUN) -m tests.sweep_balance $(ARGS)

plans: $(READY) ## the search for plans against all plans there are, 500 small cases: some minutes
	$(RUN) -m tests.sweep_plans $(ARGS)

test-signals: $(READY) ## signals at every moment of a run, to every process: about 5 minutes
	BUNDLERUN_TEST_SLOW=all $(RUN) -m pytest tests/e2e/test_signals.py tests/e2e/test_torchrun.py $(ARGS)

test-faults: $(READY) ## every place where a process can die or freeze, and cuts of links: some minutes
	BUNDLERUN_TEST_SLOW=all $(RUN) -m pytest tests/e2e/test_faults.py tests/e2e/test_cuts.py $(ARGS)

docs: $(READY) ## the documentation as a site, in build/site; a warning is an error
	$(RUN) -m pip install --quiet -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build

test-all: test lint type ## what CI runs

lint: $(READY) ## ruff, the directions of imports, and the shell scripts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PYTHONPATH=. $(VENV)/bin/lint-imports --no-cache
	@set -e; for script in $(SCRIPTS); do bash -n "$$script"; done
	@if command -v shellcheck >/dev/null; then shellcheck $(SCRIPTS); \
	else echo "shellcheck is not installed: the scripts were only parsed"; fi

type: $(READY) ## mypy --strict
	$(VENV)/bin/mypy

format: $(READY) ## rewrite the code as ruff wants it
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(READY) ## each claim of the README as a measurement
	$(RUN) -m benchmarks $(ARGS)

# On an image that has torch nothing is installed: it runs with what is there.
gpu: ## what one GPU can show, in eight minutes; ARGS="--only G4,G5 --out DIR", or --stand-in
	@if [ -x $(RUN) ]; then $(RUN) -m benchmarks gpu $(ARGS); \
	else $(PYTHON) -m benchmarks gpu $(ARGS); fi

chaos: $(READY) ## 200 faults from a seed into a small run; ARGS="--seed 7 --faults 20"
	$(RUN) -m benchmarks chaos $(ARGS)

venv: $(READY) ## only set up .venv

clean: ## remove .venv and what tools leave; keeps data/ and runs/
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an installation that was cut short is done again.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) is not on the PATH; use make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $$($(PYTHON) --version) is too old, 3.11 or newer is needed;" \
	       "use make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "error: $(PYTHON) cannot make $(VENV); on Debian install python3-venv" >&2; exit 2; }
	$(RUN) -m pip install --quiet --no-compile -c constraints.txt -e '.[$(EXTRAS)]'
# By all cores; pip compiles with one. Packages ship files that no Python here compiles: no failure.
# A third is their own tests, and models of transformers of which a run uses one: not compiled.
	@$(RUN) -m compileall -q -j 0 -x '/tests?/|/transformers/models/(?!auto/|__init__)' $(VENV)/lib \
	  >/dev/null 2>&1 || true
	@touch $@

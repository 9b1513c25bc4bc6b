# Every target sets up what it needs, says what it does, and does nothing twice.  `make` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export HF_HUB_DISABLE_TELEMETRY = 1
# Where it is set, each of some hundred processes compiles all its libraries anew: 2 s of the operator, 10 s of a stage.
unexport PYTHONDONTWRITEBYTECODE
# Threads that wait for their next piece sleep: spinning, they take the cores from whatever else runs, ten times slower.
export OMP_WAIT_POLICY ?= PASSIVE
PYTEST := $(BIN)/python -m pytest
# A process a core; a file's tests stay together, for they share what it has trained.  WORKERS=0: in this process, for a debugger.
WORKERS ?= auto
PARALLEL := -n $(WORKERS) --dist loadfile

.PHONY: help setup lint verify generate unit integration local test soak e2e e2e-faults images demo bench bench-prepare bench-trainer gpu lock cluster clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.complete ## Virtual environment with the locked dependencies and the three distributions

$(VENV)/.complete: requirements/dev.txt requirements/torch.txt api/pyproject.toml operator/pyproject.toml trainer-image/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	@echo "==> virtual environment in $(VENV) (once; about a minute, longer on a slow network)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25" "uv>=0.9" 
	@echo "==> PyTorch"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements/torch.txt
	@echo "==> the locked dependencies"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/dev.txt
	@echo "==> the three distributions, in place"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e api -e operator -e trainer-image
	@touch $@

lint: setup ## Format, lint, types, import contracts
	@echo "==> ruff"; $(BIN)/ruff format --check . && $(BIN)/ruff check .
	@echo "==> mypy --strict"; $(BIN)/mypy api/src operator/src trainer-image/src
	@echo "==> import contracts"; PYTHONPATH=api/src:operator/src:trainer-image/src $(BIN)/lint-imports

generate: setup ## Write what is generated: CRD, chart copy, API reference, RBAC
	@$(BIN)/python -m finetune_api generate
	@$(BIN)/python charts/generate_rbac.py

verify: setup ## What is generated is what the code says
	@$(BIN)/python -m finetune_api generate --check && $(BIN)/python charts/generate_rbac.py --check

unit: setup ## Tests without any server
	@echo "==> unit tests"; $(PYTEST) tests/unit $(PARALLEL)

integration: setup ## Tests on a real API server and the local loop with real training
	@echo "==> the test Kubernetes (compiled the first time: about 6 minutes)"; $(BIN)/python -m tests.cluster assets
	@echo "==> integration tests"; $(PYTEST) tests/integration $(PARALLEL)

test: lint verify unit integration ## Everything that needs neither root nor a node

soak: setup ## Property tests with new random cases, trainings that `test` leaves out, half an hour of faults (FINETUNE_SOAK_SECONDS)
	@echo "==> property tests"; $(PYTEST) tests/unit $(PARALLEL) -m hypothesis --hypothesis-profile=search
	@echo "==> trainings by several processes"; $(PYTEST) tests/integration -k distribution -m soak
	@echo "==> estimates of all measured loads"; $(PYTEST) tests/unit/test_estimate_measured.py -m soak
	@echo "==> random faults on a real API server"; $(BIN)/python -m tests.bench.soak

e2e: setup ## The whole product on a real node: kubelet, containerd, images (root, Debian; or KUBECONFIG_E2E)
	@echo "==> end-to-end tests on a real cluster"; $(PYTEST) tests/e2e --timeout=2400

e2e-faults: setup ## Faults on a real node that take longer than `e2e` may
	@echo "==> faults on a real cluster"; $(PYTEST) tests/e2e -m soak --timeout=2400

images: setup ## Both images, by buildah
	@$(BIN)/python -m tests.cluster images

demo: setup ## Fine-tune a tiny model on this machine and talk to it
	@$(BIN)/finetune demo $(if $(MODEL),--model $(MODEL))

bench: setup ## Measure the control plane on a real API server
	@$(BIN)/python -m tests.bench

bench-prepare: setup ## Measure Prepare: memory on 1 GB of JSON Lines, time against the tokenizer alone
	@$(BIN)/python -m tests.bench.prepare

bench-trainer: setup ## Our trainer against a plain TRL script, on this machine's GPU or CPU
	@$(BIN)/python -m tests.bench.trainer

gpu: setup ## What can be seen on a GPU only: figures and logs in .build/gpu (skipped where there is none)
	@PYTHONPATH=. $(BIN)/python -m tests.gpu

cluster: setup ## A one-node Kubernetes for hand use (root)
	@$(BIN)/python -m tests.cluster up

# UPGRADE= takes what was added to the .in files and leaves all other pins as they are.
UPGRADE ?= --upgrade
lock: setup ## Make the locks anew; images hold the versions that the tests have
	@for name in dev operator trainer; do constraint=$$([ $$name = dev ] || echo "-c requirements/dev.txt"); \
	  $(BIN)/uv pip compile --quiet $(UPGRADE) $$constraint --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-emit-package torch --no-emit-package setuptools \
	  --custom-compile-command "make lock" -o requirements/$$name.txt requirements/$$name.in || exit 1; done
	@! grep -lE '^(nvidia-|cuda-|triton==)' requirements/*.txt || { echo "CUDA libraries belong to PyTorch's default build: set PIP_FIND_LINKS to a folder with the CPU wheel and lock again"; exit 1; }

clean: ## Remove what was made here
	rm -rf $(VENV) .build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

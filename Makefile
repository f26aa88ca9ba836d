# Two commands are enough: `make demo` and `make test`. Both set up .venv first, with progress shown.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The gateway needs no tensor library, and neither do its tests: they run where none is installed.
BASE_VENV := .venv-base
BASE_TESTS := $(wildcard tests/unit/gateway tests/unit/protos/test_*.py tests/integration/test_gateway_*.py \
  tests/integration/test_server.py)
# What numba compiles is kept. These tests have it compiled once, where two workers would both do it.
COMPILING_TESTS := tests/unit/llm_service/engines/torch
WORKERS := -n 2 --dist loadgroup
# Property tests draw the same examples each time; `make test-all` looks for new ones.
SAME_EXAMPLES := --hypothesis-profile=ci
# The tests start hundreds of processes, which would all compile what they import.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo serve test test-gateway test-torch test-all test-clients test-containers lint types audit protos locks libraries bench clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 17

# What is locked comes first, each file checked by its hash; then this project, with torch, whose
# build (for a CPU or a GPU) is the machine's choice.
LOCKED = install --require-hashes -r locks/build.txt -r
OURS = install --no-build-isolation -c constraints.txt -e

$(VENV)/demo.stamp: pyproject.toml constraints.txt locks/build.txt locks/demo.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip $(LOCKED) locks/demo.txt
	$(BIN)/pip $(OURS) '.[demo]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt locks/build.txt locks/dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip $(LOCKED) locks/dev.txt
	$(BIN)/pip $(OURS) '.[dev]'
	@touch $@ $(VENV)/demo.stamp

$(BASE_VENV)/stamp: $(VENV)/dev.stamp locks/test.txt
	$(PYTHON) -m venv --without-pip $(BASE_VENV)
	$(BIN)/pip --python $(BASE_VENV)/bin/python $(LOCKED) locks/test.txt --no-compile
	$(BIN)/pip --python $(BASE_VENV)/bin/python $(OURS) '.[test]' --no-compile
	@touch $@

demo: $(VENV)/demo.stamp ## start the three services on this machine, ask about pictures, stop
	$(BIN)/python -m models.demo

# Without a checkpoint of yours, the toy model.
TOY = --checkpoint models/demo/checkpoint --served-model-name internvl-demo
serve: $(VENV)/demo.stamp ## start the three services and keep them up (Ctrl-C stops; ARGS="--help")
	$(BIN)/internvl-serve $(if $(or $(findstring --checkpoint,$(ARGS)),$(findstring --config,$(ARGS))),,$(TOY)) $(ARGS)

# The types take one core, and so do the tests beside them.
test: $(BASE_VENV)/stamp lint ## lint, types and the tests that are not slow
	$(MAKE) -j 2 types test-torch
	$(MAKE) test-gateway
	$(BIN)/pytest $(WORKERS) $(SAME_EXAMPLES) $(addprefix --ignore=,$(BASE_TESTS) $(COMPILING_TESTS)) \
	  -m 'not slow and not gpu'

test-torch: $(VENV)/dev.stamp ## those of the torch engine of the LLM service
	$(BIN)/pytest $(SAME_EXAMPLES) $(COMPILING_TESTS) -m 'not slow and not gpu'

test-gateway: $(BASE_VENV)/stamp ## those of the gateway and the protos, where there is no tensor library
	$(BASE_VENV)/bin/pytest $(WORKERS) $(SAME_EXAMPLES) $(BASE_TESTS) -m 'not slow'

test-all: $(BASE_VENV)/stamp lint types ## every test, those of the demo model's training too
	$(BASE_VENV)/bin/pytest $(WORKERS) $(BASE_TESTS)
	$(BIN)/pytest $(WORKERS) $(addprefix --ignore=,$(BASE_TESTS))
	cd models/demo/training && $(CURDIR)/$(BIN)/mypy
	cd models/demo/training && OMP_NUM_THREADS=1 $(CURDIR)/$(BIN)/pytest $(WORKERS)

test-clients: $(VENV)/demo.stamp ## other projects' clients against our server (CLIENTS="langchain guidellm")
	$(BIN)/python -m tests.clients $(CLIENTS)

# Where no index of torch for CPUs alone is named, the images get all of CUDA: gigabytes.
test-containers: $(VENV)/dev.stamp ## build the images and run them: docker, podman (CONTAINER_BASE=image TORCH_INDEX_URL=)
	$(BIN)/pytest tests/containers -v -rs

lint: $(VENV)/dev.stamp ## ruff (security rules too), import contracts, buf
	$(BIN)/ruff format --diff .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint

types: $(VENV)/dev.stamp ## strict mypy
	$(BIN)/mypy

audit: $(VENV)/dev.stamp ## ask online whether weaknesses of what locks/ names are known
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python locks/audit.py

protos: $(VENV)/dev.stamp ## generate protos/internvl/v1/*_pb2*
	PATH=$(CURDIR)/$(BIN):$$PATH protos/generate.sh

locks: $(VENV)/dev.stamp ## take the newest versions of all dependencies, and write locks/ anew
	PATH=$(CURDIR)/$(BIN):$$PATH locks/update.sh

libraries: ## take the page's libraries from npm anew, checked by their hashes (LIBRARIES=NAME@VERSION)
	$(PYTHON) locks/libraries.py $(LIBRARIES)

bench: $(VENV)/dev.stamp ## measure, and write tables to docs/benchmarks/
	$(BIN)/python -m tests.benchmarks
	$(BIN)/python -m tests.benchmarks.replicas

clean: ## remove .venv and caches
	rm -rf $(VENV) $(BASE_VENV) .venv-clients .mypy_cache .pytest_cache .ruff_cache .hypothesis dist *.egg-info

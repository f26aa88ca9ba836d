# Two commands are enough: `make demo` and `make test`. Both set up .venv first, with progress shown.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= .

.PHONY: help demo serve test test-all lint types protos bench clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(VENV)/demo.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/demo.stamp

demo: $(VENV)/demo.stamp ## start the three services on this machine, ask about pictures, stop
	$(BIN)/python -m models.demo

# Without a checkpoint of yours, the toy model.
TOY = --checkpoint models/demo/checkpoint --served-model-name internvl-demo
serve: $(VENV)/demo.stamp ## start the three services and keep them up (Ctrl-C stops; ARGS="--help")
	$(BIN)/internvl-serve $(if $(or $(findstring --checkpoint,$(ARGS)),$(findstring --config,$(ARGS))),,$(TOY)) $(ARGS)

test: $(VENV)/dev.stamp lint types ## lint, types and every test that ends within minutes
	$(BIN)/pytest -m 'not slow and not gpu'

test-all: $(VENV)/dev.stamp lint types ## every test
	$(BIN)/pytest

lint: $(VENV)/dev.stamp ## ruff, import contracts, buf
	$(BIN)/ruff format --diff .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint

types: $(VENV)/dev.stamp ## strict mypy
	$(BIN)/mypy
	$(BIN)/mypy tests

protos: $(VENV)/dev.stamp ## generate protos/internvl/v1/*_pb2* (OUT=folder: elsewhere)
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -I . --python_out=$(OUT) \
	  --grpc_python_out=$(OUT) --mypy_out=$(OUT) --mypy_grpc_out=$(OUT) protos/internvl/v1/*.proto

bench: $(VENV)/dev.stamp ## measure, and write tables to docs/benchmarks/
	$(BIN)/python -m tests.benchmarks

clean: ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist *.egg-info

# make demo    a video from bundled sample inputs, on any machine; DEMO_OPTIONS=--serve keeps the studio open
# make test    linter, type checker, all tests
# make test-fast    linter, and the tests of the first minute: those that start no stack, train nothing, render nothing
# Any of 3.11 to 3.14; the first that is found if none is named.
PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin
AUDIT := .venv-audit
DEMO_OUTPUT ?= demo-output
DEMO_OPTIONS ?=
# The lock names torch by version alone: the package index in use decides whether it is a CPU or a GPU build.
INSTALLED := $(VENV)/.installed

# Two test processes: tests/conftest.py says which tests stay together.
SPREAD := --numprocesses=2 --dist=loadgroup

# Threads that wait must sleep: spinning, they take four times the CPU where cores are shared.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-fast test-slow lint types tests docs pictures client clients lock audit sbom clean

demo: $(INSTALLED)
	$(BIN)/cointeract demo --output $(DEMO_OUTPUT) $(DEMO_OPTIONS)

test: lint types tests

test-fast: lint
	$(BIN)/pytest -m "not slow" $(SPREAD)

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow $(SPREAD)

lint: $(INSTALLED)
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

tests: $(INSTALLED)
	$(BIN)/pytest $(SPREAD)

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { python=$$(sh tools/find_python.sh $(PYTHON)) && "$$python" -m venv $(VENV); }
	@echo "Installing into $(VENV) with $$($(BIN)/python --version): some minutes the first time"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[model,train,dev]'
	touch $@

# The pages that are written from the code: settings, commands, file map.
docs: $(INSTALLED)
	$(BIN)/python -m tools.reference

# Pictures of the studio, from the running page.
pictures: $(INSTALLED)
	$(BIN)/python -m tools.pictures

# The async client, from the blocking one.
client: $(INSTALLED)
	$(BIN)/python -m tools.async_client
	$(BIN)/ruff format --quiet client

# What tests/server/test_generated_clients.py makes clients with, and LiteLLM for tests/server/test_litellm.py. Needs node and npm.
clients:
	python3 -m venv .clients/python
	.clients/python/bin/pip install --quiet openapi-python-client==0.29.1
	python3 -m venv .clients/litellm
	.clients/litellm/bin/pip install --quiet litellm==1.110.2
	npm install --prefix .clients --no-audit --no-fund openapi-typescript@7.13 openapi-fetch@0.17 typescript@5 @types/node@20

# Refresh the lock from what is installed and tested now.
lock: $(INSTALLED)
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' > constraints.txt

# Known holes of what the lock names (asks the vulnerability service of the package index), and a bill of materials.
audit: $(AUDIT)
	$(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

sbom: $(INSTALLED) $(AUDIT)
	$(AUDIT)/bin/cyclonedx-py environment $(BIN)/python --output-format JSON --output-file sbom.json

$(AUDIT): $(INSTALLED)
	$(BIN)/python -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet pip-audit cyclonedx-bom

clean:
	rm -rf $(VENV) $(AUDIT) sbom.json $(DEMO_OUTPUT) data .mypy_cache .ruff_cache .pytest_cache

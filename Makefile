# hublog: everything a newcomer needs. `make up` serves, `make test` proves.
.PHONY: help up test install install-test check format lock examples clean

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

help:
	@echo "make up       install into .venv and serve until Ctrl-C (two gateways, NATS, Postgres)"
	@echo "make test     install what tests need and run them all"
	@echo "make check    format, lint, import contracts, types, tests, migrations"
	@echo "make install  only install"
	@echo "make examples install what examples/chat needs (Node.js 20 or newer)"
	@echo "make format   put the code into its format"
	@echo "make lock     renew locks/*.txt from pyproject.toml"
	@echo "make clean    remove what was installed; data in .hublog/ stays"

up: install
	@$(BIN)/hublog up $(ARGS)

install: $(VENV)/.stamp-up
install-test: $(VENV)/.stamp-test

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "hublog needs Python 3.11 or newer; install python3.11 (Debian: apt install python3)" >&2; exit 1; }
	@echo "Creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv --clear $(VENV) || { echo "could not make $(VENV); on Debian: apt install python3-venv" >&2; exit 1; }

$(VENV)/.stamp-up: locks/up.txt pyproject.toml client/pyproject.toml | $(VENV)/bin/python
	@echo "Installing locks/up.txt (about 15 s)"
	@$(PIP) install --require-hashes --no-deps --only-binary :all: -r locks/up.txt
	@$(PIP) install --no-index --no-deps --no-build-isolation -e . -e client/
	@touch $@

$(VENV)/.stamp-test: locks/test.txt locks/chart.txt $(VENV)/.stamp-up
	@echo "Installing locks/test.txt and locks/chart.txt"
	@$(PIP) install --require-hashes --no-deps --only-binary :all: -r locks/test.txt
	@$(PIP) install --require-hashes --no-deps --only-binary :all: -r locks/chart.txt
	@touch $@

examples/chat/node_modules/.stamp: examples/chat/package-lock.json
	@command -v node >/dev/null 2>&1 || { echo "the stock JavaScript client needs Node.js 20 or newer on PATH" >&2; exit 1; }
	@cd examples/chat && npm ci --no-audit --no-fund --silent
	@touch $@

examples: examples/chat/node_modules/.stamp

test: install-test examples
	@$(BIN)/pytest $(ARGS)

check: install-test examples
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy
	@$(BIN)/pytest $(ARGS)

format: install-test
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

UV := $(BIN)/uv pip compile --no-config --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --quiet --custom-compile-command 'make lock'
lock: install-test
	@$(UV) pyproject.toml --extra up -o locks/up.txt
	@$(UV) pyproject.toml -c locks/up.txt -o locks/image.txt
	@$(UV) pyproject.toml --extra up --extra test -c locks/up.txt -o locks/test.txt
	@$(UV) pyproject.toml --extra chart -c locks/test.txt -o locks/chart.txt

clean:
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache examples/chat/node_modules

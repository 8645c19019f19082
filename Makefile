# make serve    install what serving needs and serve on 127.0.0.1:8000
# make example  draw a pair to try it with: example/onset.png, example/apex.png
# make test     install the rest; lint, types, import contracts, all tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PINS := pyproject.toml constraints.txt

.PHONY: serve example test format openapi wheel clean

serve: $(VENV)/.serve
	@$(BIN)/mfdan serve

example: $(VENV)/.serve
	@$(BIN)/python tests/drawn_face.py example

test: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

format: $(VENV)/.test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

openapi: $(VENV)/.serve
	$(BIN)/python -c 'import json; from service.app import create_app; \
	print(json.dumps(create_app().openapi(), indent=2, ensure_ascii=False))' > openapi.json

wheel: $(VENV)/.test
	rm -rf dist
	$(BIN)/python -m build --quiet

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The stamps are newer than the pins once everything is installed, so a second run is quick.
$(VENV)/.serve: $(PINS) | $(BIN)/python
	$(INSTALL) -e '.[cpu]'
	@touch $@

$(VENV)/.test: $(PINS) | $(BIN)/python
	$(INSTALL) -e '.[cpu,train,test]'
	@touch $@ $(VENV)/.serve

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo 'mfdan needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...'; exit 1; }
	$(PYTHON) -m venv $(VENV)

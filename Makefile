# make serve [MODEL=file.onnx]   install what serving needs and serve on 127.0.0.1:8000
# make example  draw a pair to try it with: example/onset.png, example/apex.png
# make weights FACES=dir [BLENDSHAPES=file]   remake the bundled model: about two hours on two cores
# make test     install the rest; lint, types, import contracts, pins, licences, all tests
# make check    all that runs nothing: as above without the tests, and known vulnerabilities as well
# make dashboards   write Grafana's dashboards anew, from docker/grafana/build.py
# make watch [PNG=file]   try dashboards and alerts on a live service, with a Prometheus from Debian
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TRAIN := $(BIN)/mfdan-train
RUNS ?= runs
PINS := pyproject.toml constraints.txt

.PHONY: serve example weights test check lint audit format openapi rules requirements image dashboards watch wheel clean

serve: $(VENV)/.serve
	@$(BIN)/mfdan serve $(if $(MODEL),--model '$(MODEL)')

example: $(VENV)/.serve
	@$(BIN)/python tests/drawn_face.py example

# Every step goes on where it was stopped. The scores are of another seed than the training's.
weights: MODEL ?= model/weights/mfdan-synthetic.onnx
weights: SYNTH = $(TRAIN) synth --faces $(FACES) $(if $(BLENDSHAPES),--blendshapes $(BLENDSHAPES))
weights: $(VENV)/.test
	@test -d '$(FACES)' || { echo 'say where the faces are: make weights FACES=dir'; exit 2; }
	$(SYNTH) --out $(RUNS)/pairs --seed 1 --pairs 12000
	$(SYNTH) --out $(RUNS)/pairs-test --seed 2 --pairs 4000
	$(TRAIN) fit $(RUNS)/pairs --out $(RUNS)/mfdan-synthetic
	$(TRAIN) export --run $(RUNS)/mfdan-synthetic --out $(MODEL)
	$(SYNTH) --out $(RUNS)/pairs-gates --seed 11 --pairs 16000 --none-fraction 0.4
	$(SYNTH) --out $(RUNS)/pairs-gates-test --seed 12 --pairs 7000 --none-fraction 0.6
	$(TRAIN) calibrate --model $(MODEL) $(RUNS)/pairs-gates
	$(TRAIN) evaluate --model $(MODEL) $(RUNS)/pairs-gates-test --write-spec

test: lint
	$(BIN)/pytest

check: lint audit

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pip check
	$(BIN)/python .ci/dependencies.py
	MYPYPATH=tests $(BIN)/mypy docker/deploy/*.py docker/grafana/*.py
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml compose.gpu.yaml
	$(BIN)/yamllint --strict docker-compose.yml compose.gpu.yaml docker
	$(BIN)/shellcheck .ci/run $(shell find .ci docker -name '*.sh')

# Asks the index about every pin. Fails where nobody can be asked, unless AUDIT_OFFLINE=1.
audit: $(VENV)/.test
	$(BIN)/python .ci/audit.py

format: $(VENV)/.test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

openapi: $(VENV)/.serve
	$(BIN)/python -c 'import json; from service.app import create_app; \
	print(json.dumps(create_app().openapi(), indent=2, ensure_ascii=False))' > openapi.json

# After a change of docker/prometheus/rules.
rules:
	docker/kubernetes/components/monitoring/prometheusrule.sh

# After any change of a pin: what the images install, each file by its hash.
requirements: $(VENV)/.test
	docker/image/requirements.sh $(BIN)/uv

# docker/Dockerfile followed without Docker, on Debian and as root: .ci/image.sh tells the rest.
image: $(VENV)/.test
	.ci/image.sh $(IMAGE_CACHE)

# docker/grafana/dashboards, from the code beside them.
dashboards: $(VENV)/.test
	$(BIN)/python docker/grafana/build.py

# Two to three minutes; the picture in docs/ is PNG=docs/dashboard.png.
watch: $(VENV)/.test
	$(BIN)/python .ci/watch.py $(if $(PNG),--png '$(PNG)')

wheel: $(VENV)/.test
	rm -rf dist
	$(BIN)/python -m build --quiet

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The stamps are newer than the pins once everything is installed, so a second run is quick.
$(VENV)/.serve: $(PINS) | $(BIN)/python
	$(INSTALL) -e '.[cpu,client]'
	@touch $@

$(VENV)/.test: $(PINS) | $(BIN)/python
	$(INSTALL) -e '.[cpu,client,offline,ray,test,traces,train]'
	@touch $@ $(VENV)/.serve

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo 'mfdan needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...'; exit 1; }
	$(PYTHON) -m venv $(VENV)

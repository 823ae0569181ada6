# make demo | test | soak | lab | figures | lint | clean -- each sets up .venv by itself
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test soak lab figures lint clean install
install: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -e '.[test]'
	touch $@

demo: $(READY)
	$(BIN)/python -m tase demo

test: $(READY)
	$(BIN)/python -m pytest

soak: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/soak -m soak -s

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=notebooks

figures: $(READY)
	$(BIN)/python -m tase figures --redraw figures

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf runs/demo build *.egg-info .pytest_cache .ruff_cache test-artefacts
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

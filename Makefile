# make demo | test | gpu | soak | oldest | lab | notebooks | figures | lint | clean -- each sets up its environment by itself
PYTHON ?= python3
DEVICE ?= cuda
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The lowest version that pyproject.toml allows of each library that the tests below need.
OLD := .venv-oldest
FLOORS := $(shell sed -n '/^dependencies/,/^]/s/.*"\(.*\)>=\(.*\)",/\1==\2/p' pyproject.toml | grep -v 'jupyter\|widget\|umap')
NOT_THERE := bench browser browser_report distributed engines extend gpu house notebooks report widgets
OLD_TEST = OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) $(OLD)/bin/python -m pytest -m 'not soak and not slow' -n auto --dist loadfile

.PHONY: demo test gpu soak oldest lab notebooks figures lint clean install
install: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -e '.[test]'
	touch $@

demo: $(READY)
	$(BIN)/tase demo

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile

$(OLD)/.ready: pyproject.toml
	$(PYTHON) -m venv $(OLD)
	$(OLD)/bin/pip install --disable-pip-version-check -q $(FLOORS) pytest pytest-timeout pytest-xdist hypothesis pytorch-metric-learning
	touch $@

oldest: $(OLD)/.ready
	$(OLD_TEST) $(NOT_THERE:%=--ignore=tests/test_%.py)

gpu: $(READY)
	$(BIN)/python -m tase.bench.gpu --device $(DEVICE)

soak: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/soak -m soak -s

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=notebooks

notebooks: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/run.py

figures: $(READY)
	$(BIN)/tase figures --redraw figures

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf runs/demo build *.egg-info .pytest_cache .ruff_cache test-artefacts
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# make demo: set up .venv, train and compare on real words and on a chaotic series, print the tables and the reports'
# paths; goes on where it was stopped
# make test: set up .venv, run the quick checks; make test-all adds the slow ones
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint types format clean

$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.demo
	@for name in g2p-demo mackey-glass-demo; do \
	again=--overwrite; \
	if test -e out/$$name/comparison.json && ! test -e out/$$name/results.json; then again=--resume; fi; \
	echo "freerun compare recipes/$$name.toml --out out/$$name $$again"; \
	$(BIN)/freerun compare recipes/$$name.toml --out out/$$name $$again || exit $$?; \
	done

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

test: lint types
	$(BIN)/python -m pytest -m "not slow" -n 2

test-all: lint types
	$(BIN)/python -m pytest -n 2

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) out

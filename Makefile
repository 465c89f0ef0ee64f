# make demo: in .venv-demo, train and compare on a chaotic series, first as symbols, then as values, and on real words; print
# the tables and the reports' paths; goes on where it was stopped
# make test: in .venv, run the quick checks; make test-all adds the slow ones
# Two environments, so that what the checks install cannot hide what the demo lacks.
PYTHON ?= python3
DEMO := .venv-demo
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all quick-tests all-tests lint types format clean

define install
$(1)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(1)
$(1)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[$(2)]'
touch $@
endef

$(DEMO)/.installed: pyproject.toml constraints.txt
	$(call install,$(DEMO),demo)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call install,$(VENV),dev)

demo: $(DEMO)/.installed
	@for name in symbols-demo mackey-glass-demo g2p-demo; do \
	again=--overwrite; \
	if test -e out/$$name/comparison.json && ! test -e out/$$name/results.json; then again=--resume; fi; \
	echo "freerun compare recipes/$$name.toml --out out/$$name $$again"; \
	$(DEMO)/bin/freerun compare recipes/$$name.toml --out out/$$name $$again || exit $$?; \
	done

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed
	$(BIN)/pyright --pythonpath $(BIN)/python

# the types, on one core, beside the tests
test: lint
	@$(MAKE) --no-print-directory -j2 types quick-tests

test-all: lint
	@$(MAKE) --no-print-directory -j2 types all-tests

quick-tests: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not slow" -n 2

all-tests: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(DEMO) $(VENV) out

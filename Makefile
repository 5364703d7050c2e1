PYTHON ?= python3
BIN := .venv/bin
NATIVE := $(wildcard gradscope/capture/native/*)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint samples screenshots clean

demo: .venv/samples
	$(BIN)/gradscope analyze sample_runs/deep_transformer.py --html report.html

test: .venv/test
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered --cov-fail-under=95 $(ARGS)

lint: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

samples: .venv/samples
	$(BIN)/python sample_runs/record.py

screenshots: .venv/test
	$(BIN)/python -m tests.browser.screenshots screenshots $(ARGS)

.venv/samples: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv .venv
	$(PIP) install -q -c constraints.txt -e ".[samples]"
	touch $@

.venv/test: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv .venv
	$(PIP) install -q -c constraints.txt -e ".[samples,test,lint]"
	touch $@ .venv/samples

clean:
	rm -rf .venv report.html screenshots

# The developer's gate: `make check` before every commit.
PYTHON := .venv/bin/python

.PHONY: check format lint imports types quick

check: format lint imports types quick

format:
	$(PYTHON) -m ruff format --check .

lint:
	$(PYTHON) -m ruff check .

imports:
	.venv/bin/lint-imports

types:
	$(PYTHON) -m mypy

quick:
	$(PYTHON) -m pytest -m "not slow and not browser and not shared" -n 3 --dist worksteal

# The developer's gate: `make check` before every commit.
PYTHON := .venv/bin/python

.PHONY: check gate format lint imports types quick faults powercut aarch64

check: gate quick

gate: format lint imports types

format:
	$(PYTHON) -m ruff format --check .

lint:
	$(PYTHON) -m ruff check .

imports:
	.venv/bin/lint-imports

# Twice, the second time as the oldest Python sees it; NumPy's own types are for newer ones, so there it returns Any.
types:
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy --python-version 3.10 --no-warn-return-any --no-warn-unused-ignores

quick:
	$(PYTHON) -m pytest -m "not slow and not browser and not shared and not alone" -n 3 --dist worksteal

# Strikes a device with every fault of tests/faults, as often as its table says (some twenty minutes), and prints what held.
faults:
	$(PYTHON) -m tests.faults

# Kills every change of the disk that releases make at each system call, cuts the power after each (some twenty minutes of a
# core), and prints what a restart found. Needs strace, which `./run setup` installs.
powercut:
	$(PYTHON) -m tests.powercut

# What a device gets on aarch64, and whether it runs and computes the same there (some minutes; the first time a root and wheels).
aarch64:
	$(PYTHON) -m bench.aarch64

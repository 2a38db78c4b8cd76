# Every target sets up .venv itself when it is missing or older than pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
RUN_DIR ?= runs/demo

.PHONY: demo test test-fast test-slow trial bench lint clean

demo: .venv/.installed
	$(BIN)/python train.py demo --run-dir $(RUN_DIR)
	$(BIN)/python evaluate.py $(RUN_DIR)

test: .venv/.installed
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-fast: .venv/.installed
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not long"

test-slow: .venv/.installed
	$(BIN)/python -m pytest -m slow

trial: .venv/.installed
	$(BIN)/python -m tests.trial

bench: .venv/.installed
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.train_step --amp bf16
	$(BIN)/python -m benchmarks.rollout --rounds 5
	$(BIN)/python -m benchmarks.rollout --rounds 5 --amp bf16
	$(BIN)/python -m benchmarks.train_step --family transport --amp bf16 --rounds 5
	$(BIN)/python -m benchmarks.rollout --family transport --amp bf16 --rounds 5
	$(BIN)/python -m benchmarks.evaluate
	$(BIN)/python -m benchmarks.data

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

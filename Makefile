# Every target sets up .venv itself when it is missing or older than pyproject.toml: `demo` with what training,
# evaluation and prediction need, the others with everything. TORCH=cpu takes torch without CUDA, a tenth of the size.
PYTHON ?= python3
BIN := .venv/bin
RUN_DIR ?= runs/demo
TORCH ?= default
ifeq ($(filter $(TORCH),default cpu),)
$(error TORCH is $(TORCH), expected cpu, or nothing for the usual torch)
endif
CORE := .venv/.core-$(TORCH)
DEV := .venv/.dev-$(TORCH)

.PHONY: demo test test-fast test-slow trial bench lint clean

demo: $(CORE)
	$(BIN)/python train.py demo --run-dir $(RUN_DIR)
	$(BIN)/python evaluate.py $(RUN_DIR)

test: $(DEV)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-fast: $(DEV)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not long"

test-slow: $(DEV)
	$(BIN)/python -m pytest -m slow

trial: $(DEV)
	$(BIN)/python -m tests.trial

bench: $(DEV)
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.train_step --amp bf16
	$(BIN)/python -m benchmarks.rollout --rounds 5
	$(BIN)/python -m benchmarks.rollout --rounds 5 --amp bf16
	$(BIN)/python -m benchmarks.train_step --family transport --amp bf16 --rounds 5
	$(BIN)/python -m benchmarks.rollout --family transport --amp bf16 --rounds 5
	$(BIN)/python -m benchmarks.evaluate
	$(BIN)/python -m benchmarks.data

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEV): $(CORE)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

.venv/.core-default: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

# From the start: pip would keep a torch that is there, with or without CUDA.
.venv/.core-cpu: pyproject.toml
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch torchvision --index-url https://download.pytorch.org/whl/cpu
	$(BIN)/python -m pip install --quiet -e .
	touch $@

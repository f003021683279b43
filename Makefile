# make chat   install, download the starter model, open the chat
# make test   install, run the tests
# make lint   formatting, types and the direction of imports
# make fuzz   mutated inputs for every parser, for MINUTES=10, from a new SEED
# make attack-models  every number of a model file extreme, and 10,000 mutated archives of torch
# make attack-text    thousands of hostile settings and prompt files
# make attack-streams  100,000 hostile streams of text, byte by byte, through every writer
# make attack-terminal  signals at hundreds of moments of a chat, closed windows, random chats in tmux
# make attack-server  20,000 malformed requests, and 1,000 clients that vanish
# make attack-ranks   ranks compared with one process, and killed at 100 moments of a chat
# make attack-kills   300 kills at random instants, power losses, and each call for a file failing in turn
# make attack-interrupts  Ctrl-C at 200 random instants of chats
# make sanitize  the kernels of this processor compared with the portable ones, under AddressSanitizer and UBSan
# make soak   1,000 turns of a chat and 10,000 requests to a server: nothing may grow
# make release  the wheel, the source, and the bill of materials of an installed wheel, in dist/
# make bench  speed of the starter model on this machine, and of its turns

PYTHON ?= python3
VENV   ?= .venv
# Tests in terminals wait more than they compute, so there are more workers than cores.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(3 * (os.cpu_count() or 1) // 2 or 1)')
BIN    := $(VENV)/bin
PIP     = $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: chat test lint fuzz fuzz-ci soak bench release clean
.PHONY: attack-models attack-text attack-streams attack-terminal attack-server attack-ranks
.PHONY: attack-kills attack-interrupts sanitize

chat: $(VENV)/.installed
	@$(BIN)/llama-chat pull smollm2-135m --quiet
	@$(BIN)/llama-chat --config config.toml

test: $(VENV)/.installed-dev
	@$(BIN)/llama-chat pull smollm2-135m --quiet
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --durations 10

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m harness.advisories

MINUTES ?= 10
SEED    ?= $(shell date +%s)

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --count 2000 --seed $(SEED)

fuzz-ci: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz --count 2000
	$(BIN)/python -m tests.fuzz --main --first 2000 --count 18000

attack-models: $(VENV)/.installed-dev
	$(BIN)/python -m harness.campaigns.model_numbers
	$(BIN)/python -m harness.campaigns.torch_archives

attack-text: $(VENV)/.installed-dev
	$(BIN)/python -m harness.campaigns.text

attack-streams: $(VENV)/.installed-dev
	$(BIN)/python -m harness.campaigns.streams

attack-terminal: $(VENV)/.installed-dev
	@$(BIN)/llama-chat pull smollm2-135m --quiet
	$(BIN)/python -m harness.campaigns.signals
	$(BIN)/python -m harness.campaigns.closings
	$(BIN)/python -m harness.campaigns.chats

attack-server: $(VENV)/.installed-dev
	$(BIN)/python -m harness.campaigns.server

attack-ranks: $(VENV)/.installed-dev
	@$(BIN)/llama-chat pull smollm2-135m --quiet
	$(BIN)/python -m harness.campaigns.rank_models
	$(BIN)/python -m harness.campaigns.ranks 100 1 2
	$(BIN)/python -m harness.campaigns.ranks 100 2 4

attack-kills: $(VENV)/.installed-dev
	$(BIN)/python -m harness.campaigns.kills
	LLAMA_CHAT_TEST_STATES=100 $(BIN)/python -m pytest tests/test_power_loss.py
	$(BIN)/python -m harness.campaigns.io_faults

attack-interrupts: $(VENV)/.installed-dev
	$(BIN)/python -m harness.campaigns.interrupts

sanitize: $(VENV)/.installed-dev
	LLAMA_CHAT_TEST_CFLAGS="-g -fsanitize=address,undefined -fno-sanitize-recover=undefined" \
		$(BIN)/python -m pytest tests/test_kernel_twins.py -k processor --timeout 3600

soak: $(VENV)/.installed-dev
	$(BIN)/python -m harness.campaigns.soak

bench: $(VENV)/.installed-dev
	@$(BIN)/llama-chat pull smollm2-135m --quiet
	$(BIN)/llama-chat bench --model smollm2-135m
	$(BIN)/python -m benchmarks.turns

release: $(VENV)/.installed-dev
	$(PIP) '.[release]'
	rm -rf dist build/release
	$(BIN)/hatchling build -d dist
	$(PYTHON) -m venv build/release
	build/release/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt dist/*.whl
	$(BIN)/cyclonedx-py environment build/release/bin/python --output-file dist/llama-chat.cdx.json

clean:
	rm -rf $(VENV) build dist llama_chat/kernels/_packed.so

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llama-chat needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt hatch_build.py $(wildcard llama_chat/kernels/*.[ch])
	@echo "Installing into $(VENV): torch is large, this takes a few minutes the first time."
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

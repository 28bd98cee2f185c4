# The four jobs of a working day. Each first makes sure that .venv is complete (a second call skips that at once).

.DEFAULT_GOAL := help
BIN := .venv/bin
KEEP ?=
T ?=
B ?=

.PHONY: help env demo test check bench clean

help: ## show what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

env: ## make or repair .venv (TRIBUTARY_DEVICE=cpu|gpu overrides the choice)
	@command -v python3 >/dev/null || { echo "set-up: Python is missing: apt-get install -y python3 python3-venv" >&2; exit 1; }
	@exec python3 -m deploy.environment

# `exec` puts the program itself under make: one Ctrl-C reaches it once, and make waits until it has stopped everything.
demo: env ## train on the addition task, steered live; KEEP=1 leaves it running
	@exec $(BIN)/tributary up examples/addition/run.toml --fresh --scenario examples/addition/scenario.toml $(if $(KEEP),--keep)

test: env ## run every test; T="-k words" or a path narrows it
	@exec $(BIN)/python -m pytest $(T)

check: env ## formatting, lint and types
	@failed=0; \
	$(BIN)/ruff format --check . || failed=1; \
	$(BIN)/ruff check . || failed=1; \
	$(BIN)/pyright || failed=1; \
	exit $$failed

bench: env ## list the benchmarks; B=name runs one
ifeq ($(B),)
	@awk 'FNR == 1 {name = FILENAME; sub(/.*\//, "", name); sub(/\.py$$/, "", name); sub(/^"""/, ""); \
	  if (name !~ /^_/) printf "  make bench B=%-20s %s\n", name, $$0}' benchmarks/*.py
else
	@exec $(BIN)/python -m benchmarks.$(B)
endif

clean: ## remove .venv, caches and what runs left behind
	rm -rf .venv .venv.lock build dist runs *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

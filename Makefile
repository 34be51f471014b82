# `make` lists the targets. Everything is installed into .venv; a second run does not install again.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
BIN    := $(VENV)/bin

# `make image`: each variable that is set becomes an option of `vidattn generate`.
PROMPT  ?= two 3d bicycle on a yellow background
SIZE    ?= 256
PATTERN ?= neighborhood
SEED    ?= 2
OUT     ?= out/image.png
# The first steps lay the picture out: a quarter of them dense, as the video methods do, keeps subjects whole.
DENSE_STEPS ?= 5
OPTIONS := PROMPT SIZE PATTERN SEED STEPS DENSE_STEPS OUT MODEL DEVICE DTYPE GUIDANCE
# Handed over through the environment and never expanded, so that a prompt may hold spaces, quotes and dollar signs.
$(foreach v,$(OPTIONS),$(eval export ARG_$(v) := $$(value $(v))))
option = $(if $(value $(1)),$(2) "$$ARG_$(1)")

# One thread a worker: workers times threads stay within the cores.
export PYTHONDONTWRITEBYTECODE ?= 1
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help image bench test lint types check format wheel smoke clean clean-all
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

image: $(VENV)/.installed  ## a picture from PROMPT, sparse and dense: make image PROMPT="..." SIZE=512 PATTERN=clear
	@$(BIN)/vidattn generate --compare dense $(call option,PROMPT,--prompt) $(call option,SIZE,--size) \
	    $(call option,PATTERN,--pattern) $(call option,SEED,--seed) $(call option,STEPS,--steps) \
	    $(call option,OUT,--output) $(call option,MODEL,--model) $(call option,DEVICE,--device) \
	    $(call option,DTYPE,--dtype) $(call option,GUIDANCE,--guidance) \
	    $(call option,DENSE_STEPS,--dense-steps) --min-tokens 0

bench: $(VENV)/.installed  ## attention calls on this machine: make bench ARGS="cpu-64 --threads 1"
	@$(BIN)/vidattn bench $(ARGS)

test: $(VENV)/.installed-dev  ## the whole suite: make test ARGS="-k patterns"
	@$(TEST_ENV) $(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff, style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy
	@$(BIN)/mypy

check: lint types test  ## lint, types and test

format: $(VENV)/.installed-dev  ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

wheel: $(VENV)/.installed-dev  ## dist/*.whl, with the demo model inside where the checkout has it
	@rm -rf build dist
	@$(BIN)/python -m pip --disable-pip-version-check wheel -q --no-deps -w dist .
	@ls -l dist/*.whl | awk '{printf "%s %.1f MB\n", $$NF, $$5 / 1e6}'

smoke: wheel  ## install that wheel into a fresh environment and use it
	@bash .ci/smoke $(VENV) dist/*.whl

clean:  ## remove what builds and tests leave
	@rm -rf build dist out .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
	@rm -f $(VENV)/.installed $(VENV)/.installed-dev

clean-all: clean  ## the environment too
	@rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml setup.py constraints.txt .ci/venv
	@PYTHON="$(PYTHON)" sh .ci/venv "$(VENV)"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py constraints.txt .ci/venv
	@PYTHON="$(PYTHON)" sh .ci/venv "$(VENV)" dev
	@touch $(VENV)/.installed $@

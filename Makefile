# Everything works from a bare checkout with python3, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GOLDEN := tests/golden
PICTURES := examples/pictures
DEMO := .demo
PACKAGED := .packaged
JOBS ?= 2

.PHONY: help demo test test-slow lint types package bench clean

help:
	@echo "make demo       three pictures, three questions, three answers; then a conversion"
	@echo "make test       lint, type-check and test"
	@echo "make test-slow  the tests that take minutes"
	@echo "make package    wheel and sdist, checked, installed elsewhere and asked a question"
	@echo "make bench      times, other encoders, mlx-vlm, Core ML, conversion (35 GB of disk): writes docs/benchmarks.md"
	@echo "make clean      remove what the above made"

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e .
	touch $@

$(VENV)/tested: $(VENV)/installed requirements-peers.txt
	$(BIN)/pip install -q --disable-pip-version-check -e ".[dev]"
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r requirements-peers.txt
	touch $@

# Picture, question, answer: the built-in model, and what happens to weights on their way to it.
demo: $(VENV)/installed
	rm -rf $(DEMO)
	@$(call ask,shapes,Describe the picture.)
	@$(call ask,word,What does the text say?)
	@$(call ask,chart,Which bar is tallest?)
	$(BIN)/fastvlm-mlx doctor $(GOLDEN)/checkpoints/apple-train/untied
	$(BIN)/fastvlm-mlx convert $(GOLDEN)/checkpoints/apple-train/untied -o $(DEMO)/fused --verify
	$(BIN)/fastvlm-mlx convert $(DEMO)/fused -o $(DEMO)/8bit -q --q-bits 8 --verify
	@echo "Your own picture: $(BIN)/fastvlm-mlx generate PICTURE -p QUESTION"
	@echo "For photographs add -m 0.5b (downloads FastVLM-0.5B once, 1.2 GB, research licence)"

ask = echo "$(PICTURES)/$(1).png: $(2)" && $(BIN)/fastvlm-mlx generate $(PICTURES)/$(1).png -m tiny --show -p "$(2)"

test: lint types
	$(BIN)/pytest -q -n $(JOBS)

test-slow: $(VENV)/tested
	$(BIN)/pytest -q -m slow

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/tested
	$(BIN)/mypy fastvlm_mlx tiny

# From an empty folder, so that nothing of the checkout is imported.
package: $(VENV)/installed
	rm -rf dist build $(PACKAGED) && mkdir -p $(PACKAGED)
	$(BIN)/pip install -q --disable-pip-version-check build twine
	$(BIN)/python -m build -q .
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv $(PACKAGED)/venv
	$(PACKAGED)/venv/bin/pip install -q --disable-pip-version-check dist/*.whl
	cp $(PICTURES)/chart.png $(PACKAGED)/ && cd $(PACKAGED) && \
	    venv/bin/fastvlm-mlx generate chart.png -m tiny -p "Which bar is tallest?" | grep -x H
	$(PACKAGED)/venv/bin/pip install -q --disable-pip-version-check --force-reinstall --no-deps dist/*.tar.gz
	cd $(PACKAGED) && venv/bin/fastvlm-mlx generate chart.png -m tiny -p "Which bar is tallest?" | grep -x H

bench: $(VENV)/tested
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/write.py

clean:
	rm -rf $(VENV) $(DEMO) $(PACKAGED) dist .mypy_cache .ruff_cache .pytest_cache build *.egg-info

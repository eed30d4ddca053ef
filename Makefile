# `make` lists the targets. Everything runs in $(VENV), made on first use; pip is the only network.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
PY := $(VENV)/bin/python
EXTRAS ?= test,dev,docs,report,train,data,search,lancedb,cluster,shots,heic,notebooks,plugins
STAMP := $(VENV)/.installed
# Extra words for the command of a target: make test ARGS="-k loss", make demo ARGS="--seed 1".
ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help install fix check test test-avx2 test-slow test-wheel test-real test-family test-system test-floors test-newest test-python \
	docs demo table table-quick table-shares crossfit table-storybook8 table-photo9 ablations film9 bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-17s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# An existing environment is used as it is: python3.11 is what the suite runs on, a newer python3 is taken without it.
$(PY):
	@for python in python3.11 python3; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "creating $(VENV) with $$("$$python" --version)"; exec "$$python" -m venv "$(VENV)"; \
	  fi; \
	done; \
	echo "no Python >= 3.11 found as python3.11 or python3: install one (with its venv module) and repeat" >&2; exit 1

$(STAMP): setup.py constraints.txt | $(PY)
	$(PY) -m pip install -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

install: $(STAMP)  ## .venv with the package and its tools, at the tested versions

fix: $(STAMP)  ## lint with fixes, then format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

check: $(STAMP)  ## lint, format, spelling and words, types, layers; changes nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/codespell
	$(PY) -m mypy
	$(PY) -m pytest -q tests/project/test_layers.py tests/project/test_words.py

# One thread a worker: a file's tests stay in one process, and the cores are the workers'.
SUITE = -m pytest -q -n 2 --dist loadfile $(ARGS)
test test-avx2 test-floors test-newest test-python: export OMP_NUM_THREADS := 1

test: $(STAMP)  ## everything not marked slow, two files at a time
	$(PY) $(SUITE)

# Whose products round, and of 8-bit integers overflow, otherwise: most desktops, and many machines of CI services.
test-avx2: export ATEN_CPU_CAPABILITY := avx2
test-avx2: export MKL_ENABLE_INSTRUCTIONS := AVX2
test-avx2: export ONEDNN_MAX_CPU_ISA := AVX2
test-avx2: $(STAMP)  ## the same as on a processor without AVX-512
	$(PY) $(SUITE)

test-slow: $(STAMP)  ## the slow tests only
	$(PY) -m pytest -q -m slow $(ARGS)

DATA ?= ../shared/data

test-wheel: $(STAMP)  ## wheel and source distribution from a local package index; the wheel runs every verb
	$(PY) -m pytest -q -m slow $(ARGS) tests/commands/test_wheel.py

test-real: $(STAMP)  ## the builders on the real files: make test-real DATA=<folder with annotations/, storybook8/, ...>
	$(PY) -m pytest -q -m real_data --real_data $(DATA) $(ARGS)

# Environments of their own, beside .venv. PyPI's torch for Linux is a CUDA build (2 to 4 GB with what it brings), and
# the oldest is only to be had so; it runs on a CPU all the same.
test-floors:  ## the suite with every requirement of setup.py at its floor
	python3.11 -m venv .venv-floors
	python3.11 tests/floors.py test,report,train,data,search > .venv-floors/constraints.txt
	.venv-floors/bin/python -m pip install -c .venv-floors/constraints.txt -e ".[test,report,train,data,search]"
	.venv-floors/bin/python $(SUITE)

test-newest:  ## the suite with the newest versions that pip finds
	python3.11 -m venv .venv-newest
	.venv-newest/bin/python -m pip install --upgrade --upgrade-strategy eager -e ".[test,report,train,data,search,plugins]"
	.venv-newest/bin/python $(SUITE)

V ?= 3.12
test-python:  ## the suite on another Python, extras and all: make test-python V=3.13
	python$(V) -m venv .venv-$(V)
	.venv-$(V)/bin/python -m pip install -c constraints.txt -e ".[test,report,train,data,search,plugins]"
	.venv-$(V)/bin/python $(SUITE) -rs

$(STAMP)-family: $(STAMP)
	$(PY) -m pip install -c constraints.txt -e ".[family]"
	@touch $@

test-family: $(STAMP)-family  ## transformers' own shared test suite over our classes; fetches its sdist once
	$(PY) tests/fetch_family_suite.py cache/transformers_tests
	HF_HUB_OFFLINE=1 $(PY) -m pytest -q -rs -m "" tests/model/test_family.py $(ARGS)

# The Space has an environment of its own: its gradio lives with an older pillow than constraints.txt has.
SPACE := $(VENV)-space
$(SPACE)/.installed: setup.py constraints.txt examples/space/requirements.txt | $(PY)
	$(PY) -m venv $(SPACE)
	grep -v '^pillow==' constraints.txt > $(SPACE)/constraints.txt
	$(SPACE)/bin/python -m pip install -c $(SPACE)/constraints.txt -e ".[test]" playwright==1.65.2 -r examples/space/requirements.txt
	@touch $@

test-system: $(SPACE)/.installed demo  ## the Space in Chromium, torchcodec beside PyAV; apt installs what is missing
	@command -v chromium >/dev/null && fc-list :lang=zh | grep -q . && fc-list | grep -qi emoji || \
	  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
	    chromium fontconfig fonts-noto-cjk fonts-noto-color-emoji; }
	$(SPACE)/bin/python -m pytest -q -m system $(ARGS) tests/examples/test_space_system.py tests/examples/test_media_page_system.py
	$(SPACE)/bin/python -m pytest -q tests/examples/test_media_page.py
	@command -v ffmpeg >/dev/null || { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ffmpeg; }
	$(PY) -m venv --system-site-packages $(VENV)-torchcodec
	$(VENV)-torchcodec/bin/python -m pip install --no-deps torchcodec==0.12.0
	PYTHONPATH=$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	  $(VENV)-torchcodec/bin/python -m pytest -q -m system $(ARGS) tests/model/test_video_decoding_mmt.py

docs: $(STAMP)  ## the site, in build/site; a broken link is an error
	$(PY) docs/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

demo: $(STAMP)  ## encoders, features, three rows, a checkpoint that searches any folder; at most 15 minutes on 2 cores
	$(PY) -m mmt demo --output_dir runs/demo/pixels $(ARGS)

table: $(STAMP)  ## the whole grid on emoji9, 3 seeds; hours, resumes row by row
	$(PY) experiments/run.py table $(ARGS)

table-quick: $(STAMP)  ## the same path with one seed; at most 20 minutes
	$(PY) experiments/run.py table --quick $(ARGS)

table-shares: $(STAMP)  ## pre-training where a quarter, a half or all clips have names, 5 seeds; hours, resumes row by row
	$(PY) experiments/named_shares.py $(ARGS)

crossfit: $(STAMP)  ## six of its rows in five folds, so that every concept is a test query; hours, resumes run by run
	$(PY) experiments/crossfit.py $(ARGS)

table-storybook8: $(STAMP)  ## the same rows on picture books: make table-storybook8 DATA=<folder with storybook8/>
	$(PY) experiments/storybook8.py --data_dir $(DATA)/storybook8 $(ARGS)

table-photo9: $(STAMP)  ## rows with and without photographs on real ones: make table-photo9 DATA=<folder with photo9/ and art4apps7/>
	$(PY) experiments/photo9.py --data_dir $(DATA) $(ARGS)

film9: $(STAMP)  ## films with subtitles made of emoji9, pre-trained on and searched for moments; hours, resumes
	$(PY) experiments/film9.py $(ARGS)

ablations: $(STAMP)  ## one switch at a time, on validation
	$(PY) experiments/run.py ablations $(ARGS)

$(STAMP)-bench: $(STAMP)
	$(PY) -m pip install -c constraints.txt -e ".[bench]"
	$(PY) -m pip install --no-deps open_clip_torch==3.3.0  # its loss.py alone is used: benchmarks/requirements.txt
	@touch $@

bench: $(STAMP)-bench  ## speed and memory beside the peers
	$(PY) benchmarks/run_all.py $(ARGS)

clean:  ## caches and build output; keeps .venv, runs and features
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -print0 | xargs -0 -r rm -rf

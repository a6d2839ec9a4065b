# Each target sets up what it needs on a machine with Python, a C++ compiler and make.
# The first build of llama-cpp-python takes some three minutes on two cores; pip keeps the wheel.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LLAMA_CPP := build/llama.cpp
LLAMA_PERPLEXITY := build/peers/bin/llama-perplexity
export MCONV_LLAMA_CPP := $(abspath $(LLAMA_CPP))
export MCONV_LLAMA_PERPLEXITY := $(abspath $(LLAMA_PERPLEXITY))

.PHONY: demo demo-files test oracles lint bench bench-perplexity clean

# The first result is there before llama-cpp-python is built, which only running a model needs.
demo: demo-files $(VENV)/.runtime
	$(BIN)/python examples/demo.py release

demo-files: $(VENV)/.packages
	$(BIN)/python examples/demo.py files

test: lint $(LLAMA_CPP)/.source
	$(BIN)/python -m pytest -n auto --dist worksteal

# What `make test` compares with is recorded in tests/golden: here the other programs are run again, and must still say
# so. `make oracles RECORD=1` records what they say now.
oracles: $(LLAMA_CPP)/.source $(LLAMA_PERPLEXITY)
	$(BIN)/python -m pytest -n auto --dist worksteal $(if $(RECORD),--record-golden,--oracles)

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(LLAMA_CPP)/.source
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/directions.py

# llama-perplexity is built from the same source, which takes some minutes.
bench-perplexity: $(LLAMA_CPP)/.source $(LLAMA_PERPLEXITY)
	mkdir -p build/bench
	$(BIN)/mquant examples/tiny-mistral --type Q4_K_M --output-dir build/bench --overwrite
	$(BIN)/python benchmarks/perplexity.py build/bench/tiny-mistral-Q4_K_M.gguf examples/tiny-mistral-eval.txt \
		--llama-perplexity $(LLAMA_PERPLEXITY) --chunks 100

$(LLAMA_PERPLEXITY): $(LLAMA_CPP)/.source
	$(PIP) install --quiet cmake ninja
	$(BIN)/cmake -G Ninja -S $(LLAMA_CPP) -B build/peers -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
	$(BIN)/cmake --build build/peers --target llama-perplexity

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Everything that comes as a wheel.
$(VENV)/.packages: pyproject.toml constraints.txt $(VENV)/bin/python
	$(BIN)/python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
		print(*(name for name in project['dependencies'] if not name.startswith('llama-cpp')), sep='\n')" > $(VENV)/wheels.txt
	$(PIP) install --quiet --constraint constraints.txt --requirement $(VENV)/wheels.txt
	$(PIP) install --quiet --no-deps --editable .
	touch $@

# llama-common is what llama.cpp's own programs share: a good part of the build, and no part of the Python package.
$(VENV)/.runtime: $(VENV)/.packages
	echo 'set(LLAMA_BUILD_COMMON OFF)' > $(VENV)/llama.cpp.cmake
	CMAKE_ARGS="$(CMAKE_ARGS) -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(abspath $(VENV)/llama.cpp.cmake)" \
		$(PIP) install --quiet --constraint constraints.txt --editable '.[original]'
	touch $@

$(VENV)/.development: $(VENV)/.runtime
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The source of llama-cpp-python carries llama.cpp, whose own converter the tests and benchmarks run beside ours.
$(LLAMA_CPP)/.source: $(VENV)/.development
	mkdir -p build
	$(PIP) download --quiet --no-deps --no-binary llama-cpp-python --constraint constraints.txt --dest build llama-cpp-python
	rm -rf $(LLAMA_CPP) && mkdir -p $(LLAMA_CPP)
	tar --extract --gzip --file build/llama_cpp_python-*.tar.gz --directory $(LLAMA_CPP) --strip-components 3 \
		--wildcards '*/vendor/llama.cpp'
	touch $@

clean:
	rm -rf build $(VENV) .pytest_cache .mypy_cache .ruff_cache

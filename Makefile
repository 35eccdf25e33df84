# The commands of the README, and what they are made of.
PYTHON ?= python3
PIP_INSTALL = bin/pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO_IMAGE = examples/street.png
DEMO_EXPRESSION = the green van

.PHONY: demo test check lint types layers build/types docs dist lean gpu-kit clean

# A lean install, as a service would have it, and one picture.
demo: .venv/installed
	.venv/bin/rism run $(DEMO_IMAGE) "$(DEMO_EXPRESSION)"

.venv/installed: pyproject.toml constraints.txt $(shell find rism runtime export calibration evaluation serve batch -type f -not -name '*.pyc')
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	rm -rf build  # left by an earlier one, it would bring deleted files back
	.venv/$(PIP_INSTALL) ".[cpu]"
	touch $@

# Everything a change needs to pass, pytest last.
test: check
	.venv-dev/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder \
		$(PYTEST_ARGS)

check: lint types docs

lint: .venv-dev/installed
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .

# Neither mypy nor import-linter follows the package-dir mapping of pyproject.toml; links lay the
# package out as a wheel would.
build/types: .venv-dev/installed
	rm -rf build/types
	mkdir -p build/types/rism
	cd build/types/rism && ln -s ../../../rism/* ../../../runtime ../../../export ../../../calibration \
		../../../evaluation ../../../serve ../../../batch .
	cd build/types && ln -s ../../mini ../../benchmarks .

types: build/types
	cd build/types && ../../.venv-dev/bin/mypy --config-file ../../pyproject.toml \
		-p rism -p mini -p benchmarks

# build/docs/VERSION/: the pages of docs/ and the API, from the docstrings. Any warning is an error.
docs: .venv-dev/installed
	.venv-dev/bin/python -m sphinx -E -W --keep-going --quiet docs \
		build/docs/$$(.venv-dev/bin/python -c 'import rism; print(rism.__version__)')

# Who may import whom: the contracts in pyproject.toml.
layers: build/types
	cd build/types && PYTHONPATH=. ../../.venv-dev/bin/lint-imports ../../pyproject.toml

.venv-dev/installed: pyproject.toml constraints.txt
	test -x .venv-dev/bin/python || $(PYTHON) -m venv .venv-dev
	.venv-dev/$(PIP_INSTALL) -e ".[dev]"
	touch $@

# What a machine with a GPU, PyTorch, Triton and CuPy lacks for a first measurement. It travels in
# this checkout; the machine needs no network.
gpu-kit:
	rm -rf build/gpu-kit
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps -c constraints.txt \
		-d build/gpu-kit diffusers
	@echo 'Copy this folder to the machine with the GPU and run there (8 minutes at most):'
	@echo '  python3 -m pip install --no-index --no-deps --target build/gpu-kit/site' \
		'build/gpu-kit/*.whl && PYTHONPATH=build/gpu-kit/site python3 benchmarks/gpu_run.py --out gpu-run'
	@echo 'Bring gpu-run back: python -m benchmarks.gpu_results gpu-run'

# dist/: the sdist, and the wheel that is built from it.
dist: .venv-dist/installed
	rm -rf dist *.egg-info  # what an earlier one left would travel
	.venv-dist/bin/python -m build
	.venv-dist/bin/twine check --strict dist/*

# The runtime's tests without the export's packages, on each Python that is here.
lean:
	tests/lean.sh $(PYTHONS)

.venv-dist/installed: constraints.txt
	test -x .venv-dist/bin/python || $(PYTHON) -m venv .venv-dist
	.venv-dist/$(PIP_INSTALL) build twine
	touch $@

clean:
	rm -rf .venv .venv-dev .venv-dist build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

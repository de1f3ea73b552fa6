# `make check` is what CI runs after the install; `make fast` is for in between.
PYTHON ?= python
NEW = $(PYTHON) tools/new_method.py

.PHONY: check check-without-tests lint types arrows docstrings doctests docs tests fast new capabilities bench

check: check-without-tests tests

check-without-tests: lint types arrows docstrings doctests docs

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy tools examples

arrows:
	$(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

docstrings:
	$(PYTHON) -m interrogate --quiet src/repertory

doctests:
	$(PYTHON) -m pytest --doctest-modules src/repertory

# The examples are run by tests/test_examples.py.
tests:
	$(PYTHON) -m pytest

docs:
	@if $(PYTHON) -c "import mkdocs, material, latex2mathml" 2>/dev/null; \
	then NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet; \
	else echo 'docs: left out; pip install -e ".[docs]" brings what builds them'; fi

# The tests of what you touched since the last commit.
fast:
	$(PYTHON) tools/touched_tests.py

# make new slug=my-method kind=loss [name=MyMethod]
new:
	$(NEW) $(slug) --kind $(kind) $(if $(name),--name $(name))

capabilities:
	$(PYTHON) -m repertory.testing.capabilities

bench:
	@for script in $$(grep -l __main__ benchmarks/*.py); do echo "== $$script"; $(PYTHON) $$script || exit 1; done

# make test [STRICT=1] [ARGS=...]      run every test, or those of ARGS; STRICT=1 fails
#                                      where a tool is missing instead of skipping
# make demo [REDIS_URL=...] [PORT=...] serve the demo; with Redis, from four workers
# make load [ARGS="coalesce --short"]  measure: streams [SCENARIO], coalesce, dashboard, emitting,
#                                      failover, faults, rolling, screen, soak
# make client [STATIC=...]             build the browser's scripts from static/src, to be committed
# make lint | docs | build | installed | clean

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
STATIC ?= flask_noc_realtime/static

BIN := $(VENV)/bin
RUN := $(BIN)/python

.DELETE_ON_ERROR:
.PHONY: help test demo client lint docs build installed load clean

help:
	@sed -n 's/^# //p; /^$$/q' Makefile

ifdef STRICT
export NOC_REALTIME_TEST_STRICT := $(STRICT)
endif

# The second run is patched before pytest is imported, as apps are under gunicorn -k gevent.
# There a greenlet that never gives way also outlives pytest's timeout, which only interrupts
# whoever runs; faulthandler's own thread says where, and ends the run.
test: $(VENV)/.test $(if $(STRICT),$(VENV)/.load)
	$(RUN) -m pytest $(ARGS)
ifeq ($(ARGS),)
	NOC_REALTIME_TEST_GEVENT=1 $(RUN) -m gevent.monkey --module pytest \
	  -o faulthandler_timeout=150 -o faulthandler_exit_on_timeout=true tests/unit tests/contract
endif

demo: $(VENV)/.demo
	@exec $(RUN) -m demo_app

# The build is named by its sources: tabs that run different ones share no stream.
client: SRC := flask_noc_realtime/static/src
client: | $(RUN)
	packages=$$($(RUN) -m tests.npm) && \
	build=$$(cat $(SRC)/*.js | sha256sum | cut -c1-8) && \
	esbuild() { \
	  "$$packages"/node_modules/.bin/esbuild "$$@" --bundle --minify --target=es2022 \
	    --define:NOC_REALTIME_BUILD="'$$build'" --log-level=warning \
	    '--banner:js=// Built by `make client`; the source is in static/src.'; \
	} && \
	esbuild $(SRC)/module.js --format=esm --outfile=$(STATIC)/noc-realtime.js && \
	esbuild $(SRC)/classic.js --format=iife --global-name=NocRealtime \
	  --outfile=$(STATIC)/noc-realtime.classic.js

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(RUN) -m sphinx -W --keep-going -b html docs docs/_build/html

build: $(VENV)/.build
	rm -rf dist
	$(RUN) -m build --outdir dist .

# The wheel in an environment that holds nothing else.
installed: build
	rm -rf build/installed
	$(PYTHON) -m venv build/installed
	build/installed/bin/python -m pip install --disable-pip-version-check --quiet dist/*.whl
	build/installed/bin/python tests/installed.py

load: $(VENV)/.load
	$(RUN) -m tests.load $(ARGS)

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache

# One stamp for each set of extras: a second call starts at once.
$(VENV)/.test: EXTRAS = demo,test
$(VENV)/.demo: EXTRAS = demo
$(VENV)/.lint: EXTRAS = dev
$(VENV)/.build: EXTRAS = dev
$(VENV)/.docs: EXTRAS = docs
$(VENV)/.load: EXTRAS = demo,load
$(VENV)/.%: setup.cfg pyproject.toml | $(RUN)
	$(RUN) -m pip install --disable-pip-version-check --quiet --editable '.[$(EXTRAS)]'
	@touch $@

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "This needs Python 3.10 or newer, and '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1 || true). Install one and say which:" \
	    "make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "The module venv is missing or broken; on Debian and Ubuntu:" \
	    "apt-get install python3-venv" >&2; exit 1; }

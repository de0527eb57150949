# `make demo` and `make test` each set up what they need. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WHEEL_VENV := .venv-wheel
AUDIT_VENV := .venv-audit
OSV_URL ?= https://api.osv.dev/v1/query
INSTALLED := build/installed
RIVALS := build/rivals
HOME_ASSISTANT := build/home-assistant/root
NODE_RED := build/node_red
ASYNCAPI := build/asyncapi
OBSERVABILITY := build/observability
PIP_FLAGS := --quiet --disable-pip-version-check
PINNED := --constraint constraints.txt --build-constraint constraints.txt
# Tests wait for real programs most of the time, so that four at once suit two cores; some take a minute.
PYTEST_FLAGS ?= -n 4 --dist worksteal
ARGS ?=

# Without a lock file, which would name a registry: the versions are in package.json.
define npm-install
@scripts/need node:nodejs npm:npm
mkdir -p $(@D) && cp $^ $(@D)
cd $(@D) && npm install --no-package-lock --omit=dev --no-audit --no-fund --loglevel=error
@touch $@
endef

.DEFAULT_GOAL := help
.PHONY: help demo test check instructions format schemas test-checkout test-wheel test-contract test-install test-observability test-nodered test-homeassistant wheel bench bench-growth bench-small bench-blocked bench-wall chaos chaos-fleet test-cluster soak fuzz container unit audit clean programs

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

demo: $(VENV)/.runtime ## the main job on this machine; options: make demo ARGS="--duration 20 --no-browser"
	@$(BIN)/ccgateway2mqtt demo $(ARGS)

test: check instructions test-checkout test-wheel ## everything that a change must pass

check: $(VENV)/.development ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# First, while nothing else runs: what waits for a busy machine counts a little otherwise.
instructions: $(VENV)/.development ## what a poll and an event cost, in machine instructions, against what is noted
	@scripts/need mosquitto:mosquitto valgrind:valgrind
	$(BIN)/python -m bench.instructions

test-checkout: $(VENV)/.development programs ## the tests on this checkout, with coverage
	$(BIN)/pytest $(PYTEST_FLAGS) --cov --cov-report=term $(ARGS)

# What a user installs: in a copy of the tree, with the wheel ahead of it on the path. Its code is that of the checkout,
# so these are the tests of what depends on how it is installed: commands, files beside the code, extras.
WHEEL_TESTS := asyncapi cli cli_help completion config_schema contracts demo docs doctor end_to_end examples home_assistant nats purge send wall_run watch
test-wheel: $(WHEEL_VENV)/.development programs ## the tests of what is installed, on the built wheel
	rm -rf $(INSTALLED) && mkdir -p $(INSTALLED)
	git ls-files -z | xargs -0 cp --parents --target-directory=$(INSTALLED)
	cd $(INSTALLED) && export PYTHONSAFEPATH=1 && \
	  export PYTHONPATH="$$(../../$(WHEEL_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'):$$PWD" && \
	  ../../$(WHEEL_VENV)/bin/python -c 'import adapter; assert "site-packages" in adapter.__file__, adapter.__file__' && \
	  ../../$(WHEEL_VENV)/bin/pytest $(PYTEST_FLAGS) -m "not harm and not page" $(WHEEL_TESTS:%=tests/test_%.py) $(ARGS)

test-install: $(VENV)/.development ## wheel and sdist: each built, installed into an empty environment, and run there
	$(BIN)/pytest $(ARGS) tests_install

test-contract: $(ASYNCAPI)/.installed ## schemas/asyncapi.yaml, by AsyncAPI's own parser
	node $(ASYNCAPI)/validate.mjs schemas/asyncapi.yaml

$(ASYNCAPI)/.installed: scripts/asyncapi/package.json scripts/asyncapi/validate.mjs
	$(npm-install)

test-nodered: $(VENV)/.development programs $(NODE_RED)/.installed ## the shipped flows in a real Node-RED, on a real broker and in a browser
	$(BIN)/pytest -n 2 $(ARGS) tests_nodered

$(NODE_RED)/.installed: tests_nodered/package.json
	$(npm-install)

test-observability: $(VENV)/.development $(OBSERVABILITY)/.installed ## alerts and dashboard, on a real Prometheus
	@scripts/need mosquitto:mosquitto prometheus:prometheus promtool:prometheus
	$(BIN)/pytest tests_observability $(ARGS)

$(OBSERVABILITY)/.installed: tests_observability/package.json
	$(npm-install)

test-homeassistant: $(VENV)/.development programs ## discovery and its examples, in the newest real Home Assistant; needs root
	@scripts/need mmdebstrap:mmdebstrap unshare:util-linux setpriv:util-linux
	tests_homeassistant/install $(HOME_ASSISTANT)
	$(BIN)/pytest $(ARGS) tests_homeassistant

wheel: dist/.built ## build the wheel into dist/

bench: $(VENV)/.development programs $(RIVALS)/go/poll $(RIVALS)/node_red/.installed ## what it costs beside what else there is, 50 minutes; options: make bench ARGS=--quick
	$(BIN)/python -m bench $(ARGS)

bench-growth: $(VENV)/.development programs ## CPU and memory from 10 agents to 20,000; options: make bench-growth ARGS="--runs 1"
	$(BIN)/python -m bench.growth $(ARGS)

bench-small: $(VENV)/.development programs ## memory, CPU and start with ten agents; options: make bench-small ARGS="--runs 1"
	$(BIN)/python -m bench.small $(ARGS)

bench-blocked: $(VENV)/.development programs ## how late the event loop is with 5,000 agents, whatever happens; options: make bench-blocked ARGS="--agents 1000"
	$(BIN)/python -m bench.blocked $(ARGS)

bench-wall: $(VENV)/.development programs ## how smooth the wall page is with 500 agents, in a real browser; options: make bench-wall ARGS="--agents 2000"
	$(BIN)/python -m bench.wall $(ARGS)

$(RIVALS)/go/poll: bench/rivals/go/main.go bench/rivals/go/go.mod
	@scripts/need go:golang-go
	cd bench/rivals/go && GOPROXY=off GOTOOLCHAIN=local go build -o $(CURDIR)/$@ .

$(RIVALS)/node_red/.installed: bench/rivals/node_red/package.json
	$(npm-install)

chaos: $(VENV)/.development programs ## 100 kills of the program, and the proof that nothing is lost; options: make chaos ARGS="--kills 20"
	$(BIN)/python -m bench.chaos $(ARGS)

chaos-fleet: $(VENV)/.development programs ## four members, three NATS servers and 400 agents, all of them harmed, and the proof of what holds; options: make chaos-fleet ARGS="--only kill drain"
	@scripts/need ip:iproute2 iptables:iptables nsenter:util-linux
	$(BIN)/python -m bench.fleet $(ARGS)

test-cluster: $(VENV)/.development programs ## the same in two and a half minutes
	@scripts/need ip:iproute2 iptables:iptables nsenter:util-linux
	$(BIN)/python -m bench.fleet --short --agents 200 --hold 2 $(ARGS)

soak: $(VENV)/.development programs ## 1,000 agents for 30 minutes with every trouble; options: make soak ARGS="--agents 200 --seconds 180"
	$(BIN)/python -m bench.soak $(ARGS)

fuzz: $(VENV)/.development programs ## a million payloads of commands, some of them end to end; options: make fuzz ARGS="--seed 5"
	$(BIN)/python -m bench.fuzz $(ARGS)

container: $(VENV)/.development programs ## build the image and run it without root, capabilities and a root to write; needs root
	@scripts/need buildah:buildah bwrap:bubblewrap setpriv:util-linux nsenter:util-linux ip:iproute2 debootstrap:debootstrap
	$(BIN)/python -m bench.container

unit: $(VENV)/.development programs ## run the systemd unit under a real systemd, in a container; needs root
	@scripts/need buildah:buildah debootstrap:debootstrap systemd-nspawn:systemd-container nsenter:util-linux
	$(BIN)/python -m bench.unit

# In an environment of its own, and not pinned: it is no part of the program, and is to be the newest.
audit: $(BIN)/python ## ask the OSV database about every version in constraints.txt; a mirror: make audit OSV_URL=https://...
	@test -x $(AUDIT_VENV)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT_VENV) && $(AUDIT_VENV)/bin/pip install $(PIP_FLAGS) pip-audit; }
	$(AUDIT_VENV)/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off \
	  --vulnerability-service osv --osv-url $(OSV_URL)

format: $(VENV)/.development ## put the code into form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: $(VENV)/.development ## make schemas/ and docs/reference.md again from the code
	$(BIN)/python -m adapter.contracts schemas
	$(BIN)/python -m adapter.asyncapi schemas/asyncapi.yaml
	$(BIN)/python -m adapter.config.schema > schemas/config.json
	$(BIN)/python -m scripts.reference > docs/reference.md

clean: ## remove what was set up and built
	rm -rf $(VENV) $(WHEEL_VENV) $(AUDIT_VENV) build dist .coverage .pytest_cache .mypy_cache .ruff_cache

programs:
	@scripts/need mosquitto:mosquitto mosquitto_sub:mosquitto-clients chromium,google-chrome:chromium node:nodejs curl:curl systemd-analyze:systemd openssl:openssl unshare:util-linux mount:mount

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || scripts/need python3-venv-module:python3-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) --constraint constraints.txt pip

$(VENV)/.runtime: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install $(PIP_FLAGS) $(PINNED) --editable '.[demo]'
	@touch $@

$(VENV)/.development: $(VENV)/.runtime
	$(BIN)/pip install $(PIP_FLAGS) $(PINNED) --editable '.[cluster,demo]' --group dev
	@touch $@

dist/.built: $(BIN)/python $(shell git ls-files adapter schemas 2>/dev/null) pyproject.toml
	rm -rf dist
	$(BIN)/pip wheel $(PIP_FLAGS) --build-constraint constraints.txt --no-deps --wheel-dir dist .
	@touch $@

$(WHEEL_VENV)/.development: dist/.built constraints.txt
	test -x $(WHEEL_VENV)/bin/python || $(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/pip install $(PIP_FLAGS) --constraint constraints.txt pip
	$(WHEEL_VENV)/bin/pip install $(PIP_FLAGS) $(PINNED) --group dev
	$(WHEEL_VENV)/bin/pip install $(PIP_FLAGS) $(PINNED) --force-reinstall --no-deps dist/*.whl
	$(WHEEL_VENV)/bin/pip install $(PIP_FLAGS) $(PINNED) "$$(ls dist/*.whl)[cluster,demo]"
	@touch $@

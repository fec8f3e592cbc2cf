# SPDX-License-Identifier: GPL-3.0-or-later
# Each target installs what it needs. All products are in .build and .venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
# What is independent of a failed check runs nevertheless.
MAKEFLAGS += --keep-going

CORES := 2.16.19 2.19.14
TREE := .build/tree/ansible_collections/virtops/live_backup
# The package that awx.awx is taken from.
ANSIBLE := 12.3.0
# What takes one processor runs beside something else that does.
CHECKS := "lint importer docs awx report | molecule" sanity unit contract integration
SCRIPTS := .ci/run $(shell git ls-files --cached --others --exclude-standard '*.sh')

# A fixed PATH, since version managers' stand-ins for python3 hide the system's, which alone sees python3-libvirt.
export PATH := $(CURDIR)/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/.build/tree
export ANSIBLE_HOME := $(CURDIR)/.build/ansible
unexport PYTHONPATH

# The rig makes namespaces, so what uses it runs as root.
ifneq ($(shell id -u),0)
AS_ROOT = sudo env PATH="$(PATH)" ANSIBLE_COLLECTIONS_PATH="$(ANSIBLE_COLLECTIONS_PATH)" ANSIBLE_HOME="$(ANSIBLE_HOME)" \
	LIVE_BACKUP_TEST_ALL="$(LIVE_BACKUP_TEST_ALL)" LIVE_BACKUP_RIG="$(LIVE_BACKUP_RIG)"
endif

PYTEST = python -m pytest --junitxml=.build/results/$@.xml

.PHONY: help
help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand --tabs=18

.PHONY: install-rig
install-rig: ## Install libvirt, QEMU and what else the test hypervisors are made of
	tests/tools/apt.sh $$(sed 's/#.*//' tests/rig/packages.txt)

.PHONY: venv
venv: .venv/made $(TREE) ## Make .venv with the tools and test libraries

.venv/made: requirements-dev.txt
	tests/tools/apt.sh git python3-venv python3-libvirt python3-lxml
	/usr/bin/python3 -m venv --clear --system-site-packages .venv
	pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	touch $@

$(TREE):
	mkdir -p $(@D)
	ln -s $(CURDIR) $@

.build/venv-core-%/made:
	tests/tools/apt.sh git python3-venv
	/usr/bin/python3 -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check ansible-core==$*
	touch $@

.build/awx-$(ANSIBLE): | .venv/made
	python tests/tools/awx_collection.py $(ANSIBLE) .build/tree
	touch $@

LINTS := python shell texts ansible
.PHONY: lint $(LINTS:%=lint-%)
lint: $(LINTS:%=lint-%) ## Check style, types, documentation and changelog

lint-python: venv
	ruff check
	ruff format --check
	python tests/tools/check_bars.py
	mypy

lint-shell:
	tests/tools/apt.sh shellcheck
	shellcheck $(SCRIPTS)

lint-texts: venv
	yamllint --strict .
	antsibull-changelog lint
	antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs=self .

lint-ansible: venv
	ansible-lint --offline --strict

.PHONY: format
format: venv ## Lay out the Python code
	ruff check --fix
	ruff format

.PHONY: schema
schema: venv ## Write docs/manifest.schema.json from the schema that the collection enforces
	PYTHONPATH=.build/tree python tests/tools/manifest_schema.py >docs/manifest.schema.json

.PHONY: sanity $(CORES:%=sanity-%)
sanity: ## Run ansible-test sanity on the oldest ansible-core and the newest for this Python
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target $(CORES:%=sanity-%)

$(CORES:%=sanity-%): sanity-%: .build/venv-core-%/made
	tests/tools/sanity.sh $*

.PHONY: importer
importer: venv ## Build the collection and check it as Galaxy does
	tests/tools/importer.sh

.PHONY: docs
docs: venv ## Build the guides and the reference as a site in .build/docs/html
	rm -rf .build/docs
	install --directory --mode=755 .build/docs/source/collection
	cp --recursive docs/*.md docs/*.json docs/internals docs/monitoring docs/docsite/*.rst .build/docs/source
	antsibull-docs collection --use-current --squash-hierarchy --dest-dir .build/docs/source/collection virtops.live_backup
	sphinx-build --quiet --fail-on-warning --keep-going --conf-dir docs/docsite .build/docs/source .build/docs/html

.PHONY: unit
unit: venv install-rig ## Run the unit tests, with coverage of the plugins
	$(PYTEST) --numprocesses=2 --cov=ansible_collections.virtops.live_backup.plugins tests/unit

.PHONY: awx
awx: venv .build/awx-$(ANSIBLE) ## Check the configuration of AWX, its surveys and the execution environment
	$(PYTEST) tests/awx

.build/promtool:
	tests/tools/promtool.sh $@

.PHONY: report
report: venv .build/promtool $(word 1,$(CORES:%=.build/venv-core-%/made)) ## Check the report in a browser, and the metrics with Prometheus' tool
	tests/tools/apt.sh chromium
	$(PYTEST) tests/report

# Another place can be named from outside.
contract integration faults molecule: export LIVE_BACKUP_RIG ?= $(shell tests/tools/rig_place.sh)

.PHONY: contract
contract: venv install-rig ## Check that the fakes of the unit tests behave as the real libvirt
	$(AS_ROOT) $(PYTEST) tests/contract

# What takes longest comes first: otherwise one of two processes waits at the end for the other.
LONGEST := $(patsubst %,tests/integration/test_%.py,role fleet extract pull live_restore encryption)

# Not with the contract: the modules run in forks, and a fork does not get on with libvirt's connections of its parent.
.PHONY: integration
integration: venv install-rig ## Run the modules and roles against real hypervisors and guests
	$(AS_ROOT) $(PYTEST) --numprocesses=2 --dist=loadfile --no-loadscope-reorder $(LONGEST) tests/rig tests/integration tests/faults

.PHONY: faults
faults: export LIVE_BACKUP_TEST_ALL := 1
faults: venv install-rig ## Kill backups and restores at every step, let storage and power fail, and recover; try 100,000 inputs
	$(PYTEST) --numprocesses=2 --dist=load tests/unit/collection/test_fuzz.py
	$(AS_ROOT) $(PYTEST) --numprocesses=2 --dist=load tests/faults

.PHONY: molecule
molecule: venv install-rig ## Run the molecule scenarios
	$(AS_ROOT) tests/tools/molecule.sh

.PHONY: test
test: venv install-rig ## Run all checks; sweeps and repetitions are sampled
	python tests/tools/run_checks.py $(CHECKS)

.PHONY: test-all
test-all: export LIVE_BACKUP_TEST_ALL := 1
test-all: test ## Run all checks with full sweeps and twentyfold repetitions

.PHONY: demo
demo: venv install-rig ## Show a live backup of a guest that writes, and its proof
	$(AS_ROOT) python -m tests.demo.run

.PHONY: demo-stop
demo-stop: ## End what the demo has left running
	$(AS_ROOT) python -m tests.demo.run stop

.PHONY: demo-fleet
demo-fleet: venv install-rig ## Show a fleet of two hypervisors, and a group captured at one instant
	$(AS_ROOT) python -m tests.demo.fleet

.PHONY: bench-fleet
bench-fleet: venv install-rig ## Measure what a domain costs, against the number of domains and hypervisors
	$(AS_ROOT) python -m tests.bench.fleet

.PHONY: bench
bench: venv install-rig ## Measure speed and pauses; BENCH="--only levels" measures a part
	tests/tools/apt.sh $$(sed 's/#.*//' tests/bench/packages.txt)
	$(AS_ROOT) env PYTHONPATH=.build/tree python -m tests.bench.run $(BENCH)

.PHONY: clean
clean: ## Remove all products
	$(AS_ROOT) rm -rf .build .venv .ansible

# make study      everything from nothing: .venv, installation, the whole study on synthetic faces
# make test       every test
# make lab        JupyterLab on the notebooks
#
# On FER2013:     make study DATA=fer2013.csv PRESET=reduced WORKERS=2 [ONLY="02 05"] [SEEDS="0 1"] [VOTES=..] [MASKFER_ROWS=..] [RESULTS=..]
# Another Python: make study PYTHON=python3.12

PRESET = smoke
WORKERS = 2
DATA =
ONLY =
SEEDS =
VOTES =
MASKFER_ROWS =
RESULTS =
# the first Python that is new enough and can make environments
PYTHON = $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

RUN = .venv/bin/python -m fer_lib run --preset $(PRESET) --workers $(WORKERS) \
	$(if $(DATA),--data "$(DATA)") $(if $(ONLY),--only $(ONLY)) $(if $(SEEDS),--seeds $(SEEDS)) \
	$(if $(VOTES),--votes "$(VOTES)") $(if $(MASKFER_ROWS),--maskfer-rows "$(MASKFER_ROWS)") $(if $(RESULTS),--results "$(RESULTS)")

.PHONY: help study test lab

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

study: .venv/ready
	@$(RUN)

test: .venv/ready
	.venv/bin/python -m pytest

lab: .venv/ready
	JUPYTER_PREFER_ENV_PATH=1 .venv/bin/jupyter lab --LabApp.default_url=/lab/tree/notebooks

.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with its venv module is needed; name one: make study PYTHON=/path/to/python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -e '.[test]'
	@touch .venv/ready

# Every target does its own set-up. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
HOST   := 127.0.0.1
PORT   ?= 8000
WORKERS ?= 2
FAULTS ?= 200

.DEFAULT_GOAL := help
.PHONY: help demo test browser prometheus chaos docs lint serve worker migrate stack lock clean

help:  ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt client/pyproject.toml
	@echo "Installing into $(VENV): minutes, and gigabytes where torch comes with CUDA"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' -e './client[yaml]'
	@touch $@

demo: $(READY)  ## Start everything, adapt a classifier from RGB to depth over HTTP, and show what it gained
	@$(BIN)/python -m demo

test: lint  ## Lint, check the architecture, run the whole suite
	$(BIN)/pytest --numprocesses auto --dist worksteal

lint: $(READY)  ## What a change must pass before its tests: ruff's rules and layout, and who may import what
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports --no-logo

browser:  ## Install Chromium, in which the dashboard is tested, where it is missing (Debian; as root)
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null || { apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; }

prometheus:  ## Install Prometheus, with which metrics and alerts are tested, where it is missing (Debian; as root)
	@{ command -v prometheus && command -v promtool; } >/dev/null || { apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus; }

chaos: $(READY)  ## Break a running service at random instants, and count what came of its jobs (FAULTS, SEED)
	$(BIN)/python -m tests.chaos --faults $(FAULTS) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.chaos --servers --faults $(FAULTS) $(if $(SEED),--seed $(SEED))

docs: $(READY)  ## Make a site of the docs in build/site; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -n -q -c docs . build/site
	@echo "build/site/index.html"

serve: migrate  ## Run the front end (HOST, PORT; MODALBRIDGE_DATA_ROOTS=/folder:/another)
	$(BIN)/uvicorn --factory app.main:create_app --host $(HOST) --port $(PORT) --timeout-graceful-shutdown 20

worker: migrate  ## Run one worker
	$(BIN)/celery --app worker.celery_app worker --pool solo --concurrency 1 \
	  --without-gossip --without-mingle --without-heartbeat --loglevel INFO

migrate: $(READY)  ## Bring the database to the schema of this code
	@$(BIN)/alembic upgrade head

stack: $(READY)  ## Run what docker-compose.yml runs, without containers (DATA=/folder, WORKERS, DATABASE_URL, BROKER_URL, S3_ENDPOINT_URL, PORT)
	@$(BIN)/python -m deploy.stack --data '$(DATA)' --workers $(WORKERS) --port $(PORT) $(if $(DATABASE_URL),--database-url '$(DATABASE_URL)') \
	  $(if $(BROKER_URL),--broker-url '$(BROKER_URL)') $(if $(S3_ENDPOINT_URL),--s3-endpoint-url '$(S3_ENDPOINT_URL)')

lock: $(READY)  ## Write the versions at hand into constraints.txt
	@{ head -1 constraints.txt; $(BIN)/pip freeze --exclude-editable | grep -viE '^(pip|setuptools|wheel|modalbridge|cuda|nvidia-[^m]|triton)'; } > constraints.new
	@mv constraints.new constraints.txt

clean:  ## Remove the environment, the site, and what the service and the demo have stored here
	rm -rf $(VENV) var build

# `make demo` and `make test` are all a newcomer needs; both set everything up first.
PYTHON ?= python3
CORES ?= 2
VENV := .venv
BIN := $(VENV)/bin
# An environment of the user's own is taken as it is: make demo BIN=$(dirname $(which python)) READY=
READY := $(VENV)/ready
# The version that was tested; any newer torch that suits your GPU does too: make demo TORCH=torch
TORCH ?= torch==2.13.0

.PHONY: demo test test-clinicadl test-cluster test-conda prove bench bench-gpu bench-hippocampus bench-hippocampus-gpu lint dockerfile pins \
	hippocampus adrenal clean

$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Armarium needs Python 3.11 or newer; say which: make demo PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV) || { echo "this Python has no venv; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(READY)
	$(BIN)/snakemake --cores $(CORES) --quiet rules host
	@$(BIN)/python -m armarium summary archives/demo

test: $(READY)
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile

# With a real Slurm, started here (root, Debian): make test-cluster SLURM_TOOLS=folder with slurm-up.sh and slurm-down.sh.
# ALL=1 and REQUIRE_CLUSTER=1 as below.
test-cluster: $(READY)
	$(if $(SLURM_TOOLS),SLURM_TOOLS=$(SLURM_TOOLS)) $(BIN)/python -m pytest -ra --durations=5 $(if $(ALL),-m "") tests/cluster

# With a real conda and a channel made here: make test-conda CONDA_TOOLS=folder with install_conda.sh and make_channel.py.
# ALL=1 has the long proofs too; with REQUIRE_CLUSTER=1 a test that lacks something fails instead of skipping.
test-conda: $(READY)
	$(if $(CONDA_TOOLS),CONDA_TOOLS=$(CONDA_TOOLS)) $(BIN)/python -m pytest -ra --durations=5 $(if $(ALL),-m "") tests/conda

# Every proof in full: most of an hour; ends with one table of figures
prove: $(READY)
	$(BIN)/python -m pytest -m "" --timeout 3600 tests

# What is measured, and beside what: docs/performance.md. Some of it: make bench SUBJECTS='training planning' ROUNDS=3
SUBJECTS ?=
ROUNDS ?= 5
bench: $(READY)
	PYTHONPATH=workflow $(BIN)/python -m benchmarks --rounds $(ROUNDS) $(SUBJECTS)

# The part that wants a GPU; says so and ends where there is none. Its peers as for `make bench`: docs/performance.md
bench-gpu: $(READY)
	PYTHONPATH=workflow $(BIN)/python -m benchmarks --rounds $(ROUNDS) gpu

# Written again when a file of envs/ was edited; wants conda on the PATH, as the next one does
dockerfile: $(READY)
	$(BIN)/snakemake --containerize > Dockerfile.new && mv Dockerfile.new Dockerfile

# The environments of envs/ to the very package, from the channels that they name
pins: $(READY)
	$(BIN)/python -m armarium pin-environments envs

# The real ClinicaDL, in an environment of its own: it wants older packages. torchvision's wheel is let in beside a CPU's torch.
CLINICADL := .venv-clinicadl
$(CLINICADL)/ready:
	$(PYTHON) -m venv $(CLINICADL)
	$(CLINICADL)/bin/python -m pip install --quiet --upgrade pip
	$(CLINICADL)/bin/python -m pip install --quiet '$(TORCH)'
	$(CLINICADL)/bin/python -m pip install --quiet --no-deps clinicadl==2.0.0 monai==1.5.0 torchvision==0.28.0
	$(CLINICADL)/bin/python -m pip install --quiet 'pandas<3' 'scikit-image<0.26' 'torchio>=0.20,<0.21' pydantic==2.12.5 \
		torchinfo joblib scikit-learn tqdm numpy nibabel
	touch $@

test-clinicadl: $(READY) $(CLINICADL)/ready
	CLINICADL_PYTHON=$(abspath $(CLINICADL)/bin/python) $(BIN)/python -m pytest tests/clinicadl \
		tests/workflow/test_survival.py::test_a_build_killed_at_every_stage_ends_with_the_same_bytes

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/hadolint --ignore DL3007 Dockerfile

# The figures of the README on real data: make hippocampus DATA=folder with Task04_Hippocampus
SEEDS ?= 0 1 2

hippocampus adrenal: $(READY)
	@test -n "$(DATA)" || { echo "say where the dataset is: make $@ DATA=DIR"; exit 1; }
	for seed in $(SEEDS); do \
		$(BIN)/snakemake --cores $(CORES) --quiet rules host --configfile config/$@.yaml \
			--config data_root=$(DATA) archives_dir=archives/seed-$$seed set="{seed: $$seed}" $(CONFIG) || exit 1; \
		$(BIN)/python -m armarium summary archives/seed-$$seed/$@; \
	done

# Mean Dice against training time, beside the bare loop: make bench-hippocampus DATA=DIR [SEEDS='0 1 2'] [SPLITS=FILE]; some two hours.
# The other: five splits that share one GPU. Archives: archives/bench, which must not be there yet for their time to count.
SPLITS ?=
bench-hippocampus bench-hippocampus-gpu: $(READY)
	@test -n "$(DATA)" || { echo "say where the dataset is: make $@ DATA=DIR"; exit 1; }
	PYTHONPATH=workflow $(BIN)/python -m benchmarks.hippocampus --data $(DATA) --cores $(CORES) --seeds '$(SEEDS)' \
		$(if $(SPLITS),--splits $(SPLITS)) $(if $(findstring gpu,$@),--gpu)

clean:
	rm -rf $(VENV) $(CLINICADL) .cache .snakemake logs

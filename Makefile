# Developer commands. `make help` lists them; each one sets up what it needs.

PYTHON ?= python3
# A nuScenes log for the demo and for the tests that need real data.
LOG ?= $(or $(BEV_REAL_LOG),../shared/data/nuscenes_real)
RUN ?= runs/demo
BUNDLE ?= bundles/demo
# Scene that the ROS part of the demo plays; empty: the first. This one is in v1.0-mini too.
SCENE ?= scene-0103

BIN := .venv/bin
SHAPES := --jaxtyping-packages=perception,beartype.beartype
TEST_BUNDLE := build/test_bundle

.DEFAULT_GOAL := help
.PHONY: help setup check format test test-slow test-gpu bench ros demo clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: .venv/.done ## make the development environment in .venv

.venv/.done: pyproject.toml constraints.txt
	@echo "making .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

check: .venv/.done ## format, lint, import contracts, types, spelling
	@$(BIN)/ruff format --check -q . && echo "format    ok"
	@$(BIN)/ruff check -q . && echo "lint      ok"
	@$(BIN)/lint-imports --no-logo > build/imports.log 2>&1 && echo "imports   ok" \
	  || { cat build/imports.log; exit 1; }
	@$(BIN)/mypy > build/mypy.log 2>&1 && echo "types     ok" || { cat build/mypy.log; exit 1; }
	@$(BIN)/codespell && echo "spelling  ok"

check: | build

build:
	@mkdir -p build

format: .venv/.done ## format and mend what the linter can
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .

test: .venv/.done $(TEST_BUNDLE) ## the whole CPU suite, ROS included
	@BEV_REAL_LOG=$(abspath $(LOG)) $(BIN)/python -m pytest -m "not slow and not ros" $(SHAPES)
	@BEV_REAL_LOG=$(abspath $(LOG)) PYTHON=$(PYTHON) bash ros2_ws/run_tests.sh $(TEST_BUNDLE)

# The tiny network with random weights: what the ROS tests run.
$(TEST_BUNDLE): .venv/.done $(shell find perception export training -name '*.py') | build
	@$(BIN)/python tests/make_test_bundle.py $@

test-slow: .venv/.done ## trainings on real frames, minutes (figures are printed)
	@BEV_REAL_LOG=$(abspath $(LOG)) $(BIN)/python -m pytest -m slow -s

test-gpu: .venv/.done ## what needs CUDA or TensorRT
	@$(BIN)/python -m pytest -m "gpu or trt"

bench: .venv/.done $(TEST_BUNDLE) ## time of the car's pipeline by stage, on a full-size real frame
	@$(BIN)/python tests/benchmark_pipeline.py $(TEST_BUNDLE) --log $(LOG)

ros: ## make .venv-ros and build the ROS 2 workspace
	@PYTHON=$(PYTHON) bash ros2_ws/make_environment.sh

demo: .venv/.done ## train, evaluate, export and replay on LOG, then run the ROS 2 node on it
	@test -d $(LOG) || { echo "error: there is no nuScenes log at $(LOG): pass LOG=ROOT," \
	  "the folder that holds v1.0-*/, samples/ and maps/."; exit 2; }
	$(BIN)/python training/train.py tiny_overfit --data.log $(LOG) --out $(RUN) --overwrite
	$(BIN)/python training/evaluate.py $(RUN) --log $(LOG) --split all --frames complete --pictures 2
	$(BIN)/python export/to_onnx.py $(RUN) --out $(BUNDLE) --overwrite
	$(BIN)/python runtime/replay.py $(BUNDLE) --log $(LOG) --out $(RUN)/replay
	PYTHON=$(PYTHON) bash ros2_ws/demo.sh $(BUNDLE) $(LOG) $(SCENE)
	@echo "pictures: $(RUN)/evaluation/*.png   reports: $(RUN)/evaluation, $(BUNDLE), $(RUN)/replay"

clean: ## remove what the commands made, environments excepted
	@rm -rf build runs bundles ros2_ws/build ros2_ws/install ros2_ws/log

# Developer commands. `make help` lists them; each one sets up what it needs.

PYTHON ?= python3
# A real nuScenes log, for the tests that need one.
LOG ?= $(or $(BEV_REAL_LOG),../shared/data/nuscenes_real)
DEMO := runs/demo
# Half the time of a training step where the processor has the instructions, more where it has not.
BF16 := $(shell grep -qs avx512_bf16 /proc/cpuinfo && echo --optim.precision bf16)

BIN := .venv/bin
SHAPES := --jaxtyping-packages=perception,beartype.beartype
# Two processes with a thread each; a file's tests share what they made.
PARALLEL := -n 2 --dist loadfile
TEST_BUNDLE := build/test_bundle
TOY_BUNDLE := build/toy_bundle
SOAK_MINUTES ?= 10

.DEFAULT_GOAL := help
.PHONY: help setup check format test test-slow test-gpu bench bench-synthetic bench-data bench-bev-pool bench-bev-pool-cuda bench-sparse bench-ros nightly soak replay-golden test-ros-throughput ros demo clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: .venv/.done ## make the development environment in .venv

# C++ and CUDA sources: the install compiles the library, where there is a compiler.
NATIVE := $(shell find export/plugins -type f)

.venv/.done: pyproject.toml constraints.txt $(NATIVE)
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

test: .venv/.done $(TEST_BUNDLE) $(TOY_BUNDLE) ## the whole CPU suite, ROS included
	@BEV_REAL_LOG=$(abspath $(LOG)) OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) \
	  -m "not slow and not ros" $(SHAPES)
	@BEV_REAL_LOG=$(abspath $(LOG)) PYTHON=$(PYTHON) bash ros2_ws/run_tests.sh $(TEST_BUNDLE)

# The tiny network with random weights: what the ROS tests run.
$(TEST_BUNDLE): .venv/.done $(shell find perception export training -name '*.py') | build
	@$(BIN)/python tests/make_test_bundle.py $@

# A bundle that answers at once, for tests of everything but the engine.
$(TOY_BUNDLE): .venv/.done $(shell find perception -name '*.py') tests/toy_bundle.py tests/make_toy_bundle.py | build
	@$(BIN)/python tests/make_toy_bundle.py $@

test-slow: .venv/.done ## trainings on real frames, minutes (figures are printed)
	@BEV_REAL_LOG=$(abspath $(LOG)) $(BIN)/python -m pytest -m "slow and not ros" -s

test-gpu: .venv/.done ## what needs CUDA or TensorRT
	@$(BIN)/python -m pytest -m "gpu or trt"

bench: .venv/.done $(TEST_BUNDLE) ## time of the car's pipeline by stage, on a full-size real frame
	@$(BIN)/python tests/benchmark_pipeline.py $(TEST_BUNDLE) --log $(LOG)

bench-synthetic: .venv/.done ## speed and memory of making a synthetic log
	@$(BIN)/python tests/benchmark_synthetic.py

bench-data: .venv/.done ## time of a training sample by stage, and of the JPEG decoders
	@mkdir -p build && test -d build/bench_log || $(BIN)/python -m perception.synthetic build/bench_log --preset tiny
	@$(BIN)/python tests/benchmark_data.py --log build/bench_log

bench-bev-pool: .venv/.done ## the BEV pool against other algorithms and the byte floor, at full size
	@$(BIN)/python tests/benchmark_bev_pool.py --log $(LOG)

bench-bev-pool-cuda: .venv/.done ## the CUDA kernel against other algorithms and the byte floor (needs a GPU)
	@$(BIN)/python tests/benchmark_bev_pool_cuda.py --log $(LOG)

bench-sparse: .venv/.done ## tables of the sparse encoder and the encoder itself, at full size
	@$(BIN)/python tests/benchmark_sparse.py --log $(LOG)

bench-ros: .venv/.done ## time of decoding one frame's ROS messages
	@PYTHONPATH=tests/test_runtime/test_decoding $(BIN)/python tests/benchmark_ros_convert.py

nightly: .venv/.done $(TEST_BUNDLE) ## a thousand cases of each malformed message, 200,000 damaged ones
	@BEV_NIGHT=1 $(BIN)/python -m pytest tests/test_runtime/test_decoding/test_malformed.py --timeout 3600
	@BEV_NIGHT=1 PYTHON=$(PYTHON) bash ros2_ws/run_tests.sh $(TEST_BUNDLE) -k damaged_bytes -s 2> build/nightly.log

soak: .venv/.done $(TOY_BUNDLE) ## the node under full load (SOAK_MINUTES=10): memory, threads, files, latency
	@PYTHON=$(PYTHON) bash -ec 'root=$$PWD; . ros2_ws/enter.sh; ROS_DOMAIN_ID=77 ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST \
	  FASTDDS_DEFAULT_PROFILES_FILE=ros2_ws/src/perception_ros/config/fastdds.xml \
	  .venv-ros/bin/python tests/soak.py $(TOY_BUNDLE) --minutes $(SOAK_MINUTES)'

replay-golden: .venv/.done ## accept what the toy bundle finds now: tests/test_replay/golden.json
	@$(BIN)/python tests/replay_command.py

test-ros-throughput: $(TEST_BUNDLE) ## six full-size cameras and a LiDAR between two processes: 100 % of the messages
	@MARKERS='ros and slow' PYTHON=$(PYTHON) bash ros2_ws/run_tests.sh $(TEST_BUNDLE) -k full_size -s

ros: ## make .venv-ros and build the ROS 2 workspace
	@PYTHON=$(PYTHON) bash ros2_ws/make_environment.sh

# The drive that is replayed lies in another world (seed) than the log that is trained on.
demo: .venv/.done ## the whole way on synthetic data: log, train, evaluate, export, replay, ROS 2, one page
	@mkdir -p $(DEMO)
	$(BIN)/python -m perception.synthetic $(DEMO)/log --preset small --scenes 24 --keyframes 8 --overwrite
	$(BIN)/python -m perception.synthetic $(DEMO)/drive --preset small --scenes 1 --keyframes 13 \
	  --sweeps 10 --camera-sweeps --seed 7 --overwrite
	$(BIN)/python training/train.py tiny_demo --data.log $(DEMO)/log --out $(DEMO)/run --overwrite $(BF16)
	$(BIN)/python training/evaluate.py $(DEMO)/run --log $(DEMO)/log --split synthetic_val --pictures 2 --subsets none
	$(BIN)/python export/to_onnx.py $(DEMO)/run --out $(DEMO)/bundle --overwrite
	$(BIN)/python runtime/replay.py $(DEMO)/bundle --log $(DEMO)/drive --out $(DEMO)/replay
	PYTHON=$(PYTHON) bash ros2_ws/demo.sh $(DEMO)/bundle $(DEMO)/drive scene-0061 > $(DEMO)/ros2.txt
	@$(BIN)/python demo_page.py $(DEMO)

clean: ## remove what the commands made, environments excepted
	@rm -rf build runs bundles ros2_ws/build ros2_ws/install ros2_ws/log

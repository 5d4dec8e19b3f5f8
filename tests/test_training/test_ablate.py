import dataclasses
import json
import sys

import pytest
from training_processes import training_config

from perception.errors import InputError, run_command
from training import ablate, train
from training.ablate import ARMS, Options, run_ablation
from training.config import TrainConfig
from training.recipes import tiny_lidar

VAL = "mini_val"  # of the small log: scene-0103; mini_train is scene-0061


@pytest.fixture
def config(small_log_root) -> TrainConfig:
    short = training_config(small_log_root, steps=1, ema_decay=0.0)
    return dataclasses.replace(short, data=dataclasses.replace(short.data, split="mini_train"))


@pytest.fixture
def calls(monkeypatch):
    """Trainings and evaluations that are asked for; the real ones follow."""
    found = []
    real_training, real_evaluation = train.run_training, ablate.evaluate_run

    def training(config, options):
        found.append(("train", config.seed, config.inter is not None, config.intra is not None))
        return real_training(config, options)

    def evaluation(*arguments):
        found.append(("evaluate", arguments[0].name))
        return real_evaluation(*arguments)

    monkeypatch.setattr(train, "write_report", lambda run: None)
    monkeypatch.setattr(train, "run_training", training)
    monkeypatch.setattr(ablate, "evaluate_run", evaluation)
    return found


def options(tmp_path, **changes):
    given = {"val_split": VAL, "out": str(tmp_path / "study"), "seeds": (0,), "max_keyframes": 1}
    return Options(**(given | changes))


def test_every_cell_is_trained_and_scored_once(config, calls, tmp_path, capsys):
    study = options(tmp_path, arms=("none", "both"), subsets="kinds")
    first = run_ablation(config, study)
    assert [cell.name for cell in first] == ["none_1_1_0", "both_1_1_0"]
    assert calls == [
        ("train", 0, False, False), ("evaluate", "none_1_1_0"),
        ("train", 0, True, True), ("evaluate", "both_1_1_0"),
    ]  # fmt: skip
    out = tmp_path / "study"
    assert "| 1:1 | both |" in (out / "ablation.md").read_text()
    written = json.loads((out / "ablation.json").read_text())["cells"]
    assert [set(cell["subsets"]) for cell in written] == [
        {"without LIDAR_TOP", "without cameras"}
    ] * 2
    printed = capsys.readouterr()
    assert "2 of 2 after" in printed.out
    assert "predicting keyframes" not in printed.out + printed.err  # it is in the cell's file
    assert "predicting keyframes" in (out / "none_1_1_0.txt").read_text()

    calls.clear()
    assert run_ablation(config, study) == first
    assert calls == []  # nothing is left to do
    more = dataclasses.replace(study, max_keyframes=2, arms=("none",))
    run_ablation(config, more)
    assert calls == [("evaluate", "none_1_1_0")]  # other keyframes: scored again, not trained


def test_a_stopped_study_says_so_and_goes_on(config, calls, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "run_training", lambda config, options: False)
    assert run_ablation(config, options(tmp_path)) is None
    assert not (tmp_path / "study" / "ablation.md").exists()


def test_arms_differ_in_nothing_but_the_calibration(config, tmp_path):
    study = options(tmp_path, arms=tuple(ARMS), weights=("1:1", "10:1"), seeds=(0, 1))
    jobs = [ablate._job(cell, tmp_path, config, study) for cell in ablate._cells(study)]
    assert len({job.run for job in jobs}) == len(jobs) == len(ARMS) * 2 * 2
    same = {
        dataclasses.replace(
            job.config,
            inter=None,
            intra=None,
            seed=0,
            optim=dataclasses.replace(job.config.optim, box_weight=1.0, map_weight=1.0),
        )
        for job in jobs
    }
    assert len(same) == 1
    # by seed first: an interrupted study has all arms of the first seeds
    assert [job.cell.seed for job in jobs] == [0] * (len(jobs) // 2) + [1] * (len(jobs) // 2)


def test_the_runs_of_another_study_are_refused(config, calls, tmp_path):
    study = options(tmp_path, arms=("none",))
    run_ablation(config, study)
    longer = dataclasses.replace(config, optim=dataclasses.replace(config.optim, steps=2))
    with pytest.raises(InputError, match=r"exists already with optim\.steps = 1 instead of 2"):
        run_ablation(longer, study)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"val_split": ""}, "No split to score given"),
        ({"val_split": "mini_train"}, "4 keyframes of 'mini_train' are trained on"),
        ({"weights": ("1:0",)}, "--weights has '1:0', expected BOXES:MAP above 0"),
        ({"weights": ("1:1:1",)}, "--weights has '1:1:1'"),
        ({"seeds": (0, 0)}, r"--seeds is \(0, 0\), expected one or more, each once"),
        ({"arms": ()}, "--arms is"),
        ({"processes": 0}, "--processes is 0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    config, calls, tmp_path, changes, said
):
    with pytest.raises(InputError, match=said):
        run_ablation(config, options(tmp_path, **changes))
    assert calls == []


def test_one_sensor_has_nothing_between_sensors(config, tmp_path):
    lidar = dataclasses.replace(config, detector=tiny_lidar().detector)
    with pytest.raises(InputError, match="the arms intra, both need two"):
        run_ablation(lidar, options(tmp_path))


def test_the_command_explains_itself(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablate.py"])
    with pytest.raises(SystemExit) as done:
        run_command(ablate.main)
    assert done.value.code == 0
    assert "micro_fusion" in capsys.readouterr().out

import copy
import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch
from calibration_toy import ToyLosses, toy_batch
from small_detector import small_config

from perception.data.nuscenes_dataset import NuScenesDataset, SampleConfig, SampleKey
from perception.data.nuscenes_log import NuScenesLog
from perception.models.depth_supervision import depth_loss
from perception.models.detector import build_detector
from training.config import OptimConfig
from training.distributed import Ranks
from training.gradient_calibration import EqualConfig, GateConfig
from training.step import DetectorLosses, TrainStep, weighted_sum
from training.task_rules import (
    FixedConfig,
    InterConfig,
    PcGradConfig,
    TaskRuleConfig,
    UncertaintyConfig,
)
from training.two_phase import FIGURE_PREFIX

PLAIN = InterConfig(rule=FixedConfig())
RULES = tuple(kind() for kind in get_args(TaskRuleConfig))


def settings(**changes):
    fixed = {"steps": 10, "batch_size": 4, "lr": 1e-3, "weight_decay": 0.0, "clip_norm": 1e9}
    return OptimConfig(**(fixed | changes))


@pytest.fixture(scope="module")
def batch(small_log_root):
    """Two frames with depth targets."""
    log, config = NuScenesLog(small_log_root), small_config()
    sampling = SampleConfig(depth_targets=True)
    dataset = NuScenesDataset(log, log.keyframe_tokens()[:2], config, sampling, seed=0)
    return dataset.collate([dataset[SampleKey(index, index)] for index in range(2)])


def detector_step(inter=None, intra=None, separate=False, **changes):
    torch.manual_seed(0)
    optim = settings(depth_weight=0.1, **changes)
    config = dataclasses.replace(small_config(), separate_bev_encoders=separate)
    losses = DetectorLosses(build_detector(config).train(), optim)
    return TrainStep(losses, optim, Ranks(), inter=inter, intra=intra)


def toy_step(inter=None, intra=None, ranks=None, **options):
    torch.manual_seed(0)
    step = TrainStep(ToyLosses(**options), settings(), ranks or Ranks(), inter=inter, intra=intra)
    return step


def gradients(step, *batches):
    """Gradients of a step by name, and what calibration said."""
    step.backward.start_step(0)
    step.optimizer.zero_grad()
    step._accumulate(batches)
    step.backward.mend()
    found = {name: p.grad for name, p in step.losses.named_parameters() if p.grad is not None}
    figures = {n.removeprefix(FIGURE_PREFIX): x for n, x in step.backward.figures().items()}
    return {name.removeprefix("detector."): g.clone() for name, g in found.items()}, figures


def assert_nearly(found, expected, rel):
    """Equal part by part of the network, up to a share of the part's length."""
    for part in sorted({name.split(".")[0] for name in expected}):
        names = [name for name in expected if name.split(".")[0] == part]
        one, two = (torch.cat([g[name].flatten() for name in names]) for g in (found, expected))
        assert torch.linalg.vector_norm(one - two) <= rel * torch.linalg.vector_norm(two), part


def is_head(name):
    return name.startswith(("box_head", "map_head", "heads"))


@pytest.mark.parametrize("separate", [False, True])
def test_two_phases_with_equal_weights_are_one_backward_pass_of_the_sum(batch, separate):
    found, figures = gradients(detector_step(PLAIN, separate=separate), batch)
    assert (figures["alpha_boxes"], figures["alpha_map"]) == (1.0, 1.0)
    losses = detector_step(separate=separate).losses
    counts = losses.counts(batch)
    output = losses.detector(batch.inputs)
    parts = {
        "boxes": losses.detector.box_head.loss(output.boxes, batch.boxes, counts),
        "map": losses.detector.map_head.loss(output.map, batch.map, counts),
        "depth": depth_loss(output.depth_logits, batch.depth, counts),
    }
    weighted_sum(parts, losses.task_weights).backward()
    whole = {name: p.grad for name, p in losses.detector.named_parameters()}
    assert_nearly(found, whole, 1e-5)  # rounding of fp32 through a whole network


def test_two_phases_are_one_to_rounding_in_float64():
    batch = toy_batch()
    for name in ("camera", "lidar"):
        setattr(batch, name, getattr(batch, name).double())
    step = toy_step(PLAIN)
    step.losses.double()
    found, _ = gradients(step, batch)
    whole = copy.deepcopy(step.losses)
    whole.zero_grad()
    shared = whole.shared_part(batch)
    counts = whole.counts(batch)
    sum(whole.task_loss(task, shared, batch, counts) for task in ("boxes", "map")).backward()
    assert_nearly(found, {name: p.grad for name, p in whole.detector.named_parameters()}, 1e-12)


def single_gradients(make, data, tasks):
    """Gradients of each task alone."""
    found = {}
    for task in tasks:
        step = make()
        weights = step.losses.task_weights
        step.losses.task_weights = {t: w if t == task else 0.0 for t, w in weights.items()}
        found[task], _ = gradients(step, data)
    return found


@pytest.mark.parametrize(
    ("make", "site"), [(toy_step, "param"), (toy_step, "feature"), (detector_step, "param")]
)
def test_heads_never_feel_calibration_and_the_rest_is_a_sum_with_constant_weights(
    batch, make, site
):
    data = toy_batch() if make is toy_step else batch
    calibrated, figures = gradients(make(InterConfig(site=site)), data)
    plain, _ = gradients(make(), data)
    assert all(torch.equal(calibrated[name], plain[name]) for name in plain if is_head(name))
    norms = figures["norm_boxes"], figures["norm_map"]
    alphas = {"boxes": norms[1] / sum(norms), "map": norms[0] / sum(norms)}
    assert {t: figures[f"alpha_{t}"] for t in alphas} == pytest.approx(alphas)
    tasks = ("boxes", "map") if make is toy_step else ("boxes", "map", "depth")
    single = single_gradients(make, data, tasks)
    expected = {
        name: sum((alphas | {"depth": 1.0})[task] * single[task][name] for task in tasks)
        for name in plain
        if not is_head(name)
    }
    assert_nearly(calibrated, expected, 1e-4)


def test_norms_and_cosine_are_those_of_the_last_shared_layer():
    step = toy_step(InterConfig())
    found = {}
    for task in ("boxes", "map"):
        other = toy_step()
        other.losses.task_weights = {"boxes": 0.0, "map": 0.0, task: 1.0}
        found[task] = gradients(other, toy_batch())[0]["encoder.weight"].flatten()
    _, figures = gradients(step, toy_batch())
    norms = {task: float(torch.linalg.vector_norm(g)) for task, g in found.items()}
    assert figures["norm_boxes"] == pytest.approx(norms["boxes"], rel=1e-5)
    assert figures["norm_map"] == pytest.approx(norms["map"], rel=1e-5)
    cosine = float(found["boxes"] @ found["map"]) / norms["boxes"] / norms["map"]
    assert figures["cosine_boxes_map"] == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize("inter", [None, InterConfig(), InterConfig(rule=PcGradConfig())])
def test_micro_batches_add_up(inter):
    first, second = toy_batch(seed=0), toy_batch(seed=1)
    names = gradients(toy_step(inter), first)[0]
    together, figures = gradients(toy_step(inter), first, second)
    alone = [gradients(toy_step(inter), part) for part in (first, second)]
    for name in names:
        # each has its own weights; alone, a batch counts for twice as much
        expected = sum(found[name] for found, _ in alone) / 2
        torch.testing.assert_close(together[name], expected, rtol=1e-4, atol=1e-6)
    for name in figures:
        if name.startswith(("alpha", "cosine")):
            assert figures[name] == pytest.approx(np.mean([f[name] for _, f in alone]), rel=1e-4)


def test_with_weights_on_heads_they_feel_them(batch):
    plain, _ = gradients(toy_step(), toy_batch())
    found, figures = gradients(toy_step(InterConfig(on_heads=True)), toy_batch())
    for task in ("boxes", "map"):
        name = f"heads.{task}.weight"
        torch.testing.assert_close(found[name], figures[f"alpha_{task}"] * plain[name])
    other, _ = gradients(toy_step(InterConfig()), toy_batch())
    torch.testing.assert_close(found["encoder.weight"], other["encoder.weight"])
    found, _ = gradients(detector_step(InterConfig(on_heads=True)), batch)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_trains(rule):
    step = toy_step(InterConfig(rule=rule))
    results = [step([toy_batch(seed=number)], number) for number in range(5)]
    assert not any(result.bad or result.notes for result in results)
    values = {name for result in results for name in result.values}
    assert {"gradient/alpha_boxes", "gradient/norm_map", "gradient/cosine_boxes_map"} <= values
    assert all(np.isfinite(list(result.values.values())).all() for result in results)


def test_learned_weights_are_in_the_loss_and_come_from_good_steps_only():
    step = toy_step(InterConfig(rule=UncertaintyConfig()))
    plain, _ = gradients(toy_step(), toy_batch())
    found, figures = gradients(step, toy_batch())
    assert figures["alpha_boxes"] == 0.5
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], 0.5 * gradient)
    # the norm is that of the loss without the learned weight
    _, other = gradients(toy_step(PLAIN), toy_batch())
    assert figures["norm_boxes"] == pytest.approx(other["norm_boxes"], rel=1e-5)
    values = step([toy_batch()], 0).values
    # s = 0 - 0.025 / 2 * (1 - L)
    assert step.backward.state["s/map"] == pytest.approx(0.0125 * (values["map"] - 1.0))
    before = dict(step.backward.state)
    spoilt = toy_batch()
    spoilt.targets["map"][0] = float("nan")
    assert step([spoilt], 1).bad == "the loss map is nan"
    assert step.backward.state == before
    step.losses.detector.camera.weight.register_hook(lambda gradient: gradient * float("nan"))
    assert step([toy_batch()], 2).bad.startswith("the norm of the gradient")
    assert step.backward.state == before


# --- between the sensors ---


@pytest.mark.parametrize("intra", [EqualConfig(limit=1e9), GateConfig(), EqualConfig(norm="rms")])
def test_factors_reach_the_branches_and_nothing_else(batch, intra):
    cases = [(toy_step, toy_batch(), {"camera": "camera.", "lidar": "lidar."})]
    if isinstance(intra, GateConfig):
        cases.append((detector_step, batch, {"lidar": "point_encoder."}))
    for make, data, sensors in cases:
        off, _ = gradients(make(PLAIN), data)
        on, figures = gradients(make(PLAIN, intra), data)
        for sensor, prefix in sensors.items():
            names = [name for name in off if name.startswith(prefix)]
            assert names
            assert_nearly(on, {n: figures[f"factor_{sensor}"] * off[n] for n in names}, 1e-5)
        for name in off:
            if name.startswith(("fusion", "bev_encoder", "encoder")) or is_head(name):
                assert torch.equal(on[name], off[name]), name
        assert figures["factor_camera"] != 1.0 or figures["factor_lidar"] != 1.0
        if isinstance(intra, EqualConfig):
            norms = [figures[f"norm_{s}"] * figures[f"factor_{s}"] for s in ("camera", "lidar")]
            assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_the_order_in_which_the_fuser_takes_the_sensors_does_not_matter():
    results = []
    for swapped in (False, True):
        step = toy_step(None, EqualConfig())
        net = step.losses.detector
        if swapped:
            fusion = net.fusion
            fusion.mix.weight.data = fusion.mix.weight.data.roll(2, dims=1)
            fusion.forward = lambda c, r, mix=fusion.mix: mix(torch.cat([r, c], dim=1))
        results.append(gradients(step, toy_batch()))
    (one, figures), (two, others) = results
    for name in ("camera.weight", "lidar.weight", "encoder.weight"):
        torch.testing.assert_close(one[name], two[name])
    assert others["factor_camera"] == pytest.approx(figures["factor_lidar"])


def test_a_sensor_without_a_gradient_changes_nothing_and_is_noted():
    results = []
    for intra in (None, EqualConfig()):
        step = toy_step(InterConfig(), intra)
        step.losses.detector.fusion.mix.weight.data[:, :2] = 0.0
        results.append(gradients(step, toy_batch()))
    (off, _), (on, figures) = results
    assert all(torch.equal(on[name], off[name]) for name in off)
    assert (figures["factor_camera"], figures["factor_lidar"]) == (1.0, 1.0)
    assert step.backward.notes() == [
        "the gradient of the camera's BEV map is 0: both stay as they are"
    ]


@pytest.mark.parametrize("lost", ["camera_mask", "lidar_mask"])
def test_a_sensor_that_is_lost_leaves_the_other_as_it_is(batch, lost):
    # the fuser's zeros have a gradient, but it reaches no branch: nothing to be level with
    nothing = torch.zeros_like(getattr(batch.inputs, lost))
    without = dataclasses.replace(
        batch, inputs=dataclasses.replace(batch.inputs, **{lost: nothing})
    )
    step = detector_step(None, EqualConfig())
    _, figures = gradients(step, without)
    assert (figures["factor_camera"], figures["factor_lidar"]) == (1.0, 1.0)
    assert figures["norm_camera" if lost == "camera_mask" else "norm_lidar"] == 0.0
    assert step.backward.notes() == []  # lost sensors are ordinary in training


def test_black_images_are_no_catastrophe(batch):
    step = detector_step(InterConfig(), EqualConfig())
    images = torch.zeros_like(batch.inputs.images)
    black = dataclasses.replace(batch, inputs=dataclasses.replace(batch.inputs, images=images))
    results = [step([black], number) for number in range(3)]
    assert not any(result.bad for result in results)
    for result in results:
        assert 0.1 <= result.values["gradient/factor_camera"] <= 10.0
    assert all(torch.isfinite(p).all() for p in step.losses.parameters())


# --- what is missing or broken ---


def test_a_task_without_labels_leaves_the_shared_part_to_the_other(batch):
    step = detector_step(InterConfig(), EqualConfig())
    labelled = torch.zeros_like(batch.map.labelled)
    unlabelled = dataclasses.replace(batch, map=dataclasses.replace(batch.map, labelled=labelled))
    result = step([unlabelled], 0)
    assert not result.bad
    assert result.notes == ("the gradient of map is 0: the shared part does not learn from it",)
    assert result.values["gradient/alpha_boxes"] == 1.0
    assert result.values["gradient/alpha_map"] == 0.0
    assert all(np.isfinite(list(result.values.values())))


def infinite_slope(x):
    """The square root of 0: finite, its slope is not."""
    return (0.0 * x.square()).sqrt()


def test_a_task_with_an_infinite_gradient_is_left_out_and_the_step_goes_on():
    step = toy_step(InterConfig(), EqualConfig(), act={"map": infinite_slope})
    before = copy.deepcopy(step.losses.state_dict())
    result = step([toy_batch()], 0)
    assert not result.bad
    assert result.notes == ("the gradient of map is not finite: the task is left out",)
    assert result.values["gradient/alpha_boxes"] == 1.0
    after = step.losses.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if "heads.map" not in name}
    # without calibration such a step is skipped, as ever
    assert toy_step(act={"map": infinite_slope})([toy_batch()], 0).bad


def test_what_stays_infinite_is_a_bad_step_in_the_end():
    step = toy_step(InterConfig(), act={"map": infinite_slope})
    # max_bad_steps is 3: three steps without the map, then training has to go back
    assert [step([toy_batch()], number).bad for number in range(5)] == ["", "", ""] + [
        "the gradient of map is not finite"
    ] * 2
    step.losses.act = {}
    assert not step([toy_batch()], 5).bad
    step.losses.act = {"map": infinite_slope}
    assert not step([toy_batch()], 6).bad  # counted from the start again


def test_a_step_that_no_task_can_teach_is_bad():
    step = toy_step(InterConfig(), act=dict.fromkeys(("boxes", "map"), infinite_slope))
    before = copy.deepcopy(step.losses.state_dict())
    result = step([toy_batch()], 0)
    assert result.bad == "the gradient of boxes is not finite"
    after = step.losses.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_depth_teaches_where_neither_task_has_labels(batch):
    step = detector_step(InterConfig())
    nothing = torch.zeros_like
    unlabelled = dataclasses.replace(
        batch,
        map=dataclasses.replace(batch.map, labelled=nothing(batch.map.labelled)),
    )
    step.losses.task_weights["boxes"] = 0.0
    found, _ = gradients(step, unlabelled)
    taught = [name for name, x in found.items() if name.startswith("image_encoder") and x.any()]
    assert taught


def test_no_task_at_all_leaves_the_shared_part_as_it_is():
    step = toy_step(InterConfig(), EqualConfig())
    step([toy_batch()], 0)  # moments that would go on by themselves
    before = copy.deepcopy(step.losses.state_dict())
    step.losses.act = dict.fromkeys(("boxes", "map"), lambda x: 0.0 * x)
    result = step([toy_batch()], 1)
    assert not result.bad
    assert len(result.notes) == 2 + 2  # two tasks, two sensors
    assert step.backward.state == {}
    after = step.losses.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in after if "heads" not in n)


def test_an_overflow_of_fp16_is_for_the_loss_scale_and_not_for_calibration():
    class Steep(torch.autograd.Function):
        """Gradient overflows as in fp16: above 1e4 it is infinite."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return torch.where(grad.abs() > 1e4, float("inf"), grad)

    torch.manual_seed(0)
    optim = settings(precision="fp16")
    step = TrainStep(ToyLosses(act={"map": Steep.apply}), optim, Ranks(), inter=InterConfig())
    results = [step([toy_batch()], number) for number in range(8)]
    assert results[0].settling
    assert not results[-1].bad
    assert not any(result.notes for result in results)
    # figures do not depend on the scale
    _, figures = gradients(toy_step(InterConfig()), toy_batch())
    settled = results[[bool(r.bad) for r in results].index(False)].values
    assert settled["gradient/norm_boxes"] == pytest.approx(figures["norm_boxes"], rel=1e-4)
    assert settled["gradient/alpha_map"] == pytest.approx(figures["alpha_map"], rel=1e-4)


def test_bf16_finds_nearly_the_same(batch):
    found = [
        gradients(detector_step(InterConfig(), EqualConfig(), precision=precision), batch)[1]
        for precision in ("fp32", "bf16")
    ]
    for name in ("alpha_map", "factor_camera", "factor_lidar"):
        assert found[1][name] == pytest.approx(found[0][name], rel=0.1)

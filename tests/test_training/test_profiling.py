import math
import re

import pytest
import torch
from torch import nn

from training.profiling import DATA_WAIT, StepProfile


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where a test says so: `clock(2.0)`."""
    now = [100.0]
    monkeypatch.setattr("training.profiling.time.perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def rows(profile):
    """Name -> mean, p50, p95 [ms] and share [%], names as they are indented."""
    found = {}
    for line in profile.table().splitlines():
        if match := re.fullmatch(r"(.*\S)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)%", line):
            name, *figures = match.groups()
            found[name] = tuple(map(float, figures))
    return found


def one_step(profile, clock, wait=1.0):
    with profile.section(DATA_WAIT):
        clock(wait)
    with profile.section("forward"):
        clock(0.5)
        with profile.section("fusion"):
            clock(1.5)
    clock(1.0)  # in no section
    profile.end_step()


def test_sections_of_a_step_add_up(clock):
    profile = StepProfile(num_warmup=0)
    one_step(profile, clock)
    # 1 s wait + 2 s forward, 1.5 s of it fusion, + 1 s of other things = 4 s
    assert rows(profile) == {
        "data wait": (1000, 1000, 1000, 25.0),
        "forward": (2000, 2000, 2000, 50.0),
        "  fusion": (1500, 1500, 1500, 37.5),
        "other": (1000, 1000, 1000, 25.0),
        "whole step": (4000, 4000, 4000, 100.0),
    }
    assert list(rows(profile)) == ["data wait", "forward", "  fusion", "other", "whole step"]
    assert profile.compute_share() == 0.75
    assert "compute share of the step: 75.0 %" in profile.table()


def test_warm_up_is_left_out_and_said(clock):
    profile = StepProfile(num_warmup=2)
    for wait in (50.0, 50.0, 1.0, 2.0, 3.0):
        one_step(profile, clock, wait)
    assert profile.num_steps == 3
    # waits 1, 2, 3 s: mean and middle 2; p95 lies 0.9 of the way from 2 to 3
    assert rows(profile)["data wait"][:3] == (2000, 2000, 2900)
    assert rows(profile)["whole step"][0] == 5000
    assert profile.compute_share() == pytest.approx(0.6)
    assert "3 steps; the first 2 are left out as warm-up" in profile.table()


def test_a_section_that_comes_twice_in_a_step_is_summed(clock):
    profile = StepProfile(num_warmup=0)
    for seconds in (1.0, 2.0):
        with profile.section("forward"):
            clock(seconds)
    profile.end_step()
    profile.end_step()  # a step of no time at all, with no section
    assert rows(profile)["forward"][:2] == (1500, 1500)  # 3 s in one of two steps
    assert math.isnan(profile.compute_share())
    assert "compute share" not in profile.table()


def test_too_few_steps_are_said_to_be(clock):
    profile = StepProfile(num_warmup=3)
    one_step(profile, clock)
    assert profile.table() == (
        "No step to show: 1 were timed and the first 3 are left out as warm-up."
    )


class Slow(nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x):
        self.clock(self.seconds)
        if self.seconds < 0:
            raise RuntimeError("broken")
        return x


class Network(nn.Module):
    def __init__(self, clock, last=4.0):
        super().__init__()
        self.image_encoder = Slow(clock, 1.0)
        self.view_transform = None
        self.bev_encoders = nn.ModuleDict({"boxes": Slow(clock, 2.0), "map": Slow(clock, 3.0)})
        self.map_head = Slow(clock, last)

    def forward(self, x):
        x = self.image_encoder(x)
        return self.map_head(self.bev_encoders["map"](self.bev_encoders["boxes"](x)))


def test_each_part_of_a_network_is_timed_inside_of_the_forward_pass(clock):
    network = Network(clock)
    with StepProfile(num_warmup=0) as profile:
        profile.watch(network)
        with profile.section("forward"):
            network(torch.zeros(1))
        profile.end_step()
    found = rows(profile)
    assert {name: row[0] for name, row in found.items()} == {
        "forward": 10000,
        "  image_encoder": 1000,
        "  bev_encoders.boxes": 2000,
        "  bev_encoders.map": 3000,
        "  map_head": 4000,
        "other": 0,
        "whole step": 10000,
    }
    before = profile.table()
    network(torch.zeros(1))  # no longer watched
    profile.end_step()
    assert rows(profile)["  map_head"][0] == 2000  # half: nothing in the second step
    assert profile.table() != before


def test_an_exception_in_a_part_leaves_the_sections_in_order(clock):
    network = Network(clock, last=-1.0)
    profile = StepProfile(num_warmup=0)
    profile.watch(network)
    with pytest.raises(RuntimeError, match="broken"), profile.section("forward"):
        network(torch.zeros(1))
    with profile.section("after"):
        clock(1.0)
    profile.end_step()
    assert "after" in rows(profile)  # not inside of the part that broke
    assert rows(profile)["forward"][0] == 5000  # 1 + 2 + 3 - 1


def test_watching_does_not_change_what_a_network_says():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.rand(5, 3)
    expected = network(x)
    with StepProfile() as profile:
        profile.watch(network)
        assert torch.equal(network(x), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_section_on_a_gpu_holds_the_work_that_it_started():
    device = torch.device("cuda")
    matrix = torch.rand(8192, 8192, device=device)
    profile = StepProfile(device, num_warmup=1)
    for _ in range(2):
        with profile.section("products"):
            for _ in range(10):
                matrix @ matrix  # returns at once, works on for milliseconds
        with profile.section("nothing"):
            pass
        profile.end_step()
    assert rows(profile)["products"][0] > 10 * rows(profile)["nothing"][0]

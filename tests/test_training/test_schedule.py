import pytest

from training.config import OptimConfig
from training.schedule import cosine, learning_rate, one_cycle


def test_one_cycle_rises_in_a_line_and_falls_to_nothing():
    # 10 steps: two up (1/2, 1), then a cosine over eight
    shares = [one_cycle(step, 10) for step in range(11)]
    assert shares[:3] == [0.5, 1.0, 1.0]
    assert shares[6] == pytest.approx(0.5)
    assert shares[10] == pytest.approx(0.0)
    assert one_cycle(0, 1) == 1.0
    assert [one_cycle(step, 10, 0.4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_warms_up_from_a_third_and_ends_at_a_thousandth():
    num_steps = 10_000
    assert cosine(0, num_steps) == pytest.approx(1 / 3)
    # half of the warm-up: 2/3 of the cosine at step 250, (1 + cos(pi / 40)) / 2 = 0.998459
    assert cosine(250, num_steps) == pytest.approx(2 / 3 * (1e-3 + 0.999 * 0.998459), rel=1e-6)
    assert cosine(5000, num_steps) == pytest.approx(1e-3 + 0.999 * 0.5)
    assert cosine(num_steps, num_steps) == pytest.approx(1e-3)
    rising = [cosine(step, num_steps) for step in range(500)]
    assert rising == sorted(rising)


def test_a_short_cosine_warms_up_for_a_fifth_of_its_steps():
    assert max(range(10), key=lambda step: cosine(step, 10)) == 2
    assert cosine(0, 1) == 1.0


@pytest.mark.parametrize(("schedule", "first"), [("one_cycle", 0.5 * 3e-3), ("cosine", 1e-3)])
def test_the_learning_rate_is_the_peak_times_the_share(schedule, first):
    optim = OptimConfig(steps=10, batch_size=1, lr=3e-3, schedule=schedule)
    assert learning_rate(0, optim) == pytest.approx(first)

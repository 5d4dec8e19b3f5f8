import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from perception.data.targets import box_targets
from perception.geometry.grid import BevGrid
from perception.models.heads.box_code import BoxTargets
from perception.models.heads.query_box_head import QueryBoxHead, QueryBoxHeadConfig, QueryBoxOutput

GRID = BevGrid(x_min=-8.0, x_max=8.0, y_min=-4.0, y_max=4.0, cell=1.0)  # 16 columns, 8 rows
SHAPE = (10, GRID.ny, GRID.nx)
SMALL = QueryBoxHeadConfig(
    channels=8, num_queries=6, num_heads=2, ffn_channels=8, branch_channels=8, dropout=0.0
)
CAR, PEDESTRIAN, CONE = 0, 8, 9
BOXES = np.array(
    [
        [3.25, -2.5, 0.4, 4.0, 2.0, 1.5, 0.7, 1.0, -2.0],
        [-6.1, 2.2, -0.3, 0.6, 0.7, 1.8, -3.0, np.nan, np.nan],
    ]
)
LABELS = np.array([CAR, PEDESTRIAN])


class Say(nn.Module):
    """Stands in for a branch: the same answer, whatever comes in."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer.expand(x.shape[0], *self.answer.shape)


def box_head(**options):
    torch.manual_seed(0)
    return QueryBoxHead(dataclasses.replace(SMALL, **options), 8, 10, GRID)


def head_that_sees(peaks, **options):
    """A head whose heatmap is low but for these (class, row, column): logit."""
    logits = torch.full(SHAPE, -9.0)
    for place, logit in peaks.items():
        logits[place] = logit
    head = box_head(**options).eval()
    head.heatmap = Say(logits)
    return head


def chosen(output):
    """(class, row, column) of each query."""
    rows, columns = output.query_cell[0] // GRID.nx, output.query_cell[0] % GRID.nx
    return list(zip(output.query_label[0].tolist(), rows.tolist(), columns.tolist(), strict=True))


def targets_of(boxes, labels):
    targets = box_targets(boxes, labels, 10, GRID)
    fields = {f.name: getattr(targets, f.name) for f in dataclasses.fields(targets)}
    tensors = {name: torch.from_numpy(array)[None] for name, array in fields.items()}
    return BoxTargets(**tensors, labelled=torch.ones(1))


def concatenate(targets, labelled):
    names = [f.name for f in dataclasses.fields(BoxTargets)]
    whole = {name: torch.cat([getattr(t, name) for t in targets]) for name in names}
    return BoxTargets(**{**whole, "labelled": torch.tensor(labelled)})


def perfect_output():
    """Queries one cell beside the objects of `BOXES`, the last first, that say them exactly."""
    # the car is in row 1, column 11, the pedestrian in row 6, column 1: started at column 12 and 2
    # with the rows' centres at 1.5 and 6.5; x = 3.25 is 11.25 cells, y = -2.5 is 1.5 cells, ...
    places = torch.tensor([[0, 6 * 16 + 2, 1 * 16 + 12]])
    code = torch.zeros(1, 3, 10)
    for query, (box, offset) in {
        1: (BOXES[1], (1.9 - 2.5, 6.2 - 6.5)),
        2: (BOXES[0], (11.25 - 12.5, 1.5 - 1.5)),
    }.items():
        yaw = box[6]
        size = np.log(box[3:6])
        values = [*offset, box[2], *size, np.sin(yaw), np.cos(yaw), *np.nan_to_num(box[7:9])]
        code[0, query] = torch.tensor(np.array(values, np.float32))
    class_logits = torch.full((1, 3, 10), -9.0)
    class_logits[0, 1, PEDESTRIAN] = class_logits[0, 2, CAR] = 9.0
    targets = targets_of(BOXES, LABELS)
    output = QueryBoxOutput(
        heatmap_logits=torch.logit(targets.heatmap.clamp(1e-4, 1 - 1e-4)),
        query_cell=places,
        query_label=torch.tensor([[3, PEDESTRIAN, CAR]]),
        query_score=torch.tensor([[0.0, 0.8, 0.9]]),
        class_logits=class_logits,
        code=code,
    )
    return output, targets


def test_a_peak_off_the_diagonal_becomes_a_box_at_its_place():
    head = head_that_sees({(2, 1, 11): 4.0})
    head.to_code[0] = Say(torch.zeros(2, SMALL.num_queries))  # no offset
    output = head(torch.randn(1, 8, 8, 16))
    assert chosen(output)[0] == (2, 1, 11)
    boxes_ego, _, labels = head.decode(output)
    # centre of column 11 is 3.5 m, of row 1 is -2.5 m
    (best,) = (labels[0] == 2).nonzero()[0].tolist()
    np.testing.assert_allclose(boxes_ego[0, best, :2].detach().numpy(), [3.5, -2.5], atol=1e-5)


def test_neighbouring_peaks_count_for_small_classes_only():
    peaks = {(c, 3, x): 5.0 - c / 10 - x / 100 for c in (CAR, PEDESTRIAN, CONE) for x in (4, 5)}
    output = head_that_sees(peaks, num_queries=5)(torch.zeros(1, 8, 8, 16))
    assert set(chosen(output)) == {
        (CAR, 3, 4), (PEDESTRIAN, 3, 4), (PEDESTRIAN, 3, 5), (CONE, 3, 4), (CONE, 3, 5)
    }  # fmt: skip
    assert output.query_score[0, 0] == pytest.approx(1 / (1 + np.exp(-4.96)))


def test_queries_that_say_the_objects_decode_to_them_best_first():
    output, _ = perfect_output()
    boxes_ego, scores, labels = box_head().decode(output)
    assert labels[0].tolist() == [CAR, PEDESTRIAN, 3]
    np.testing.assert_allclose(boxes_ego[0, :2].numpy(), np.nan_to_num(BOXES), atol=1e-4)
    # class probability times the height of the peak
    sure = 1 / (1 + np.exp(-9))
    np.testing.assert_allclose(scores[0].numpy(), [0.9 * sure, 0.8 * sure, 0.0], atol=1e-6)


@pytest.mark.parametrize("limit", [{"keep_xy": 6.0}, {"keep_z": 0.35}])
def test_boxes_out_of_range_have_the_score_0(limit):
    output, _ = perfect_output()
    _, scores, labels = box_head(**limit).decode(output)
    # x of the pedestrian is -6.1, z of the car 0.4
    kept = CAR if "keep_xy" in limit else PEDESTRIAN
    assert labels[0, 0] == kept
    assert (scores[0] > 0).sum() == 1


def test_loss_of_perfect_queries_is_nearly_zero_and_of_wrong_ones_is_not():
    output, targets = perfect_output()
    head = box_head()
    counts = head.counts(targets)
    assert {name: float(n) for name, n in counts.items()} == {
        "heatmap": 2.0, "class": 2.0, "box": 2.0
    }  # fmt: skip
    good = head.loss(output, targets, counts)
    assert float(good["box"]) < 1e-6
    assert float(good["class"]) < 1e-6
    even = torch.zeros_like(output.class_logits)
    wrong = dataclasses.replace(output, code=output.code + 1.0)
    bad = head.loss(wrong, targets, counts)
    # 8 known columns of each; of the car two velocities with weight 0.2: 0.25 * (16 + 0.4) / 2
    assert float(bad["box"]) == pytest.approx(2.05, rel=1e-4)
    bad = head.loss(dataclasses.replace(output, class_logits=even), targets, counts)
    # p = 0.5 for 3 queries x 10 classes, 2 of which are there: alpha * 0.5 ** 2 * log 2 each
    expected = (28 * 0.75 + 2 * 0.25) * 0.25 * np.log(2) / 2
    assert float(bad["class"]) == pytest.approx(expected, rel=1e-5)


def test_decoding_and_loss_leave_what_they_read_as_it_was():
    output, targets = perfect_output()
    values = {**vars(output), **vars(targets)}
    before = {name: value.clone() for name, value in values.items()}
    head = box_head()
    head.decode(output)
    head.loss(output, targets, head.counts(targets))
    for name, value in values.items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_a_query_without_an_object_is_taught_that_there_is_none():
    output, targets = perfect_output()
    output.class_logits[0, 0, 5] = 9.0
    loss = box_head().loss(output, targets, box_head().counts(targets))
    # one class of the first query is wrong: 0.75 * 9, over 2 objects
    assert float(loss["class"]) == pytest.approx(0.75 * 9 / 2, rel=1e-3)


def test_no_object_and_no_label_are_different_and_both_finite():
    nothing = targets_of(np.zeros((0, 9)), np.zeros(0, np.int64))
    unlabelled = dataclasses.replace(targets_of(BOXES, LABELS), labelled=torch.zeros(1))
    for targets, is_zero in ((nothing, False), (unlabelled, True)):
        head = box_head()
        loss = head.loss(head(torch.randn(1, 8, 8, 16)), targets, head.counts(targets))
        assert loss["box"].item() == 0.0
        assert (loss["class"].item() == 0.0) is is_zero
        torch.stack(list(loss.values())).sum().backward()
        reached = [p.grad for p in head.parameters() if p.grad is not None]
        assert all(torch.isfinite(grad).all() for grad in reached)


def test_losses_of_the_parts_of_a_batch_add_up_to_the_loss_of_the_whole():
    random = np.random.default_rng(0)
    frames = []
    for number in (3, 9, 0, 2):  # more objects than queries, none, and an unlabelled frame
        boxes = random.uniform(1.0, 3.0, (number, 9))
        boxes[:, :2] = random.uniform(-3.9, 3.9, (number, 2))
        frames.append(targets_of(boxes, random.integers(0, 10, number)))
    head = box_head().eval()
    bev = torch.randn(4, 8, 8, 16)
    whole = concatenate(frames, [1.0, 1.0, 1.0, 0.0])
    counts = head.counts(whole)
    assert float(counts["box"]) == 3 + 6
    expected = head.loss(head(bev), whole, counts)
    parts = (slice(0, 1), slice(1, 4))
    found = dict.fromkeys(expected, 0.0)
    for part in parts:
        targets = concatenate(frames[part], whole.labelled[part].tolist())
        for name, loss in head.loss(head(bev[part]), targets, counts).items():
            found[name] += loss
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss)


def test_a_prediction_that_is_not_finite_stops_nothing():
    output, targets = perfect_output()
    code = output.code.clone()
    code[0, 1] = torch.nan
    head = box_head()
    frame, query, place = head._pairs(dataclasses.replace(output, code=code), targets)
    # the sick query gets no object; the first one takes over
    assert set(zip(query.tolist(), place.tolist(), strict=True)) == {(0, 1), (2, 0)}
    assert frame.tolist() == [0, 0]


def test_content_moved_by_whole_cells_moves_the_boxes():
    head = box_head(num_queries=1).eval()
    for part in (head.query_position, head.memory_position):
        nn.init.zeros_(part.second.weight)
        nn.init.zeros_(part.second.bias)
    bev = torch.zeros(1, 8, 8, 16)
    bev[:, :, 2:5, 4:7] = torch.randn(8, 3, 3) * 5
    moved = torch.roll(bev, (1, 3), dims=(2, 3))
    with torch.no_grad():
        before, after = (head.decode(head(x))[0][0, 0] for x in (bev, moved))
    shift = torch.zeros(9)
    shift[:2] = torch.tensor([3.0, 1.0])
    torch.testing.assert_close(after - before, shift, atol=1e-4, rtol=0)


def test_heads_with_several_layers_and_several_frames():
    head = box_head(num_layers=2)
    boxes_ego, scores, labels = head.decode(head(torch.randn(3, 8, 8, 16)))
    assert (boxes_ego.shape, scores.shape, labels.shape) == ((3, 6, 9), (3, 6), (3, 6))
    assert (scores.diff(dim=1) <= 0).all()


def test_leads_are_those_of_the_closest_choice():
    peaks = {(CAR, 2, 3): 5.0, (CAR, 5, 9): 4.0, (CONE, 2, 3): 1.0, (PEDESTRIAN, 2, 3): 0.75}
    head = head_that_sees(peaks, num_queries=3)
    # the cone is the last query, the pedestrian just missed; the cars lead by more
    output = head(torch.zeros(1, 8, 8, 16))
    assert head.leads(output).tolist() == [pytest.approx([0.25] * 3)]
    # a cell beside a car's peak is lower by 0.125: it nearly was the peak
    head = head_that_sees(peaks | {(CAR, 5, 10): 3.875}, num_queries=3)
    assert head.leads(head(torch.zeros(1, 8, 8, 16)))[0, 0] == pytest.approx(0.125)


def test_in_bf16_neighbouring_places_keep_their_own_code():
    head = box_head(channels=16).eval()
    position = torch.tensor([[[178.5, 3.5], [179.5, 3.5]]])
    with torch.autocast("cpu", torch.bfloat16):
        code = head.memory_position(position).float()
    exact = head.memory_position(position)
    way, exact_way = code[0, 1] - code[0, 0], exact[0, 1] - exact[0, 0]
    assert torch.linalg.norm(way - exact_way) < 0.5 * torch.linalg.norm(exact_way)

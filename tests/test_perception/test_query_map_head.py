import math

import pytest
import torch

from perception.geometry.grid import BevGrid
from perception.models.heads.map_head import MapHead, MapHeadConfig, MapHeadOutput, MapTargets
from perception.models.heads.query_box_head import QueryBoxHead, QueryBoxHeadConfig
from perception.models.heads.query_map_head import QueryMapHead, QueryMapHeadConfig, sine_position

GRID = BevGrid(x_min=-8.0, x_max=8.0, y_min=-4.0, y_max=4.0, cell=1.0)
RASTER = BevGrid(x_min=-6.0, x_max=6.0, y_min=-3.0, y_max=3.0, cell=0.5)


def map_head(num_classes=3, num_layers=2):
    torch.manual_seed(0)
    config = QueryMapHeadConfig(
        grid=RASTER, channels=8, num_layers=num_layers, num_heads=2, ffn_channels=8, dropout=0.0
    )
    return QueryMapHead(config, 8, num_classes, GRID)


def test_logits_on_the_raster_after_each_layer():
    output = map_head()(torch.randn(2, 8, 8, 16))
    assert output.logits.shape == (2, 3, 12, 24)
    assert [x.shape for x in output.aux_logits] == [(2, 3, 12, 24)]
    assert map_head(num_layers=1)(torch.randn(1, 8, 8, 16)).aux_logits == ()


def test_a_constant_map_gives_constant_logits():
    # positions are in the memory alone, which all pixels of a layer share
    bev = torch.randn(1, 8, 1, 1).expand(1, 8, 8, 16)
    logits = map_head().eval()(bev).logits
    torch.testing.assert_close(logits, logits[..., :1, :1].expand_as(logits), atol=1e-5, rtol=0)


def test_a_query_reads_where_things_are():
    head = map_head().eval()
    filters = head.pixels[0].weight
    filters.data = filters + filters.flip(3)  # the same for a mirrored map
    bev = torch.randn(1, 8, 8, 16)
    logits, mirrored = head(bev).logits, head(bev.flip(3)).logits
    # the pixels are mirrored with the map; the queries, which know positions, are others
    assert not torch.allclose(logits, mirrored.flip(3), atol=1e-3)
    head.position.zero_()
    logits, mirrored = head(bev).logits, head(bev.flip(3)).logits
    torch.testing.assert_close(logits, mirrored.flip(3), atol=1e-4, rtol=1e-4)


def test_a_query_reads_the_scene():
    head = map_head().eval()
    shown = {}
    head.to_mask[0].register_forward_pre_hook(lambda module, inputs: shown.update(query=inputs[0]))
    head(torch.zeros(1, 8, 8, 16))
    empty = shown["query"]
    head(torch.randn(1, 8, 8, 16))
    assert not torch.allclose(shown["query"], empty, atol=1e-3)


@pytest.mark.parametrize(
    "change", [{"class_frequency": 0.0}, {"class_frequency": 1.0}, {"num_layers": 0}]
)
def test_impossible_sizes_are_refused(change):
    with pytest.raises(ValueError, match="expected"):
        QueryMapHeadConfig(grid=RASTER, **change)


def test_a_layer_is_expected_at_its_frequency_before_training():
    head = map_head()
    with torch.no_grad():
        head.to_mask[-1].weight.zero_()
        head.to_mask[-1].bias.zero_()
    prob = torch.sigmoid(head(torch.randn(1, 8, 8, 16)).logits)
    torch.testing.assert_close(prob, torch.full_like(prob, 0.1))


def test_the_loss_has_a_term_for_each_layer_of_the_decoder():
    head = map_head(num_classes=1)
    zero = torch.zeros(2, 1, 12, 24)
    output = MapHeadOutput(logits=zero, aux_logits=(zero, zero))
    targets = MapTargets(mask=torch.zeros(2, 1, 12, 24), labelled=torch.tensor([[1.0], [0.0]]))
    loss = head.loss(output, targets, head.counts(targets))
    # probability 0.5 everywhere: log 2 * 0.5 ** 2, in the frame that knows the layer
    one = 0.25 * math.log(2)
    assert {name: float(x) for name, x in loss.items()} == pytest.approx(
        {"map": one, "map_aux": 2 * one}, rel=1e-5
    )
    alone = MapHeadOutput(logits=zero, aux_logits=())
    assert float(head.loss(alone, targets, head.counts(targets))["map_aux"]) == 0.0


def test_a_class_teaches_its_own_logits_alone():
    head = map_head().eval()
    output = head(torch.randn(1, 8, 8, 16))
    mask = torch.zeros(1, 3, 12, 24)
    losses = []
    for value in (0.0, 1.0):
        mask[:, 1] = value
        targets = MapTargets(mask=mask.clone(), labelled=torch.tensor([[1.0, 0.0, 1.0]]))
        losses.append(head.loss(output, targets, head.counts(targets))["map"].item())
    assert losses[0] == losses[1]


def test_the_specification_s_raster_and_layers_that_do_not_disturb_each_other():
    torch.manual_seed(0)
    bev_grid = BevGrid(x_min=-51.2, x_max=51.2, y_min=-51.2, y_max=51.2, cell=3.2)
    raster = BevGrid(x_min=-50.0, x_max=50.0, y_min=-50.0, y_max=50.0, cell=0.5)
    config = QueryMapHeadConfig(grid=raster, channels=8, num_heads=2, ffn_channels=8)
    head = QueryMapHead(config, 8, 6, bev_grid)
    output = head(torch.randn(1, 8, 32, 32))
    assert output.logits.shape == (1, 6, 200, 200)
    # the slope of the loss by the logits of five layers is the same whatever the sixth shall be
    slopes = []
    for value in (0.0, 1.0):
        logits = output.logits.detach().requires_grad_()
        mask = torch.zeros(1, 6, 200, 200)
        mask[:, 2] = value
        targets = MapTargets(mask=mask, labelled=torch.ones(1, 6))
        said = MapHeadOutput(logits=logits, aux_logits=())
        head.loss(said, targets, head.counts(targets))["map"].backward()
        slopes.append(logits.grad)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(slopes[0][:, others], slopes[1][:, others])
    assert not torch.equal(slopes[0][:, 2], slopes[1][:, 2])


def test_positions_differ_in_both_axes_and_are_not_swapped():
    code = sine_position(8, 2, 3).reshape(2, 3, 8)
    assert torch.equal(code[0, 0, :4], code[0, 2, :4])  # y's half is the same along a row
    assert torch.equal(code[0, 1, 4:], code[1, 1, 4:])
    # row 1 of 2: (1 + 0.5) / 2 * 2 pi = 1.5 pi: its sine is -1; wavelengths 1, 100
    assert code[1, 0, 0] == pytest.approx(-1.0)
    assert code[1, 0, 1] == pytest.approx(math.sin(1.5 * math.pi / 100), abs=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_position(6, 2, 3)


def test_the_light_heads_are_at_most_0_6_of_the_convolutional_ones():
    def num_parameters(module):
        return sum(p.numel() for p in module.parameters())

    boxes = num_parameters(QueryBoxHead(QueryBoxHeadConfig(), 512, 10, GRID))
    light = num_parameters(QueryMapHead(QueryMapHeadConfig(grid=RASTER), 512, 6, GRID))
    conv = num_parameters(
        MapHead(MapHeadConfig(channels=512, num_convs=2, grid=RASTER), 512, 6, GRID)
    )
    assert boxes + light <= 0.6 * (boxes + conv)

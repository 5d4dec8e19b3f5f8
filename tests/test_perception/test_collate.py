import dataclasses

import numpy as np
import pytest
import torch
from small_detector import small_config

from export.parity_frames import noise_frame
from perception.data.collate import collate_inputs
from perception.ops.bev_pool import bev_pool_reference

SPEC = small_config().inputs


def test_lists_of_a_batch_point_into_their_own_frames():
    frames = [noise_frame(SPEC, seed) for seed in (1, 2)]
    batch = collate_inputs(frames, SPEC)
    h, w, d = SPEC.feature_height, SPEC.feature_width, SPEC.frustum.num_depths
    random = torch.Generator().manual_seed(0)
    depth = torch.rand(2 * 6, d, h, w, generator=random)
    feat = torch.rand(2 * 6, h, w, 3, generator=random)
    together = bev_pool_reference(depth, feat, batch.pool_runs, batch.cell_start)
    for i, frame in enumerate(frames):
        lists = [torch.from_numpy(x) for x in (frame.pool_runs, frame.cell_start)]
        alone = bev_pool_reference(depth[6 * i : 6 * i + 6], feat[6 * i : 6 * i + 6], *lists)
        cells = SPEC.bev.num_cells
        assert torch.equal(together[cells * i : cells * (i + 1)], alone)


def test_pillars_of_a_batch_are_found_through_the_cells():
    frames = [noise_frame(SPEC, seed) for seed in (1, 2)]
    batch = collate_inputs(frames, SPEC)
    cells = SPEC.pillars.grid.num_cells
    for i, frame in enumerate(frames):
        rows = batch.cell_pillar[cells * i : cells * (i + 1)].numpy()
        assert np.array_equal(rows > 0, frame.cell_pillar > 0)
        occupied = np.flatnonzero(rows)
        found = batch.pillar_points[rows[occupied] - 1].numpy()
        assert np.array_equal(found, frame.pillar_points[frame.cell_pillar[occupied] - 1])


def test_pillars_of_a_batch_name_their_frame_by_their_cell():
    frames = [noise_frame(SPEC, seed) for seed in (1, 2)]
    batch = collate_inputs(frames, SPEC)
    cell = batch.pillar_cell.numpy()
    for i, frame in enumerate(frames):
        mine = cell // SPEC.pillars.num_cells == i
        assert np.array_equal(cell[mine] % SPEC.pillars.num_cells, frame.pillar_cell)


def test_more_cells_than_indices_are_refused():
    # 64 x 64 cells in 20000 slices: 82 million a frame, 26 frames fit into 31 bits, 27 do not
    pillars = dataclasses.replace(SPEC.pillars, num_slices=20_000)
    spec = dataclasses.replace(SPEC, pillars=pillars)
    frames = [noise_frame(SPEC)] * 27
    with pytest.raises(ValueError, match="expected at most 26 frames"):
        collate_inputs(frames, spec)

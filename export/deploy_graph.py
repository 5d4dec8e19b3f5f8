"""The graph that leaves the house: one frame in, metric boxes and map probabilities out.

Only map layers that were trained leave it.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from perception.checkpoint import Checkpoint
from perception.models.detector import InputTensors
from perception.models.sparse_encoder import TableTensors


class DeployGraph(nn.Module):
    """Wraps a detector so that the model itself stays clean of export.

    Arguments of `forward` are the fields of `perception.model_inputs.ModelInputs`: one frame, no
    batch axis. Normalisation is inside; outputs are those of `runtime.engines.base.ModelOutputs`.
    """

    map_channels: Tensor

    def __init__(self, checkpoint: Checkpoint):
        super().__init__()
        self.detector = checkpoint.detector.eval()
        channels = torch.tensor(checkpoint.map_channels, dtype=torch.int64)
        self.register_buffer("map_channels", channels, persistent=False)

    def forward(
        self,
        images: UInt8[Tensor, "cam h w 3"],
        camera_mask: Float[Tensor, " cam"],
        pool_runs: Int[Tensor, "r 3"],
        cell_start: Int[Tensor, " g_plus_1"],
        depth_img: Float[Tensor, "cam h_depth w_depth"],
        pillar_points: Float[Tensor, "v m 5"],
        pillar_num_points: Int[Tensor, " v"],
        pillar_cell: Int[Tensor, " v"],
        cell_pillar: Int[Tensor, " g_lidar"],
        lidar_mask: Float[Tensor, " 1"],
        sparse_tables: tuple[Int[Tensor, "..."], ...] = (),
    ) -> tuple[
        Float[Tensor, "k 9"], Float[Tensor, " k"], Int[Tensor, " k"], Float[Tensor, "c y x"]
    ]:
        """Return boxes_ego, scores, labels and map_prob.

        With `sparse_tables` (`SparseTables.by_name`) a sparse encoder is made of Gather and MatMul.
        """
        output = self.detector(
            InputTensors(
                images=images.unsqueeze(0),
                camera_mask=camera_mask.unsqueeze(0),
                pool_runs=pool_runs,
                cell_start=cell_start,
                depth_img=depth_img.unsqueeze(0),
                pillar_points=pillar_points,
                pillar_num_points=pillar_num_points,
                pillar_cell=pillar_cell,
                cell_pillar=cell_pillar,
                lidar_mask=lidar_mask.unsqueeze(0),
                sparse_tables=_table_tensors(sparse_tables) if sparse_tables else None,
            )
        )
        boxes_ego, scores, labels = self.detector.box_head.decode(output.boxes)
        map_logits = output.map.logits[0].index_select(0, self.map_channels)
        return boxes_ego[0], scores[0], labels[0], torch.sigmoid(map_logits.float())


def _table_tensors(tables: tuple[Int[Tensor, "..."], ...]) -> TableTensors:
    *both, dense = tables
    half = len(both) // 2
    return TableTensors(stages=tuple(both[:half]), strided=tuple(both[half:]), dense=dense)

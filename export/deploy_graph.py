"""The graph that leaves the house: one frame in, metric boxes and map probabilities out."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from perception.models.detector import BevDetector, InputTensors


class DeployGraph(nn.Module):
    """Wraps a detector so that the model itself stays clean of export.

    Arguments of `forward` are the fields of `perception.model_inputs.ModelInputs`: one frame, no
    batch axis. Normalisation is inside; outputs are those of `runtime.engines.base.ModelOutputs`.
    """

    def __init__(self, detector: BevDetector):
        super().__init__()
        self.detector = detector.eval()

    def forward(
        self,
        images: UInt8[Tensor, "cam h w 3"],
        camera_mask: Float[Tensor, " cam"],
        point_depth: Int[Tensor, " p"],
        point_feat: Int[Tensor, " p"],
        cell_start: Int[Tensor, " g_plus_1"],
        pillar_points: Float[Tensor, "v m 5"],
        pillar_num_points: Int[Tensor, " v"],
        pillar_cell: Int[Tensor, " v"],
        cell_pillar: Int[Tensor, " g_lidar"],
        lidar_mask: Float[Tensor, " 1"],
    ) -> tuple[
        Float[Tensor, "k 9"], Float[Tensor, " k"], Int[Tensor, " k"], Float[Tensor, "c y x"]
    ]:
        """Return boxes_ego, scores, labels and map_prob."""
        output = self.detector(
            InputTensors(
                images=images.unsqueeze(0),
                camera_mask=camera_mask.unsqueeze(0),
                point_depth=point_depth,
                point_feat=point_feat,
                cell_start=cell_start,
                pillar_points=pillar_points,
                pillar_num_points=pillar_num_points,
                pillar_cell=pillar_cell,
                cell_pillar=cell_pillar,
                lidar_mask=lidar_mask.unsqueeze(0),
            )
        )
        boxes_ego, scores, labels = self.detector.box_head.decode(output.boxes)
        map_prob = torch.sigmoid(output.map_logits.float())
        return boxes_ego[0], scores[0], labels[0], map_prob[0]

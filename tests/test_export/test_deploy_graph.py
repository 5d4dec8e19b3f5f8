import numpy as np
import torch

from export.deploy_graph import DeployGraph
from export.parity import run_torch
from export.parity_frames import noise_frame
from perception.checkpoint import load_checkpoint
from perception.data.collate import collate_inputs
from perception.taxonomy import MAP_CLASSES


def test_the_graph_gives_the_detector_s_boxes_and_its_trained_layers(small_run):
    checkpoint = load_checkpoint(small_run)
    frame = noise_frame(checkpoint.config.inputs)
    outputs = run_torch(DeployGraph(checkpoint), frame)
    with torch.no_grad():
        raw = checkpoint.detector(collate_inputs([frame], checkpoint.config.inputs))
        boxes, scores, labels = checkpoint.detector.box_head.decode(raw.boxes)
    prob = torch.sigmoid(raw.map.logits[0])
    assert checkpoint.trained_map_classes == ("drivable_area", "walkway")
    for channel, name in enumerate(checkpoint.trained_map_classes):
        expected = prob[MAP_CLASSES.index(name)].numpy()
        # torch's sigmoid rounds a row's last few pixels otherwise than the vectors before them
        np.testing.assert_allclose(outputs.map_prob[channel], expected, rtol=0, atol=1e-7)
    assert (outputs.boxes_ego == boxes[0].numpy()).all()
    assert (outputs.scores == scores[0].numpy()).all()
    assert (outputs.labels == labels[0].numpy()).all()

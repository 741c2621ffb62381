"""MediaPipe's own face geometry: the measure for ours.

`MEDIAPIPE_PATH` names a checkout of github.com/google-ai-edge/mediapipe, for its canonical face, and the
package mediapipe==0.10.21 is installed; this writes what the tests compare with:

    MEDIAPIPE_PATH=… PYTHONPATH=.:tests python tests/harness/face_geometry.py
"""

from __future__ import annotations

import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from anifacediff_core.capture.geometry import BASIS

GOLDEN = Path(__file__).parents[1] / "core" / "face_geometry.safetensors"
PATH = "MEDIAPIPE_PATH"
SIZES = ((512, 512), (720, 1280), (600, 400))
CANONICAL = "mediapipe/tasks/cc/vision/face_geometry/data/geometry_pipeline_metadata_landmarks.pbtxt"
TASK = "mediapipe.tasks.vision.face_geometry.FaceGeometry"
GRAPH = f"""
input_stream: "image"
input_stream: "landmarks"
output_stream: "geometry"
node {{ calculator: "ImagePropertiesCalculator" input_stream: "IMAGE_CPU:image" output_stream: "SIZE:size" }}
node {{
  calculator: "{TASK}EnvGeneratorCalculator" output_side_packet: "ENVIRONMENT:environment"
  options {{ [{TASK}EnvGeneratorCalculatorOptions.ext] {{ environment {{
    origin_point_location: TOP_LEFT_CORNER
    perspective_camera {{ vertical_fov_degrees: 63 near: 1 far: 10000 }} }} }} }}
}}
node {{
  calculator: "{TASK}PipelineCalculator" input_side_packet: "ENVIRONMENT:environment"
  input_stream: "IMAGE_SIZE:size" input_stream: "FACE_LANDMARKS:landmarks"
  output_stream: "FACE_GEOMETRY:geometry"
  options {{ [{TASK}PipelineCalculatorOptions.ext] {{ metadata_file {{ file_name: "FILE" }} }} }}
}}
"""


def random_landmarks() -> Tensor:
    """Meshes as MediaPipe finds them, one for each of `SIZES`: (3, 468, 3), x and y as fractions, z as x."""
    generator = torch.Generator().manual_seed(0)
    faces = []
    for height, width in SIZES:
        face = torch.randn(468, 3, generator=generator) * torch.tensor([5.0, 5.0, 3.0])
        for number, _, *place in BASIS:
            face[int(number)] = torch.tensor(place) + 0.3 * torch.randn(3, generator=generator)
        skew = 0.3 * torch.randn(3, 3, generator=generator)
        seen = face @ torch.linalg.matrix_exp(skew - skew.T) + torch.tensor([2.0, -3.0, -50.0])
        depth = -seen[:, 2]
        x, y = 0.8 * height / width * seen[:, 0] / depth + 0.5, 0.5 - 0.8 * seen[:, 1] / depth
        faces.append(torch.stack([x, y, (depth / 50 - 1) * 0.5 * height / width], -1))
    return torch.stack(faces)


def mediapipe_geometry(landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """MediaPipe's surfaces (3, 468, 3) and pose matrices (3, 4, 4)."""
    formats = importlib.import_module("google.protobuf.text_format")
    calculators = importlib.import_module("mediapipe.framework.calculator_pb2")
    lists = importlib.import_module("mediapipe.framework.formats.landmark_pb2")
    task = "mediapipe.tasks.cc.vision.face_geometry"
    metadata = importlib.import_module(f"{task}.proto.geometry_pipeline_metadata_pb2")
    importlib.import_module(f"{task}.calculators.geometry_pipeline_calculator_pb2")
    importlib.import_module(f"{task}.calculators.env_generator_calculator_pb2")
    framework = importlib.import_module("mediapipe.python")
    graphs = importlib.import_module("mediapipe.python._framework_bindings.calculator_graph")
    found: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "metadata.binarypb"
        text = (Path(os.environ[PATH]) / CANONICAL).read_text()
        file.write_bytes(formats.Parse(text, metadata.GeometryPipelineMetadata()).SerializeToString())
        config = formats.Parse(GRAPH.replace("FILE", str(file)), calculators.CalculatorGraphConfig())
        graph = graphs.CalculatorGraph(graph_config=config)
        graph.observe_output_stream(
            "geometry", lambda _, packet: found.append(framework.packet_getter.get_proto(packet))
        )
        graph.start_run()
        for time, ((height, width), face) in enumerate(zip(SIZES, landmarks.tolist(), strict=True)):
            image = framework.packet_creator.create_image_frame(
                image_format=framework.ImageFormat.SRGB, data=np.zeros((height, width, 3), np.uint8)
            )
            message = lists.NormalizedLandmarkList()
            for x, y, z in face:
                message.landmark.add(x=x, y=y, z=z)
            graph.add_packet_to_input_stream("image", image.at(time))
            packet = framework.packet_creator.create_proto(message)
            graph.add_packet_to_input_stream("landmarks", packet.at(time))
        graph.close_all_packet_sources()
        graph.wait_until_done()
    surfaces = torch.tensor([list(each.mesh.vertex_buffer) for each in found]).reshape(len(found), -1, 5)
    matrices = torch.tensor([list(each.pose_transform_matrix.packed_data) for each in found])
    return surfaces[..., :3].contiguous(), matrices.reshape(-1, 4, 4).transpose(1, 2).contiguous()


def main() -> None:
    landmarks = random_landmarks()
    surfaces, poses = mediapipe_geometry(landmarks)
    save_file(
        {"landmarks": landmarks, "surface": surfaces, "pose": poses},
        GOLDEN,
        {"origin": "computed by MediaPipe 0.10.21 on seeded random points"},
    )


if __name__ == "__main__":
    main()

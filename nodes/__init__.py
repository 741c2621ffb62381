"""The nodes of ComfyUI-AniFaceDiff, one file per stage."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _use_core_of_this_folder() -> None:
    """Make `anifacediff_core` beside this folder importable.

    By itself, not by way of sys.path: there our folder `nodes` would hide the host's module `nodes`.
    """
    folder = Path(__file__).resolve().parent.parent / "anifacediff_core"
    if "anifacediff_core" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "anifacediff_core", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["anifacediff_core"] = package
    spec.loader.exec_module(package)


_use_core_of_this_folder()


from .capture import DECAExtract, ParametersFromFaceLandmarks  # noqa: E402
from .checks import guarded  # noqa: E402
from .conditioning import PoseEncode, ReferenceNetEncode  # noqa: E402
from .deca import LoadDECA  # noqa: E402
from .disclosure import DetectMark, MarkSyntheticVideo, SaveSyntheticVideo  # noqa: E402
from .driving import VideoFrames  # noqa: E402
from .editor import ExpressionEditor  # noqa: E402
from .export import SaveVideoAs  # noqa: E402
from .files import LoadARKitCurves, LoadFaceParameters, LoadLiveLink, SaveFaceParameters  # noqa: E402
from .folder import LoadVideosFromFolder  # noqa: E402
from .guidance import RenderGuidance  # noqa: E402
from .head import FacialShapeAlign, RenderNormals  # noqa: E402
from .host.api import ComfyExtension, io  # noqa: E402
from .host.examples import bring_examples  # noqa: E402
from .host.folders import register_folders  # noqa: E402
from .host.live import register_live_route  # noqa: E402
from .label import LabelSyntheticVideo  # noqa: E402
from .landmarks import DrawFaceLandmarks  # noqa: E402
from .learn import LearnThisPicture  # noqa: E402
from .live import LiveReenactment  # noqa: E402
from .loading import ExpressionAdapterLoader, LoadAniFaceDiff  # noqa: E402
from .long_video import ReenactLongVideo  # noqa: E402
from .lora import LoraLoader  # noqa: E402
from .many import ReenactMany  # noqa: E402
from .motion import EditMotion, SmoothMotion  # noqa: E402
from .motion_mix import BlendMotion, CombineMotion  # noqa: E402
from .motion_preview import MotionPreview  # noqa: E402
from .motion_time import RetimeMotion  # noqa: E402
from .paste import PasteBack  # noqa: E402
from .portrait import PortraitCrop  # noqa: E402
from .sampling import AniFaceDiffSampler, ApplyAniFaceDiff  # noqa: E402
from .speech import SpeechToMotion  # noqa: E402
from .speed import CacheDeepFeatures, CompileForSpeed  # noqa: E402

NODES: list[type[io.ComfyNode]] = [
    LoadAniFaceDiff,
    ExpressionAdapterLoader,
    LoraLoader,
    LearnThisPicture,
    LoadDECA,
    VideoFrames,
    LoadVideosFromFolder,
    PortraitCrop,
    DECAExtract,
    ParametersFromFaceLandmarks,
    ExpressionEditor,
    FacialShapeAlign,
    RenderNormals,
    RenderGuidance,
    DrawFaceLandmarks,
    PoseEncode,
    ReferenceNetEncode,
    CompileForSpeed,
    CacheDeepFeatures,
    ApplyAniFaceDiff,
    AniFaceDiffSampler,
    ReenactLongVideo,
    ReenactMany,
    LiveReenactment,
    PasteBack,
    LabelSyntheticVideo,
    MarkSyntheticVideo,
    DetectMark,
    SaveSyntheticVideo,
    SaveVideoAs,
    SaveFaceParameters,
    LoadFaceParameters,
    LoadLiveLink,
    LoadARKitCurves,
    SpeechToMotion,
    EditMotion,
    CombineMotion,
    BlendMotion,
    SmoothMotion,
    RetimeMotion,
    MotionPreview,
]


class AniFaceDiffExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        register_folders()
        bring_examples()
        register_live_route()
        return [guarded(node) for node in NODES]

"""A voice alone makes a face talk: Speech to Motion."""

from __future__ import annotations

from typing import Any

from anifacediff_core.head.model import HeadModel
from anifacediff_core.motion.retime import exact_rate
from anifacediff_core.speech.motion import SpeechSettings, speech_to_motion

from .host.api import io
from .host.runtime import Progress
from .sockets import connected, frames_output, make_schema, parameters_output, rate_input, share_input


class SpeechToMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffSpeechToMotion",
            stage="Motion",
            display_name="Speech to Motion",
            description="A picture talks without a driving video: lips and jaw as a small network hears "
            "them in a voice, with blinks, brows and head motion in its rhythm. The network has learnt from "
            "synthesized speech only.",
            search_aliases=["lip sync", "talking head", "audio driven", "talk", "voice", "tts", "audio"],
            inputs=[
                io.Audio.Input(
                    "audio",
                    tooltip="A voice, best alone: music and loud noise move the mouth, too.",
                ),
                rate_input("Frames a second of the motion. 29.97 means 30000/1001."),
                share_input(
                    "mouth", 1.0, "How far lips and jaw move: 1 as usual, more is livelier.", most=2.0
                ),
                share_input(
                    "head", 1.0, "How far the head nods and turns while it talks; 0 keeps it still.", most=3.0
                ),
                share_input("brows", 1.0, "How far the brows rise on what is stressed.", most=3.0),
                share_input(
                    "blinks", 1.0, "How often the eyes blink, beside the usual; 0 is never.", most=3.0
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=True,
                    tooltip="Decides where the head turns and when the eyes blink. The mouth follows the "
                    "voice alone.",
                ),
            ],
            outputs=[
                parameters_output(
                    "The motion, as long as the sound, for Facial Shape Align or Combine Motion."
                ),
                frames_output(),
                io.Float.Output(display_name="fps", tooltip="Frames a second, for Create Video."),
            ],
        )

    @classmethod
    def execute(
        cls,
        audio: dict[str, Any] | None,
        fps: float,
        mouth: float,
        head: float,
        brows: float,
        blinks: float,
        seed: int,
    ) -> io.NodeOutput:
        sound = connected(audio, "sound", "the video before has none, or connect Load Audio")
        rate = exact_rate(fps)
        made = speech_to_motion(
            sound["waveform"][0],
            int(sound["sample_rate"]),
            HeadModel.bundled(),
            rate,
            SpeechSettings(mouth, brows, blinks, head, seed),
            progress=Progress(1),
        )
        return io.NodeOutput(made, len(made), float(rate))

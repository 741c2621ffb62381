"""Memory of a long video, and what a kill in the middle costs.

    python benchmarks/long_video.py [--frames 3000] [--size 256] [--folder DIR]

Makes a driving clip of 512² at 30000/1001 with sound by playing the example forth and back, lets the command
line reenact it, kills that in the middle (SIGKILL) and runs it again. The resident memory of the process is
read every second. Prints what a person wants to know, and fails where memory grows or the result is not
exact. One step and no guidance by default: that changes the time, not the memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anifacediff_core.video import VideoWriter, read_frames

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "anifacediff_core" / "assets" / "examples"
RATE = Fraction(30000, 1001)
SETTLED = 300  # frames after which memory must not grow
GROWTH = 1.1
SOUND_RATE = 48000


def write_driver(path: Path, frames: int, side: int) -> None:
    """The example forth and back for as long as it takes, with a tone of exactly that length."""
    clip = list(read_frames(EXAMPLES / "driving.mp4"))
    period = [*clip, *clip[-2:0:-1]]
    tone = path.with_suffix(".wav")
    write_tone(tone, float(frames / RATE))
    with VideoWriter(path, RATE, audio_from=tone) as video:
        for number in range(frames):
            frame = period[number % len(period)][None]
            video.write(F.interpolate(frame, (side, side), mode="bicubic", antialias=True).clamp(0, 1))
    tone.unlink()


def write_tone(path: Path, seconds: float) -> None:
    time_ = np.arange(round(seconds * SOUND_RATE)) / SOUND_RATE
    wave = (8000 * np.sin(2 * np.pi * (220 + 20 * np.sin(time_)) * time_)).astype(np.int16)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=SOUND_RATE)
        stream.codec_context.layout = "mono"
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.sample_rate = SOUND_RATE
        output.mux(stream.encode(frame))
        output.mux(stream.encode())


@dataclass
class Watched:
    """A command under watch: (frames done, resident MiB) every second, and resident MiB while it reads the
    driver.
    """

    reading: list[float] = field(default_factory=list)
    samples: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    def run(self, command: list[str], work: Path, segment_frames: int, kill_at: int | None = None) -> int:
        """Run to the end, or kill it once so many frames are finished; returns the exit code."""
        begin = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT) as process:
            while process.poll() is None:
                done = segment_frames * len(list(work.glob("[0-9]*.safetensors")))
                resident = resident_mib(process.pid)
                if resident and not (work / "driving.safetensors").exists():
                    self.reading.append(resident)
                elif resident:
                    self.samples.append((done, resident))
                if kill_at is not None and done >= kill_at:
                    process.kill()
                time.sleep(1)
            self.seconds = time.monotonic() - begin
            return process.returncode

    def settled(self, after: int) -> list[float]:
        return [resident for done, resident in self.samples if done >= after]

    def told(self, every: int) -> Iterator[str]:
        """The largest memory within each so many frames."""
        most: dict[int, float] = {}
        for done, resident in self.samples:
            part = done // every * every
            most[part] = max(resident, most.get(part, 0.0))
        yield from (f"{done}: {resident:.0f}" for done, resident in sorted(most.items()))


def growth(samples: list[float]) -> float:
    """The most of the last third against the most of the first third."""
    third = max(len(samples) // 3, 1)
    return max(samples[-third:]) / max(samples[:third])


def resident_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


@dataclass(frozen=True)
class Facts:
    frames: int
    rate: Fraction
    seconds: float
    sound_seconds: float


def facts(path: Path) -> Facts:
    """Decoded to the end."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = sum(1 for _ in container.decode(video))
        rate = Fraction(video.average_rate)
    with av.open(str(path)) as container:
        sound = container.streams.audio[0]
        samples = sum(frame.samples for frame in container.decode(sound))
        return Facts(frames, rate, float(frames / rate), samples / sound.codec_context.sample_rate)


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--frames", type=int, default=3000)
    parser.add_argument("--size", type=int, default=256, help="side of the result")
    parser.add_argument("--driver", type=int, default=512, help="side of the driving clip")
    parser.add_argument("--segment", type=int, default=96)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--cfg", type=float, default=1.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, help="for the clip and the result; else a temporary one")
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as temporary:
        measure(options, options.folder or Path(temporary))


def measure(options: argparse.Namespace, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    driver, out = folder / f"driver_{options.frames}.mp4", folder / "result.mp4"
    work = out.with_name(f"{out.name}.work")
    if not driver.exists():
        write_driver(driver, options.frames, options.driver)
    command = [sys.executable, "-m", "anifacediff_core", "reenact", "--source", str(EXAMPLES / "source.png")]
    command += ["--driving", str(driver), "--out", str(out), "--size", str(options.size)]
    command += ["--steps", str(options.steps), "--cfg", str(options.cfg), "--segment", str(options.segment)]
    command += ["--device", options.device]
    killed, resumed = Watched(), Watched()
    code = killed.run(command, work, options.segment, kill_at=options.frames // 2)
    there = len(list(work.glob("[0-9]*.safetensors")))
    print(f"killed (exit code {code}) after {there} segments, {killed.seconds:.0f} s")
    code = resumed.run(command, work, options.segment)
    found = facts(out)
    print(f"went on (exit code {code}): {resumed.seconds:.0f} s")
    for name, watched in (("first run", killed), ("second run", resumed)):
        print(f"resident MiB, most within each {SETTLED} frames, {name}: {', '.join(watched.told(SETTLED))}")
    read = killed.reading[len(killed.reading) * SETTLED // options.frames :]
    settled = [read, killed.settled(SETTLED), resumed.settled(options.frames // 2 + SETTLED)]
    growths = [growth(samples) for samples in settled if samples]
    apart = abs(found.seconds - found.sound_seconds) * float(found.rate)
    told = {
        "frames": found.frames,
        "rate": str(found.rate),
        "peak MiB": round(max(resident for _, resident in [*killed.samples, *resumed.samples])),
        "peak MiB when reading": round(max(killed.reading, default=0.0)),
        "growth when reading, first run, second run": [round(growth, 3) for growth in growths],
        "sound and pictures apart, in frames": round(apart, 3),
        "left over": [path.name for path in folder.iterdir() if path not in (driver, out)],
    }
    print(json.dumps(told, indent=1))
    exact = found.frames == options.frames and found.rate == RATE and apart < 1
    if not exact or max(growths, default=1.0) > GROWTH:
        raise SystemExit("The result is not exact, or memory grows.")


if __name__ == "__main__":
    main()

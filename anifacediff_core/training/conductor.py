"""Runs a whole experiment: its phases one after the other or side by side, each as processes of its own.

A phase is launched with one process per device, as `accelerate launch` or `torchrun` would. So each starts
with empty devices, leaves its weights in the folder, and a phase that fails or is killed takes nothing else
with it. A second run into the same folder goes on where the first one stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import InputError
from .states import newest_state
from .task import states_folder

PATIENCE = 60.0  # seconds that a phase has to write a state when it is asked to stop
GRACE = 240.0  # seconds beyond its budget after which a phase is ended
TIMED_OUT = 124  # exit code of what was ended
STOPPED = 143  # exit code of what a signal has ended
REFUSED = 2  # exit code of the command line after one sentence: trying again would end the same way


@dataclass(frozen=True)
class Lane:
    """Phases that run in turn on the same devices; no devices means the CPU."""

    phases: tuple[str, ...]
    devices: tuple[int, ...]

    @property
    def processes(self) -> int:
        return max(len(self.devices), 1)


def divide(row: dict[str, int | str], devices: int) -> list[list[Lane]]:
    """Give the lanes of one row of the plan their devices.

    Args:
        row: "phase, phase" -> number of devices, or "rest".
        devices: how many there are; with too few for all lanes, they take turns on all of them. 0 is the CPU.

    Returns:
        groups that run one after the other; the lanes of a group run side by side.
    """
    names = {key: tuple(phase.strip() for phase in key.split(",")) for key in row}
    fixed = sum(count for count in row.values() if isinstance(count, int))
    greedy = sum(count == "rest" for count in row.values())
    if devices < fixed + greedy:
        return [[Lane(names[key], tuple(range(devices)))] for key in row]
    left = list(range(devices))
    lanes = []
    for key, count in row.items():
        take = count if isinstance(count, int) else (devices - fixed) // greedy
        lanes.append(Lane(names[key], tuple(left[:take])))
        left = left[take:]
    return [lanes]


def launch_command(arguments: list[str], processes: int) -> list[str]:
    """The command that runs `python -m anifacediff_core <arguments>` in so many processes of one machine."""
    launcher = [sys.executable, "-u"]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*launcher, "-m", "anifacediff_core", *arguments]


class Job:
    """A running phase whose output goes to the terminal and to `<phase>.log`."""

    def __init__(self, phase: str, lane: Lane, arguments: list[str], folder: Path, seconds: float) -> None:
        self.limit = time.monotonic() + seconds + GRACE
        environment = dict(os.environ)
        if lane.devices:
            visible = environment.get("CUDA_VISIBLE_DEVICES")
            names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(names[i] for i in lane.devices)
        environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // lane.processes // 2, 1)))
        self.process = subprocess.Popen(
            launch_command(arguments, lane.processes),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        )
        assert self.process.stdout is not None
        self.relay = threading.Thread(
            target=_relay, args=(self.process.stdout, folder / f"{phase}.log"), daemon=True
        )
        self.relay.start()

    def wait(self) -> int:
        """Return the exit code; a phase that outstays its budget is ended."""
        try:
            code = self.process.wait(max(self.limit - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            self.stop()
            code = TIMED_OUT
        self.relay.join(timeout=10)
        return code

    def stop(self) -> None:
        self.process.terminate()
        self.end()

    def end(self) -> None:
        """Wait for what was asked to stop; a second signal would disturb torch's launcher in stopping."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()


def _stop(number: int, frame: Any) -> None:
    raise InputError("Training was asked to stop; run the same command to go on.")


def _relay(source: IO[str], path: Path) -> None:
    """Pass lines on, come a full disk or a reader that is gone: a phase whose output nobody takes hangs."""
    for line in source:
        with contextlib.suppress(OSError), path.open("a") as log:
            log.write(line)
        with contextlib.suppress(OSError):
            sys.stdout.write(line)
            sys.stdout.flush()


class Conductor:
    """Runs the phases of an experiment that are not finished yet.

    Args:
        config, overrides: as on the command line; every phase reads them again.
        devices: number of GPUs to use, None for all.
    """

    def __init__(
        self, config: str, experiment: dict[str, Any], overrides: list[str], folder: Path, devices: int | None
    ) -> None:
        present = torch.cuda.device_count()
        self.devices = present if devices is None else devices
        if self.devices > present:
            raise InputError(f"{devices} GPUs were asked for and {present} are present.")
        self.config, self.experiment, self.overrides, self.folder = config, experiment, overrides, folder
        self.jobs: list[Job] = []
        self.failed: list[str] = []
        self.stopping = False
        self.lock = threading.Lock()  # of the two above: no job starts once all are being stopped
        if not experiment.get("plan"):
            raise InputError("The experiment has no plan; add one, or choose one phase with --phase.")

    def run(self) -> None:
        """Run row after row of the plan.

        Raises:
            InputError: a phase failed, or a signal asked to stop.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            before = signal.signal(signal.SIGTERM, _stop)
        except ValueError:  # only the main thread may listen
            before = None
        try:
            for row in self.experiment["plan"]:
                for lanes in divide(row, self.devices):
                    threads = [
                        threading.Thread(target=self._run_lane, args=(lane,), daemon=True) for lane in lanes
                    ]
                    for thread in threads:
                        thread.start()
                    for thread in threads:
                        thread.join()
                if self.failed:
                    failed = ", ".join(self.failed)
                    raise InputError(f"Training stopped at {failed}; the reason is in the .log of that name.")
        finally:
            with self.lock:
                self.stopping = True
            running = [job for job in self.jobs if job.process.poll() is None]
            for job in running:
                job.process.terminate()
            for job in running:
                job.end()
            if before is not None:
                signal.signal(signal.SIGTERM, before)

    def _run_lane(self, lane: Lane) -> None:
        for phase in lane.phases:
            if self._done(phase).exists():
                continue
            code = self._run_phase(phase, lane)
            if code == 0:
                self._done(phase).touch()
                continue
            if self.stopping:
                return
            print(f"Phase {phase} ended with code {code}; see {phase}.log.", flush=True)
            # A phase that took too long may go on with its last snapshot: a shorter training beats none.
            if code != TIMED_OUT or not (self.folder / f"{phase}.safetensors").exists():
                self.failed.append(phase)
                return

    def _run_phase(self, phase: str, lane: Lane) -> int:
        """Return the exit code. A phase whose worker is lost goes on from its newest state, as long as it has
        got further since the last time.
        """
        while True:
            before = newest_state(states_folder(self.folder, phase))
            with self.lock:
                if self.stopping:
                    return STOPPED
                job = Job(phase, lane, self._arguments(phase), self.folder, self._budget(phase))
                self.jobs.append(job)
            code = job.wait()
            state = newest_state(states_folder(self.folder, phase))
            if self.stopping or code in (0, REFUSED, TIMED_OUT) or state is None or state == before:
                return code
            print(f"Phase {phase} ended with code {code}; it goes on from {state.name}.", flush=True)

    def _done(self, phase: str) -> Path:
        return self.folder / f"{phase}.done"

    def _arguments(self, phase: str) -> list[str]:
        settings = [part for override in self.overrides for part in ("--set", override)]
        return ["train", "--config", self.config, "--phase", phase, "--out", str(self.folder), *settings]

    def _budget(self, phase: str) -> float:
        settings = self.experiment["phases"].get(phase) or {}
        return float(settings.get("loop", {}).get("seconds") or settings.get("seconds") or 1e7)

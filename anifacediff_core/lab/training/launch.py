"""A whole experiment on one machine: its phases one after the other, each in processes of its own.

So each starts with empty devices, and one that is lost takes nothing else with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from anifacediff_core.errors import InputError

from .states import newest_state
from .task import done_mark, states_folder

REFUSED = 2  # exit code of the command line after one sentence: trying again would end the same way


def launch_command(arguments: list[str], processes: int) -> list[str]:
    """The command that runs `python -m anifacediff_core <arguments>` in so many processes of one machine."""
    launcher = [sys.executable, "-u"]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*launcher, "-m", "anifacediff_core", *arguments]


def run_all(experiment: dict[str, Any], folder: Path, arguments: list[str], devices: int | None) -> None:
    """Run the phases that are not finished yet, each on all devices.

    Args:
        arguments: of the command line, to which `--phase` is added.
        devices: number of GPUs to use, None for all, 0 for the CPU.

    Raises:
        InputError: a phase failed, or a signal asked to stop.
    """
    present = torch.cuda.device_count()
    devices = present if devices is None else devices
    if devices > present:
        raise InputError(f"{devices} GPUs were asked for and {present} are present.")
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // max(devices, 1) // 2, 1)))
    if not devices:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    for phase in experiment["phases"]:
        command = launch_command([*arguments, "--phase", phase], devices)
        before = newest_state(states_folder(folder, phase))
        while not done_mark(folder, phase).exists() and (code := _run(command, environment)):
            state = newest_state(states_folder(folder, phase))
            if code == REFUSED or state is None or state == before:
                raise InputError(f"Training stopped at {phase}; the reason is in the lines above.")
            before = state
            print(f"Phase {phase} ended with code {code}; it goes on from {state.name}.", flush=True)


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run a phase and return its exit code; a signal to stop is passed on and waited for.

    Raises:
        InputError: there was such a signal.
    """
    process = subprocess.Popen(command, env=environment)
    asked = []

    def stop(number: int, frame: Any) -> None:
        asked.append(number)
        process.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if asked:
        raise InputError("Training was asked to stop; run the same command to go on.")
    return code

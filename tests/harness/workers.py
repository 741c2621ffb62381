"""Workers for `scale.run` that other processes can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from anifacediff_core.errors import InputError


class Writes:
    """Writes a file for each job and tells who did it."""

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        Path(job["out"]).write_text(str(os.getpid()))
        return {"number": job["number"], "process": os.getpid()}


class Refuses(Writes):
    """Does not take the second job."""

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        if job["number"] == 1:
            raise InputError("job 1 is wrong; give another.")
        return super().__call__(job)


class CannotBegin(Writes):
    def __init__(self) -> None:
        raise InputError("the weights are gone; give others.")


class Sleeps(Writes):
    """Takes an hour for all jobs but the first."""

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        time.sleep(3600 if job["number"] else 0)
        return super().__call__(job)


class Dies(Writes):
    """Is killed by the second job, as for want of memory."""

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        if job["number"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(job)

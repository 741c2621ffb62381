"""Many jobs on one machine or a cluster: in this process, in several, or on Ray (the extra `scale`).

A *worker* is made once in each process and called with one job after the other; jobs and results are what
JSON can hold. On Ray this is a Ray Data pipeline with a pool of actors. When a node or a worker is lost, Ray
runs its jobs again elsewhere, and also jobs that were done whose answer had not arrived yet. So a worker must
bear being called twice with a job: it puts its result under a name that follows from the job, all at once
(`storage.atomic_write`), and answers from what is there when it is called again. Then each result is there
exactly once, whatever happens, and Ray Data's "at least once" is all that is needed from it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Annotated, Any

from anifacediff_core.errors import InputError

MOST_BLOCKS = 10_000  # that Ray Data keeps account of; a block of several jobs is answered at its end
CONNECT_SECONDS = 10.0
Job = dict[str, Any]
Worker = Callable[[Job], Job]


@dataclass(frozen=True)
class Scale:
    """Where jobs run, as options of commands (`options`).

    One process is this very one. `ray` is None for no Ray, "auto" for the cluster of this machine.
    """

    processes: Annotated[int, "worker processes on this machine"] = 1
    ray: Annotated[
        str | None,
        "run on Ray: on the cluster at ADDRESS, on the one that RAY_ADDRESS names, or on this machine",
        {"nargs": "?", "const": "", "metavar": "ADDRESS"},
    ] = None
    cpus: Annotated[float, "with --ray", {"names": ("--cpus-per-worker",), "metavar": "N"}] = 1.0
    gpus: Annotated[
        float, "with --ray; may be a fraction", {"names": ("--gpus-per-worker",), "metavar": "N"}
    ] = 0.0


def run(make: Callable[[], Worker], jobs: Sequence[Job], scale: Scale) -> Iterator[Job]:
    """Call workers with all jobs; the results come in any order.

    Args:
        make: makes a worker in its process; a function or class of a module, or `functools.partial` of one.

    Raises:
        InputError: Ray is wanted and not there, or a process died.
    """
    if scale.processes < 1 or scale.cpus <= 0 or scale.gpus < 0:
        raise InputError("Workers need at least one process and some CPU; raise the numbers.")
    if scale.ray is not None and scale.processes > 1:
        raise InputError("Ray starts processes itself; leave out either --ray or --processes.")
    if not jobs:
        return
    if scale.ray is not None:
        yield from _on_ray(make, jobs, scale)
    elif scale.processes > 1:
        yield from _in_processes(make, jobs, min(scale.processes, len(jobs)))
    else:
        worker = make()
        for job in jobs:
            yield worker(job)


# ---- processes of this machine


def _in_processes(make: Callable[[], Worker], jobs: Sequence[Job], count: int) -> Iterator[Job]:
    threads = max((os.cpu_count() or 1) // count, 1)
    # a forked process cannot use CUDA
    pool = ProcessPoolExecutor(count, get_context("spawn"), _begin, (make, threads))
    try:
        for answer in as_completed([pool.submit(_serve, job) for job in jobs]):
            yield _opened(answer.result())
    except BrokenProcessPool:
        raise InputError(
            "A worker process was ended from outside, perhaps for want of memory; run the command again with "
            "fewer processes, what is done is kept."
        ) from None
    finally:
        for process in list((pool._processes or {}).values()):  # `terminate_workers` came with Python 3.14
            process.terminate()
        pool.shutdown(cancel_futures=True)


_guarded: _Guarded  # of this process


def _begin(make: Callable[[], Worker], threads: int) -> None:
    import torch

    global _guarded
    torch.set_num_threads(threads)
    _guarded = _Guarded(make)


def _serve(job: Job) -> Job:
    return _guarded(job)


class _Guarded:
    """A worker whose errors are answers: exceptions do not travel well between processes."""

    def __init__(self, make: Callable[[], Worker]) -> None:
        self.failure: Job = {}
        try:
            self.worker = make()
        except Exception as error:
            self.failure = {"error": str(error), "kind": type(error).__name__}

    def __call__(self, job: Job) -> Job:
        if self.failure:
            return self.failure
        try:
            return {"result": self.worker(job)}
        except Exception as error:
            return {"error": str(error), "kind": type(error).__name__}


def _opened(answer: Job) -> Job:
    """The result in a guarded worker's answer; its error is raised here."""
    if "result" in answer:
        return answer["result"]
    if answer["kind"] == InputError.__name__:
        raise InputError(answer["error"])
    raise RuntimeError(f"A worker failed with {answer['kind']}: {answer['error']}")


# ---- Ray


class _Actor:
    """What Ray Data calls with rows."""

    def __init__(self, make: Callable[[], Worker]) -> None:
        self.guarded = _Guarded(make)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        return {"answer": json.dumps(self.guarded(json.loads(row["job"])))}


def _on_ray(make: Callable[[], Worker], jobs: Sequence[Job], scale: Scale) -> Iterator[Job]:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError("Ray is not installed; run pip install 'ray[data]', or leave out --ray.") from error
    started = not ray.is_initialized()
    address = scale.ray or os.environ.get("RAY_ADDRESS", "")
    try:
        if started:
            _require_listener(address)
            ray.init(address=scale.ray or None, log_to_driver=False)
    except (OSError, ValueError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"There is no Ray cluster at '{address}' ({reason}); check the address.") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        rows = [{"job": json.dumps(job)} for job in jobs]
        done = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)).map(
            _Actor,
            fn_constructor_args=(make,),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=len(rows)),
            num_cpus=scale.cpus,
            num_gpus=scale.gpus or None,
            max_restarts=-1,  # a lost worker is made anew …
            max_task_retries=-1,  # … and called again
        )
        for row in done.iter_rows():
            yield _opened(json.loads(row["answer"]))
    finally:
        if started:
            ray.shutdown()


def _require_listener(address: str) -> None:
    """Ray would wait for minutes for a cluster that is not there."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()

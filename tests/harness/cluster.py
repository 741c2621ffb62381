"""A Ray cluster of two nodes on this machine, one of which is killed in the middle of the work."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anifacediff_core.training import prepare as module
from anifacediff_core.training.prepare import Preparer

WAIT = 90.0  # seconds for the doomed node to get so far
BEGINNINGS = 5  # of chunks by the doomed node before it is killed


class Marked(Preparer):
    """Tells on disk which node begins a chunk, and does not hurry. The node that will stay holds its first
    chunk until the other one is gone.
    """

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        import ray

        node = ray.get_runtime_context().get_node_id()
        (self.out / "marks").mkdir(exist_ok=True)
        (self.out / "marks" / f"{job['name']}.{node}.{os.getpid()}.{time.time_ns()}").touch()
        if node != (self.out / "doomed").read_text():
            wait_for(lambda: (self.out / "killed").exists())
        time.sleep(0.3)  # half of the time nothing is written yet …
        answer = super().__call__(job)
        time.sleep(0.3)  # … and half of it everything is, but nobody knows
        return answer


def wait_for(reached: Callable[[], bool]) -> bool:
    until = time.monotonic() + WAIT
    while not reached() and time.monotonic() < until:
        time.sleep(0.02)
    return reached()


def marks(out: Path) -> list[tuple[str, str]]:
    """Chunk and node of each beginning, in order."""
    found = [path.name.split(".") for path in (out / "marks").glob("*")]
    return [(chunk, node) for chunk, node, _, _ in sorted(found, key=lambda parts: int(parts[3]))]


def kill_half_way(cluster: Any, doomed: Any, out: Path, told: dict[str, Any]) -> None:
    """Kill a node in the middle of a chunk."""

    def begun() -> list[str]:
        return [chunk for chunk, node in marks(out) if node == doomed.node_id]

    if wait_for(lambda: len(begun()) >= BEGINNINGS):
        told["killed"] = begun()[-1]
        cluster.remove_node(doomed, allow_graceful=False)
    (out / "killed").touch()


def main(commands: list[list[str]], out: Path) -> None:
    """Run commands of ours on the cluster; a node is killed during the first one. The last line that is
    printed tells what happened.
    """
    from ray.cluster_utils import Cluster

    from anifacediff_core.cli import main as command

    module.Preparer = Marked  # type: ignore[misc]
    memory = 80_000_000
    quick = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 3,
    }
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": memory, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    doomed = cluster.add_node(num_cpus=1, object_store_memory=memory)
    out.mkdir()
    (out / "doomed").write_text(doomed.node_id)
    told: dict[str, Any] = {"killed": None, "doomed": doomed.node_id}
    killer = threading.Thread(target=kill_half_way, args=(cluster, doomed, out, told))
    killer.start()
    try:
        told["codes"] = [command([*arguments, "--ray", cluster.address]) for arguments in commands]
    finally:
        killer.join()
        cluster.shutdown()
    print(json.dumps({**told, "marks": marks(out)}))

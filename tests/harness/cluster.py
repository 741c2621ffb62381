"""A Ray cluster of two nodes on this machine, one of which is killed in the middle of the work."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anifacediff_core.lab.training import prepare as module
from anifacediff_core.lab.training import shard_chunks
from anifacediff_core.lab.training.prepare import Preparer
from anifacediff_core.storage import atomic_write

WAIT = 90.0  # seconds for the doomed node to get so far
FATAL = 5  # the doomed node is killed during the first chunk with shards from this one on


class Marked(Preparer):
    """Tells on disk which node begins a chunk. The doomed node is slow at the worst moment of a chunk: the
    shards are there, the record is not. The other one holds its first chunk until the doomed node is gone.
    """

    begun = 0

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        import ray

        node = ray.get_runtime_context().get_node_id()
        (self.out / "marks").mkdir(exist_ok=True)
        (self.out / "marks" / f"{job['name']}.{node}.{os.getpid()}.{time.time_ns()}").touch()
        self.begun += 1
        if node != (self.out / "doomed").read_text():
            wait_for(lambda: (self.out / "killed").exists())
        elif self.begun == FATAL:
            shard_chunks.atomic_write = self._hold_records  # type: ignore[assignment]
        return super().__call__(job)

    def _hold_records(self, path: Path) -> Any:
        if path.parent.name == shard_chunks.RECORDS and list(self.out.glob(f"{path.stem}-*.tar")):
            (self.out / "fatal").write_text(path.stem)
            time.sleep(WAIT)
        return atomic_write(path)


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
    fatal = out / "fatal"
    if wait_for(lambda: fatal.exists() and bool(fatal.read_text())):
        told["killed"] = fatal.read_text()
        told["unlisted"] = [path.name for path in out.glob(f"{told['killed']}-*.tar")]
        cluster.remove_node(doomed, allow_graceful=False)
    (out / "killed").touch()


def main(commands: list[list[str]], out: Path) -> None:
    """Run commands of ours on the cluster; a node is killed during the first one. The last line that is
    printed tells what happened.
    """
    from ray.cluster_utils import Cluster

    from anifacediff_core.lab.cli import main as command

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

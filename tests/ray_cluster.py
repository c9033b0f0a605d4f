"""Ray clusters on this machine, whose nodes can be lost."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from processes import free_port

# before Ray is imported anywhere: no reports, and patience with a busy machine
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "300"}
_STORE = 80 * 2**20  # bytes of each node's object store


@contextmanager
def nodes(count: int, *, head_cores: int = 1, dashboard: bool = False, client_port: int | None = None) -> Iterator[Any]:
    """A cluster of nodes with one core each; the first one is the head, which cannot be lost."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        head: dict[str, Any] = {"num_cpus": head_cores, "object_store_memory": _STORE, "include_dashboard": dashboard}
        if client_port is not None:
            head["ray_client_server_port"] = client_port
        if dashboard:  # the agent that takes jobs has the same port on each node, which another cluster may use
            head |= {"dashboard_port": free_port(), "dashboard_agent_listen_port": free_port()}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(1, count):
                cluster.add_node(num_cpus=1, object_store_memory=_STORE)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.shutdown()


def frames_saved(folder: Path) -> int:
    """The frames of the checkpoint in a video's output folder."""
    states = [path.name.split("-")[1] for path in folder.glob(".resume-*.safetensors")]
    return max(map(int, states), default=0)


def node_at(cluster: Any, folder: Path) -> Any:
    """The node whose worker writes into a video's output folder."""
    for node in cluster.worker_nodes:
        for worker in psutil.Process(_raylet(node)).children(recursive=True):
            with suppress(psutil.Error):
                if any(Path(file.path).parent == folder for file in worker.open_files()):
                    return node
    raise AssertionError(f"{folder}: no worker has a file open there")


def lose(cluster: Any, node: Any) -> None:
    """The node is gone, as if its power had failed."""
    cluster.remove_node(node, allow_graceful=False)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)

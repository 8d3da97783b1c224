"""A cluster whose nodes come and go, by several raylets on this machine; each test has a process of its own."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = [pytest.mark.whole]

PRELUDE = """
import logging, os, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from pipeline.config.catalogue import ExecutorSettings
from pipeline.workers.executors import Done
from pipeline.workers.ray_pool import RayExecutor
from stages.pair import Shard

logging.getLogger("ray").setLevel(logging.ERROR)
CLUSTERS = []
FOLDER, SHARDS = Path(sys.argv[1]), [Shard(f"{i:03d}.tar", f"/x/{i}.tar", "tar", 1) for i in range(int(sys.argv[2]))]


class Slow:
    "Takes a moment for each shard, and leaves a folder named by its node; all but ten wait until there are so many."

    def __init__(self, num_nodes):
        self.num_nodes = num_nodes

    def open(self):
        pass

    def run(self, shard):
        node = ray.get_runtime_context().get_node_id()
        (FOLDER / node).mkdir(exist_ok=True)
        while shard in SHARDS[10:] and len(list(FOLDER.iterdir())) < self.num_nodes:
            time.sleep(0.05)
        time.sleep(0.3)
        return node


def begun(num_nodes):
    while len(list(FOLDER.iterdir())) < num_nodes:
        time.sleep(0.05)


def outcomes(num_nodes, options=None, meanwhile=lambda: None):
    "Run all shards in a thread; the main one, which alone may start raylets, meddles with the cluster meanwhile."
    executor, found = RayExecutor(options or ExecutorSettings(), num_gpus=0), []
    thread = threading.Thread(target=lambda: found.extend(executor.map(Slow(num_nodes), SHARDS)), daemon=True)
    thread.start()
    meanwhile()
    thread.join()
    assert sorted(o.shard.name for o in found) == [s.name for s in SHARDS], found
    assert all(isinstance(o, Done) for o in found), found
    assert len(list(FOLDER.iterdir())) == num_nodes


def cluster(*cpus):
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], "include_dashboard": False})
    nodes = [made.add_node(num_cpus=num) for num in cpus[1:]]
    ray.init(made.address, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False)
    CLUSTERS.append(made)
    return made, nodes


def end():
    "Stop what was started; Ray's own exit fails over nodes that were removed by force."
    ray.shutdown()
    for made in CLUSTERS:
        made.shutdown()
    os._exit(0)
"""


def in_a_process(body: str, folder: Path, num_shards: int, timeout_s: float = 180) -> None:
    script = folder / "script.py"
    script.write_text(PRELUDE + textwrap.dedent(body) + "\nend()\n")
    folder = folder / "begun"
    folder.mkdir()
    command = [sys.executable, str(script), str(folder), str(num_shards)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout_s, cwd=root)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_node_that_dies_costs_its_shards_a_retry_and_hangs_nothing(tmp_path: Path) -> None:
    body = """
    made, nodes = cluster(0, 1, 1, 1)  # the pool of before hung here: a shard was bound to a worker that had no place

    def kill():
        begun(3)
        made.remove_node(nodes[0], allow_graceful=False)
        while sum(node["Alive"] for node in ray.nodes()) > 3:
            time.sleep(0.1)
        time.sleep(3)  # the loss is known now, and shards wait still
        (FOLDER / "go").mkdir()

    outcomes(4, meanwhile=kill)
    """
    in_a_process(body, tmp_path, 24)


@pytest.mark.slow
def test_a_node_that_joins_is_used_and_none_at_all_is_waited_for(tmp_path: Path) -> None:
    body = """
    made, _ = cluster(0)

    def add():
        time.sleep(3)
        made.add_node(num_cpus=1)
        begun(1)
        made.add_node(num_cpus=2)

    outcomes(2, meanwhile=add)
    """
    in_a_process(body, tmp_path, 24)


@pytest.mark.slow
def test_all_nodes_lost_and_one_back(tmp_path: Path) -> None:
    body = """
    made, nodes = cluster(0, 1, 1)

    def swap():
        begun(2)
        for node in nodes:
            made.remove_node(node, allow_graceful=False)
        time.sleep(5)
        made.add_node(num_cpus=1)

    outcomes(3, ExecutorSettings(max_retries=5), meanwhile=swap)
    """
    in_a_process(body, tmp_path, 24)


@pytest.mark.slow
def test_workers_asked_for_beyond_the_room_keep_no_shard_waiting(tmp_path: Path) -> None:
    body = """
    cluster(0, 1)
    outcomes(1, ExecutorSettings(workers=4))
    """
    in_a_process(body, tmp_path, 12)


@pytest.mark.slow
def test_threads_are_those_of_a_node_not_of_the_cluster(tmp_path: Path) -> None:
    body = """
    from manifests.errors import ConfigError

    made, _ = cluster(0, 4, 2, 2)
    outcomes(1, ExecutorSettings(threads_per_worker=3))  # two fit into 8 CPUs, one onto a node
    made.add_node(num_cpus=6, num_gpus=2)
    made.add_node(num_cpus=2, num_gpus=1)
    assert RayExecutor(ExecutorSettings(), num_gpus=3).num_threads == 2
    try:
        RayExecutor(ExecutorSettings(threads_per_worker=7), num_gpus=0)
    except ConfigError as error:
        assert "7 exceeds the 6 CPUs of the largest node" in str(error)
    else:
        raise AssertionError("not refused")
    """
    in_a_process(body, tmp_path, 12)

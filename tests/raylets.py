"""Scripts on a cluster of several raylets on this machine, each in a process of its own."""

import subprocess
import sys
import textwrap
from pathlib import Path

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

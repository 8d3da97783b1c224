"""Ray Data as the scheduler of shards, against the pool of `pipeline.workers.ray_pool`, where nodes and workers come and go.

    python -m benchmarks.robustness.ray_data [--only NAME ...]

Both take shards and give outcomes by the same call. Each scenario runs in a process of its own on raylets of this machine; it
prints what became of the shards, seconds, and how many worker processes were started. 300 s without an end count as a hang.
"""

import argparse
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Final

import psutil

from benchmarks.common import ROOT, header

LIMIT_S: Final = 300.0
PRELUDE: Final = '''
import logging, os, pickle, signal, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from pipeline.config.catalogue import ExecutorSettings
from pipeline.workers.executors import Done, Failed
from pipeline.workers.ray_pool import RayExecutor
from stages.pair import Shard

logging.getLogger("ray").setLevel(logging.CRITICAL)
FOLDER, MADE = Path(sys.argv[1]), []


class Worker:
    """What Ray Data's pool makes one of per actor."""

    def __init__(self, stage, shards):
        stage.open()
        self.stage, self.shards = stage, shards

    def __call__(self, batch):
        found = []
        for number in batch["id"]:
            try:
                outcome = Done(self.shards[number], self.stage.run(self.shards[number]))
            except Exception as error:
                outcome = Failed(self.shards[number], f"{type(error).__name__}: {error}", "")
            found.append(pickle.dumps(outcome))
        return {"outcome": found}


class DataExecutor:
    """The same by Ray Data: a block a shard, an elastic pool of actors, failed shards as values."""

    def map(self, stage, shards):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars, context.max_errored_blocks = False, -1
        data = ray.data.range(len(shards), override_num_blocks=len(shards)).map_batches(
            Worker,
            fn_constructor_args=(stage, list(shards)),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=MOST),
            num_cpus=1,
            max_restarts=-1,
            max_task_retries=2,
        )
        ended = set()
        for row in data.iter_rows():
            outcome = pickle.loads(row["outcome"])
            ended.add(outcome.shard.name)
            yield outcome
        for shard in shards:  # max_errored_blocks drops what failed for good, without a word to the caller
            if shard.name not in ended:
                yield Failed(shard, "no outcome", "")


class Stage:
    """Takes a moment per shard; leaves a file for each process that opens it."""

    def __init__(self, seconds=0.3, deadly=None):
        self.seconds, self.deadly = seconds, deadly

    def open(self):
        (FOLDER / f"worker-{ray.get_runtime_context().get_node_id()}-{os.getpid()}-{time.monotonic_ns()}").touch()

    def run(self, shard):
        if shard.name == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return shard.name


def shards(num):
    return [Shard(f"{i:04d}.tar", f"/x/{i}.tar", "tar", 1) for i in range(num)]


def end():
    ray.shutdown()
    for made in MADE:
        made.shutdown()
    os._exit(0)


def cluster(*cpus):
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], "include_dashboard": False})
    nodes = [made.add_node(num_cpus=num) for num in cpus[1:]]
    ray.init(made.address, logging_level=logging.CRITICAL, log_to_driver=False, configure_logging=False)
    MADE.append(made)
    return made, nodes


def opened():
    return len(list(FOLDER.glob("worker-*")))


def executor():
    return DataExecutor() if KIND == "data" else RayExecutor(ExecutorSettings(), num_gpus=0)


def outcomes(stage, todo, meanwhile=lambda: None):
    found, start, first = [], time.monotonic(), []
    def take():
        for outcome in executor().map(stage, todo):
            first.append(time.monotonic() - start)
            found.append(outcome)
    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    meanwhile()
    thread.join()
    done = sum(isinstance(o, Done) for o in found)
    seconds = f"{time.monotonic() - start:.1f} s, first outcome after {min(first):.1f} s"
    print(f"RESULT {done} done, {len(found) - done} failed of {len(todo)}; {seconds}, {opened()} workers opened", flush=True)
'''
SCENARIOS: Final = {
    "a node of three dies": """
        MOST = 3
        made, nodes = cluster(0, 1, 1, 1)
        def kill():
            while opened() < 3:
                time.sleep(0.1)
            made.remove_node(nodes[0], allow_graceful=False)
        outcomes(Stage(1.0), shards(40), kill)
    """,
    "no node at first, then two": """
        MOST = 3
        made, _ = cluster(0)
        def add():
            time.sleep(5)
            made.add_node(num_cpus=1)
            time.sleep(5)
            made.add_node(num_cpus=1)
        outcomes(Stage(1.0), shards(40), add)
    """,
    "both nodes lost, one back": """
        MOST = 2
        made, nodes = cluster(0, 1, 1)
        def swap():
            while opened() < 2:
                time.sleep(0.1)
            for node in nodes:
                made.remove_node(node, allow_graceful=False)
            time.sleep(5)
            made.add_node(num_cpus=1)
        outcomes(Stage(0.5), shards(24), swap)
    """,
    "a shard kills every worker": """
        MOST = 2
        cluster(2)
        outcomes(Stage(0.3, deadly="0003.tar"), shards(24))
    """,
    "1,000 shards of 1 ms": """
        MOST = 2
        cluster(2)
        outcomes(Stage(0.001), shards(1000))
    """,
    "five stages of 8 shards": """
        MOST = 2
        cluster(2)
        start, kept = time.monotonic(), executor()
        for stage in [Stage(0.01 * n) for n in range(1, 6)]:
            assert len(list(kept.map(stage, shards(8)))) == 8
        print(f"RESULT {time.monotonic() - start:.1f} s", flush=True)
    """,
}


def result(kind: str, body: str) -> str:
    """Run one scenario and return its line."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(f"KIND = {kind!r}\n{PRELUDE}\n{textwrap.dedent(body)}\nend()\n")
        start = time.monotonic()
        command = [sys.executable, str(script), folder]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            output, errors = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            for started in [*psutil.Process(process.pid).children(recursive=True), process]:  # its raylets too, nobody else's
                started.kill()
            process.communicate()
            return f"no end in {time.monotonic() - start:.0f} s"
        said = [line.removeprefix("RESULT ") for line in output.splitlines() if line.startswith("RESULT ")]
        return said[-1] if said else f"ended with {process.returncode}: {errors.strip().splitlines()[-1:]}"


def main() -> None:
    """Print a line per scenario and scheduler."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS))
    args = parser.parse_args()
    header("studies.ray_data")
    for name in args.only or SCENARIOS:
        for kind in ("data", "pool"):
            print(f"{name}, {'Ray Data' if kind == 'data' else 'our pool'}: {result(kind, SCENARIOS[name])}", flush=True)


if __name__ == "__main__":
    main()

"""A cluster whose nodes come and go, by several raylets on this machine; each test has a process of its own."""

from pathlib import Path

import pytest
from raylets import in_a_process

pytestmark = [pytest.mark.whole]


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

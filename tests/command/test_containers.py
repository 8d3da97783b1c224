"""The compose file and the KubeRay files: what they say fits together, and their commands work, by processes for containers."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import EMOJI, ROOT, TINY

from manifests import open_round
from pipeline.cli.main import main

DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
KUBERAY = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((DOCKER / "kuberay").glob("*.yaml"))}
BIN = Path(sys.executable).parent


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["spec"].get("rayClusterSpec", document["spec"])
    return found


def commands(text: str) -> list[list[str]]:
    """The `pairsan` commands of a shell line."""
    return [shlex.split(part)[1:] for part in text.split("&&") if part.strip().startswith("pairsan ")]


@pytest.mark.parametrize("line", [COMPOSE["job"]["command"][0], KUBERAY["rayjob"]["spec"]["entrypoint"]])
def test_the_commands_of_the_files_are_ones_that_we_have(line: str) -> None:
    [(name, *arguments)] = commands(line)
    context = main.commands[name].make_context(name, arguments)  # refuses what it does not know
    assert context.params["out"].startswith("s3://runs/first")
    assert context.params["ray_address"]


def test_compose_publishes_nothing_to_the_network_and_its_nodes_ask_for_a_token() -> None:
    assert {port.split(":")[0] for service in COMPOSE.values() for port in service.get("ports", ())} == {"127.0.0.1"}
    for name in ("head", "worker", "job"):
        assert COMPOSE[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert COMPOSE[name]["environment"]["RAY_AUTH_TOKEN"] == "${RAY_AUTH_TOKEN:?}"  # no default
        assert (DOCKER / COMPOSE[name]["build"]["context"] / COMPOSE[name]["build"]["dockerfile"]).is_file()
    assert all(service in COMPOSE for entry in COMPOSE.values() for service in entry.get("depends_on", ()))


@pytest.mark.parametrize("name", list(KUBERAY))
def test_a_kuberay_file_fits_together(name: str) -> None:
    document, cluster = KUBERAY[name], cluster_of(KUBERAY[name])
    assert (document["apiVersion"], document["kind"].lower()) == ("ray.io/v1", name)
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = cluster["workerGroupSpecs"]
    assert all(0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in groups)
    for group in (cluster["headGroupSpec"], *groups):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["image"] in {"pairsan", "pairsan:cuda"}
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            # Ray takes its size from the limits, and a pod that may use more than it asked for is killed first
            assert container["resources"]["limits"] == container["resources"]["requests"]


@pytest.fixture
def bucket() -> Iterator[str]:
    """Address of an S3 server with the evaluation shards in `crawl`, and an empty `runs`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", **keys)
    for name in ("crawl", "runs"):
        client.create_bucket(Bucket=name)
    for path in sorted((EMOJI / "eval").iterdir()):
        client.upload_file(str(path), "crawl", path.name)
    yield f"{host}:{port}"
    client.close()
    server.stop()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for the names of Ray's sockets, 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="ps-") as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.whole
def test_the_commands_of_compose_clean_a_bucket_on_a_head_and_two_workers(
    bucket: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        head = f"127.0.0.1:{free.getsockname()[1]}"
    told = {"head:6379": head, "--port=6379": f"--port={head[10:]}", "bucket:9000": bucket, "/checkpoint ": f"{TINY} "}
    given = {"RAY_AUTH_TOKEN": "a" * 64, "MINIO_ROOT_USER": "test", "MINIO_ROOT_PASSWORD": "test"}
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_TMPDIR": str(short), "AWS_DEFAULT_REGION": "us-east-1"}
    env.pop("RAY_ADDRESS", None)
    for name, value in COMPOSE["job"]["environment"].items():
        env[name] = re.sub(r"\$\{(\w+):\?\}", lambda found: given[found[1]], value)
        monkeypatch.setenv(name, env[name])

    def begin(service: str) -> subprocess.Popen[bytes]:
        words = [*COMPOSE[service]["entrypoint"], *COMPOSE[service]["command"]]
        for old, new in told.items():
            words = [word.replace(old, new) for word in words]
        with (short / f"{service}.log").open("ab") as log:
            return subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True)

    nodes = [begin("head")]
    try:
        deadline = time.monotonic() + 240
        while subprocess.run(
            ["ray", "health-check", f"--address={head}"], env=env, capture_output=True, check=False
        ).returncode:
            assert time.monotonic() < deadline, (short / "head.log").read_text()
        for number in range(1, COMPOSE["worker"]["deploy"]["replicas"] + 1):
            nodes.append(begin("worker"))
            while (short / "worker.log").read_text().count("Ray runtime started") < number:
                assert time.monotonic() < deadline, (short / "worker.log").read_text()
                time.sleep(0.5)
        tries = 1 + int(COMPOSE["job"]["restart"].removeprefix("on-failure:"))  # Ray gives a node 30 s
        assert 0 in (begin("job").wait(timeout=300) for _ in range(tries)), (short / "job.log").read_text()
    finally:
        for node in nodes:
            os.killpg(node.pid, signal.SIGTERM)
            node.wait()
        subprocess.run(["pkill", "-9", "-f", str(short)], check=False)  # the job's own raylet
    sealed = open_round(f"s3://runs/first?endpoint_override={bucket}&scheme=http&region=us-east-1")
    assert sealed.num_rows == 1406


JOINED = """
import sys
import ray
from pipeline.config.catalogue import ExecutorSettings
from pipeline.config.provenance import code_sha256
from pipeline.workers.connect import connected

with connected(ExecutorSettings(ray_address=sys.argv[1]), verbose=False):
    from pipeline.workers.ray_worker import Worker

    @ray.remote
    def where():
        import manifests, pipeline, stages
        return [module.__file__ for module in (manifests, pipeline, stages)]

    for place in ray.get(where.remote()):
        assert "py_modules_files" in place, place
    worker = Worker.remote(False)
    assert ray.get(worker.ready.remote())[0] == code_sha256()
"""


@pytest.mark.slow
@pytest.mark.whole
def test_nodes_of_a_cluster_that_is_joined_get_the_code_of_the_driver(short: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, "PATH": f"{BIN}:{os.environ['PATH']}"}
    start = ["ray", "start", "--head", f"--port={port}", "--num-cpus=1", f"--temp-dir={short}", "--include-dashboard=false"]
    try:
        subprocess.run(start, env=env, check=True, capture_output=True, timeout=120)
        joined = [sys.executable, "-c", JOINED, f"127.0.0.1:{port}"]
        # the folder of the driver is on the path of workers, too
        done = subprocess.run(joined, cwd=short, env=env, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        subprocess.run(["pkill", "-9", "-f", str(short)], check=False)

"""Connect to Ray, or do without; only this room imports it."""

import contextlib
import importlib
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import ray

from manifests.errors import ConfigError
from pipeline.config.catalogue import ExecutorSettings
from pipeline.config.provenance import package_folders
from pipeline.workers.executors import Executor, LocalExecutor
from pipeline.workers.ray_pool import RayExecutor
from stages.settings import ModelSettings

_ANSWER_S: Final = 30.0


def num_gpus(settings: ExecutorSettings) -> int:
    """Return how many GPUs workers can have: of the connected cluster, or of this process."""
    if settings.executor == "ray":
        return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()


def choose_device(model: ModelSettings, executor: ExecutorSettings) -> str:
    """Return `cuda` where it is asked for or free to use, else `cpu`; inside `connected`.

    Raises:
        ConfigError: No GPU is to be had.
    """
    there = model.device != "cpu" and num_gpus(executor) > 0
    if model.device == "cuda" and not there:
        raise ConfigError("--device cuda: no GPU is visible here or on the Ray cluster")
    return "cuda" if there else "cpu"


@contextmanager
def connected(options: ExecutorSettings, *, verbose: bool, meanwhile: str | None = None) -> Iterator[None]:
    """Connect to Ray, or start a local cluster, for as long as the block runs; nothing for the local executor.

    Args:
        options: Which.
        verbose: Whether to let Ray speak.
        meanwhile: A module to import while Ray starts; torch and open_clip take seconds.

    Raises:
        ConfigError: Nothing answers at the address, or what answers is no cluster of this version.
    """
    if options.executor == "local" or ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # never whatever cluster happens to run here: somebody else's would be joined in silence
    address = options.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        refuse_silence(address, "--ray-address" if options.ray_address else "RAY_ADDRESS")
    level = logging.INFO if verbose else logging.ERROR
    logging.getLogger("ray").setLevel(level)
    if meanwhile is not None:
        threading.Thread(target=_import, args=(meanwhile,), daemon=True).start()
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            logging_level=level,
            log_to_driver=verbose,
            configure_logging=verbose,
            # nodes need what this code depends on, and no release of it
            runtime_env=None if address == "local" else {"py_modules": [str(folder) for folder in package_folders()]},
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot connect to Ray at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _import(module: str) -> None:
    with contextlib.suppress(Exception):  # whoever needs it is told
        importlib.import_module(module)


def refuse_silence(address: str, said_by: str) -> None:
    """Refuse an address where nothing listens, within 30 s; Ray itself was seen to try for 13 minutes.

    Raises:
        ConfigError: Says who named the address.
    """
    own = "leave it out to start a cluster of its own on this machine"
    if address == "auto":
        note = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"  # noqa: S108  # where Ray leaves it
        if not note.is_file():
            raise ConfigError(f"{said_by} auto: no Ray cluster runs on this machine; {own}")
        address, said_by = note.read_text().strip(), f"{said_by} auto, by {note}"
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{said_by}: {address!r} is no HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except OSError as error:
        raise ConfigError(f"{said_by}: nothing answers at {address} ({error}); {own}") from error


def make_executor(options: ExecutorSettings, *, use_gpus: bool) -> Executor:
    """Return the executor that the settings ask for, inside `connected`."""
    if options.executor == "local":
        if options.decode == "cluster":
            raise ConfigError("--decode cluster needs --executor ray")
        return LocalExecutor(options.max_retries, options.threads_per_worker or 1)
    return RayExecutor(options, num_gpus=num_gpus(options) if use_gpus else 0)

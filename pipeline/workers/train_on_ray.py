"""Run one training pass on Ray Train's workers: gloo on CPUs, NCCL on GPUs."""

import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2.api.exceptions import WorkerGroupError

from manifests.errors import PairsanError, TrainingFailed

log = logging.getLogger("pairsan.train")


def take_on_ray(take: Callable[[Any, torch.device], None], job: Any, num_workers: int, *, use_gpu: bool) -> None:
    """Call `take(job, device)` in every worker of a new torch.distributed group, and wait.

    Ray Train's own checkpoints are not used: the first worker writes position and weights into the run folder, which the next
    call goes on from.

    Args:
        take: What each worker does.
        job: Its first argument; the same for all.
        num_workers: Workers, one per GPU, else one per CPU.
        use_gpu: Whether each gets a GPU.

    Raises:
        PairsanError: What a worker raised.
        TrainingFailed: A worker was lost, or raised something else.
    """

    def loop() -> None:
        device = get_device()
        take(job, device if isinstance(device, torch.device) else device[0])

    with tempfile.TemporaryDirectory(prefix="pairsan-train-") as scratch:
        trainer = TorchTrainer(
            loop,
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
            run_config=RunConfig(name="pass", storage_path=scratch, failure_config=FailureConfig(max_failures=0)),
        )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"ray\.")  # Ray warns of settings that Ray itself makes
                trainer.fit()
        except WorkerGroupError as error:
            for cause in error.worker_failures.values():
                if isinstance(cause, PairsanError):
                    raise cause from None
            raise TrainingFailed(
                f"training workers failed: {str(error)[:2000]}\nThe same command goes on from the last saved position."
            ) from error

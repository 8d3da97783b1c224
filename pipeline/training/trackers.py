"""Tell TensorBoard, Weights & Biases or MLflow how training goes: after each pass its losses and rate, and what its round is.

None of them is a dependency: where one is asked for and missing, it is named. Their own variables say where they send things:
WANDB_MODE=offline, MLFLOW_TRACKING_URI.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from manifests.layout import CHECKPOINTS, Seal
from manifests.parts import write_json
from manifests.store import Store

Values = dict[str, float]
Track = Callable[[int, Values], object]
_PROJECT: Final = "pairsan"
_LOGS: Final = "logs"
_MLFLOW: Final = f"{CHECKPOINTS}/mlflow.json"
_OF_PASS: Final = {"clip_loss": "loss/clip", "unimodal_loss": "loss/unimodal", "seconds": "pass/seconds", "steps": "pass/steps"}
_OF_ROUND: Final = {"safe_share": "round/safe_share", "cut": "round/cut", "separation": "round/separation"}


@contextmanager
def tracking(names: tuple[str, ...], run: Store, settings: Mapping[str, Any]) -> Iterator[Track]:
    """Open trackers, and yield what tells all of them the values of a step.

    Args:
        names: Which.
        run: The run folder, on a local path; TensorBoard's files lie in its `logs`.
        settings: Of the training, for those that show them.

    Raises:
        ImportError: One is not installed.
    """
    with ExitStack() as stack:
        each = [stack.enter_context(_TRACKERS[name](run, settings)) for name in names]
        yield lambda step, values: [track(step, values) for track in each]


def values_of(entry: Mapping[str, Any], seal: Seal | None) -> Values:
    """Return what is told of a pass: an entry of the history, with the seal of its round where it has one."""
    facts = {**{word: entry.get(name) for name, word in _OF_PASS.items()}, "learning_rate": entry["learning_rate"][1]}
    if seal is not None:
        changes = sum((seal.get("changes") or {"labels": {}})["labels"].values())
        facts |= {word: seal.get(name) for name, word in _OF_ROUND.items()} | {"round/labels_changed": changes}
        facts |= {f"round/{label}": num for label, num in seal["counts"]["labels"].items()}
    return {name: float(value) for name, value in facts.items() if value is not None}


@contextmanager
def _tensorboard(run: Store, _: Mapping[str, Any]) -> Iterator[Track]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(run.path(_LOGS)) as writer:

        def track(step: int, values: Values) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield track


@contextmanager
def _wandb(run: Store, settings: Mapping[str, Any]) -> Iterator[Track]:
    import wandb

    named = hashlib.sha256(run.path().encode()).hexdigest()[:12]  # a run that is gone on with is one there, too
    options = {"name": Path(run.path()).name, "dir": run.path(), "resume": "allow", "config": dict(settings)}
    with wandb.init(project=_PROJECT, id=named, **options) as session:
        yield lambda step, values: session.log(values, step=step)


@contextmanager
def _mlflow(run: Store, settings: Mapping[str, Any]) -> Iterator[Track]:
    import mlflow

    known = run.read_json(_MLFLOW)["run_id"] if run.exists(_MLFLOW) else None
    mlflow.set_experiment(_PROJECT)
    with mlflow.start_run(run_id=known, run_name=None if known else Path(run.path()).name) as session:
        if known is None:
            mlflow.log_params(dict(settings))
            write_json(run, _MLFLOW, {"run_id": session.info.run_id})
        yield lambda step, values: mlflow.log_metrics(values, step=step)


_TRACKERS: Final[dict[str, Callable[[Store, Mapping[str, Any]], AbstractContextManager[Track]]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}

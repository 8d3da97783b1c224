"""Which round comes next, on run folders written by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import RunError
from manifests.layout import PLAN, RUN, SCORES, SEAL, round_folder
from manifests.store import Store, open_store
from pipeline.steps import numbering
from stages.label.settings import SplitSettings


def write(run: Store, name: str, value: Any) -> None:
    path = Path(run.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def of(scores: str, data: str = "now") -> dict[str, Any]:
    return {"weights": scores, "dataset": {"fingerprint": data}}


def begin(run: Store, number: int, kind: str, *, scores: str = "a", parts: int = 0, **seal: Any) -> None:
    write(run, f"{round_folder(number)}/{PLAN}", {"kind": kind, "scores_round": number, "scores": of(scores)})
    for part in range(parts):
        write(run, f"{round_folder(number)}/{SCORES}/{part}.parquet", {})
    if seal:
        write(run, f"{round_folder(number)}/{SEAL}", seal | {"plan": {"round": number, **seal.get("plan", {})}})


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def test_scores_count_when_every_shard_has_them(run: Store) -> None:
    begin(run, 1, "clean", parts=2)
    begin(run, 2, "rescore", parts=1)
    write(run, RUN, {"dataset": {"fingerprint": "now"}})
    assert numbering.scores_asked(run, 2, None) == 1
    with pytest.raises(RunError, match="no round of"):
        numbering.scores_asked(run, 3, None)
    write(run, RUN, {"dataset": {"fingerprint": "later"}})
    with pytest.raises(RunError, match="no round of"):
        numbering.scores_asked(run, 2, None)
    with pytest.raises(RunError, match="from before they grew"):
        numbering.scores_asked(run, 2, 1)


def test_an_unsealed_split_under_the_same_plan_goes_on_another_begins_anew(run: Store) -> None:
    begin(run, 1, "clean", rule="x")
    begin(run, 2, "split", scores="a")
    assert numbering.split_number(run, {"scores": of("a")}) == 2
    assert numbering.split_number(run, {"scores": of("b")}) == 3
    begin(run, 2, "split", scores="a", rule="x")
    assert numbering.split_number(run, {"scores": of("a")}) == 3


def test_scores_that_are_sealed_are_not_made_again(run: Store) -> None:
    begin(run, 1, "clean", scores="a", rule="x")
    begin(run, 2, "rescore", scores="b")
    assert numbering.rescore_number(run, of("a")) == 1
    assert numbering.rescore_number(run, of("b")) == 2
    assert numbering.rescore_number(run, of("c")) == 3


def test_the_safe_share_grows_by_a_step_to_its_cap(run: Store) -> None:
    split = SplitSettings(rule="keep-share", keep_share=0.3, growth=0.1, cap=0.55)
    assert numbering.grown(run, split, before=1) is split
    begin(run, 1, "clean", safe_share=0.2, share_above_cut=0.3)
    assert numbering.grown(run, split, before=2).keep_share == pytest.approx(0.4)
    begin(run, 2, "rescore", safe_share=0.5)
    assert numbering.grown(run, split, before=3).keep_share == pytest.approx(0.55)

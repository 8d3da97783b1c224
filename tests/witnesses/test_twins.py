"""Two rows of one uid: neither may stand for the other."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CLEAN, make_tar
from conftest import table as labels_of

Pairsan = Callable[..., object]
UID = "0f" * 16


@pytest.fixture
def run(tmp_path: Path, emoji_members: list[tuple[str, bytes]], tiny: str, pairsan: Pairsan) -> Path:
    """A sealed run of two shards; row 1 of the first and row 2 of the second carry one uid, and row 3 of the second its own."""
    (tmp_path / "data").mkdir()
    for shard in (0, 1):
        members = []
        for name, body in emoji_members[shard * 60 : shard * 60 + 60]:
            uid = {(0, 1): UID, (1, 2): UID, (1, 3): "aa" * 16}.get((shard, len(members) // 3))
            members.append((name, json.dumps({"uid": uid}).encode() if name.endswith(".json") and uid else body))
        (tmp_path / "data" / f"{shard}.tar").write_bytes(make_tar(members))
    pairsan("clean", tmp_path / "data", "--out", tmp_path / "run", "--checkpoint", tiny, *CLEAN)
    return tmp_path / "run"


def test_both_are_found_and_exports_by_uid_leave_both_out(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    frame = labels_of(run)
    twins = frame[frame["uid"] == bytes.fromhex(UID)]
    assert [(r.shard, r.index, r.label, r.reason) for r in twins.itertuples(index=False)] == [
        ("0.tar", 1, "risky", "duplicate_uid"),
        ("1.tar", 2, "risky", "duplicate_uid"),
    ]
    assert (frame["label"] == "risky").sum() == 2
    pairsan("export", run, "--out", tmp_path / "subset", "--format", "datacomp-npy", "--executor", "local")
    listed = {f"{a:016x}{b:016x}" for a, b in np.load(tmp_path / "subset" / "subset.npy").tolist()}
    assert UID not in listed
    assert "aa" * 16 in listed


def test_a_verdict_by_uid_must_say_which_of_them_it_means(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    verdicts = tmp_path / "verdicts.csv"
    pd.DataFrame({"uid": [UID], "verdict": ["safe"]}).to_csv(verdicts, index=False)
    refused = pairsan("reviews", "import", run, verdicts, code=5)
    assert "0.tar:1, 1.tar:2" in refused.stderr  # type: ignore[attr-defined]
    pd.DataFrame({"uid": [UID], "verdict": ["safe"], "shard": ["1.tar"], "index": [2]}).to_csv(verdicts, index=False)
    pairsan("reviews", "import", run, verdicts)
    pairsan("split", run, "--executor", "local")
    frame = labels_of(run)
    twins = frame[frame["uid"] == bytes.fromhex(UID)]
    assert list(twins["label"]) == ["risky", "safe"]
    assert list(twins["reason"]) == ["duplicate_uid", "review"]

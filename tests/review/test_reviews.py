"""Human verdicts: appended, honoured by later rounds, counted, taken back."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from click.testing import Result

from manifests.errors import RunError
from manifests.reading import open_round
from manifests.reviews import append, append_frame, newest, read_all, undo
from manifests.store import open_store

Pairsan = Callable[..., Result]


@pytest.fixture
def run(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> Path:
    """Half of the crawl's 38 scored rows are safe."""
    out = tmp_path / "run"
    pairsan("clean", crawl, "--out", out, "--checkpoint", tiny, "--executor", "local", "--keep-share", 0.5)
    return out


def rows_of(run: Path, label: str, num: int) -> pa.Table:
    frame = open_round(run).to_pandas(["uid", "shard", "index", "key", "label"])
    chosen = frame[frame["label"] == label].head(num)[["uid", "shard", "index", "key"]]
    return pa.Table.from_pandas(chosen.astype({"shard": str}), preserve_index=False)


def verdicts(run: Path) -> dict[bytes, str]:
    found = newest(read_all(open_store(run)))
    return dict(zip(found["uid"].to_pylist(), found["verdict"].to_pylist(), strict=True))


def test_later_rounds_honour_verdicts_and_count_them(run: Path, pairsan: Pairsan) -> None:
    store = open_store(run)
    before = open_round(run).seal["counts"]["labels"]
    saved, judged, dropped = rows_of(run, "risky", 3), rows_of(run, "safe", 2), rows_of(run, "quarantined", 2)
    append(store, saved, verdict="safe", who="ann", round_number=1, note="fine")
    append(store, judged, verdict="risky", who="ann", round_number=1)
    append(store, dropped, verdict="safe", who="bob", round_number=1)  # no cosine: nothing makes it safe
    append(store, rows_of(run, "safe", 3).slice(2), verdict="drop", who="bob", round_number=1)
    pairsan("split", run, "--keep-share", 0.5)
    manifest = open_round(run)
    rows = manifest.to_pandas().set_index("uid")
    assert set(rows.loc[saved["uid"].to_pylist(), "label"]) == {"safe"}
    assert set(rows.loc[judged["uid"].to_pylist(), "label"]) == {"risky"}
    assert set(rows.loc[dropped["uid"].to_pylist(), "label"]) == {"quarantined"}
    reviewed = [*saved["uid"].to_pylist(), *judged["uid"].to_pylist()]
    assert set(rows.loc[reviewed, "reason"]) == {"review"}
    assert set(rows.loc[dropped["uid"].to_pylist(), "reason"]) == {"image_undecodable", "caption_empty"}
    seal = manifest.seal
    assert seal["overruled"] == {"risky>safe": 3, "safe>quarantined": 1, "safe>risky": 2}
    assert seal["counts"]["labels"] == {
        "safe": before["safe"] + 3 - 3,
        "risky": before["risky"] - 3 + 2,
        "quarantined": before["quarantined"] + 1,
    }
    assert seal["counts"]["reasons"]["review"] == 6
    assert seal["plan"]["reviews"]["num"] == 8
    assert "all as sealed" in pairsan("verify", run).output
    assert len(pairsan("inspect", run, "--reason", "review", "--format", "json").output.splitlines()) == 6
    pairsan("reviews", "revoke", run, "--who", "ann")
    pairsan("split", run, "--keep-share", 0.5)
    assert open_round(run).seal["overruled"] == {"safe>quarantined": 1}


def test_a_round_keeps_the_verdicts_it_was_begun_with(run: Path, pairsan: Pairsan) -> None:
    store = open_store(run)
    append(store, rows_of(run, "risky", 1), verdict="safe", who="ann", round_number=1)
    pairsan("split", run, "--keep-share", 0.4)
    (run / "rounds/0002/manifest.json").unlink()
    append(store, rows_of(run, "risky", 4), verdict="safe", who="ann", round_number=1)
    pairsan("split", run, "--keep-share", 0.4)
    assert open_round(run).number == 2
    assert open_round(run).seal["overruled"] == {"risky>safe": 1}
    pairsan("split", run, "--keep-share", 0.4)
    assert open_round(run, 3).seal["overruled"] == {"risky>safe": 4}


def test_many_write_at_once_and_nothing_is_lost(run: Path) -> None:
    store, rows = open_store(run), rows_of(run, "safe", 19)
    with ThreadPoolExecutor(8) as pool:
        names = list(
            pool.map(
                lambda i: append(store, rows.slice(i, 1), verdict="drop", who=f"r{i}", round_number=1), range(rows.num_rows)
            )
        )
    assert len(set(names)) == rows.num_rows
    assert len(verdicts(run)) == rows.num_rows
    assert not list(run.glob("reviews/.*"))


def test_undo_gives_back_what_was_before_but_not_what_came_after(run: Path) -> None:
    store, rows = open_store(run), rows_of(run, "risky", 3)
    a, b, c = rows["uid"].to_pylist()
    append(store, rows.slice(0, 1), verdict="risky", who="ann", round_number=1, note="first")
    act = append(store, rows, verdict="safe", who="ann", round_number=1)
    append(store, rows.slice(2), verdict="drop", who="bob", round_number=1)
    assert undo(store, act, who="ann", round_number=1) == 2
    assert verdicts(run) == {a: "risky", c: "drop"}
    assert newest(read_all(store))["note"].to_pylist().count("first") == 1
    with pytest.raises(RunError, match="no act"):
        undo(store, "reviews/../run.json", who="ann", round_number=1)
    with pytest.raises(RunError, match="no verdict 'maybe'; there are: safe, risky, drop"):
        append(store, rows, verdict="maybe", who="ann", round_number=1)
    assert b not in verdicts(run)


def test_verdicts_travel_as_files(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    rows = rows_of(run, "risky", 2)
    uids = [uid.hex() for uid in rows["uid"].to_pylist()]
    given = tmp_path / "given.csv"
    given.write_text(f'uid,verdict,note\n{uids[0]},safe,"good, really"\n{uids[1]},drop,\n')
    assert "2 verdicts taken up" in pairsan("reviews", "import", run, given, "--who", "eve").output
    listed = json.loads(pairsan("reviews", "list", run, "--json").output)
    assert {(row["uid"], row["verdict"], row["note"], row["who"]) for row in listed} == {
        (uids[0], "safe", "good, really", "eve"),
        (uids[1], "drop", None, "eve"),
    }
    for name in ("out.csv", "out.parquet"):
        pairsan("reviews", "export", run, tmp_path / name)
    assert set(pd.read_csv(tmp_path / "out.csv")["uid"]) == set(pd.read_parquet(tmp_path / "out.parquet")["uid"]) == set(uids)
    assert "1 verdicts taken back" in pairsan("reviews", "revoke", run, "--uid", uids[1]).output
    pairsan("reviews", "import", run, tmp_path / "out.parquet")
    assert "(2 verdicts)" in pairsan("reviews", "list", run).output
    assert "(5 verdicts)" in pairsan("reviews", "list", run, "--all").output
    given.write_text(f"uid,verdict\n{uids[0]},maybe\n")
    assert "verdicts ['maybe']; there are: safe, risky, drop" in pairsan("reviews", "import", run, given, code=2).stderr
    given.write_text(f"uid,verdict\n{uids[0]},safe\n{'0' * 32},safe\n")
    assert "1 of 2 uids are in no shard" in pairsan("reviews", "import", run, given, code=5).stderr
    assert "Give --uid, --who or --verdict" in pairsan("reviews", "revoke", run, code=2).stderr


def test_a_frame_is_an_act_and_a_word_that_is_no_verdict_is_refused(run: Path) -> None:
    manifest = open_round(run)
    rows = manifest.to_pandas(["uid", "shard", "index", "key"]).head(3)
    append_frame(manifest.run, rows.assign(verdict=["safe", None, "drop"], note="seen"), who="ann", round_number=1)
    acts = read_all(manifest.run).to_pylist()
    assert [(act["uid"], act["verdict"], act["note"], act["who"]) for act in acts] == [
        (uid, verdict, "seen", "ann") for uid, verdict in zip(rows["uid"], ["safe", None, "drop"], strict=True)
    ]
    with pytest.raises(RunError, match="no verdict 'saffe'"):
        append_frame(manifest.run, rows.assign(verdict="saffe"), round_number=1)
    with pytest.raises(RunError, match="key is not there"):
        append_frame(manifest.run, rows.drop(columns="key").assign(verdict="safe"), round_number=1)
    assert len(read_all(manifest.run)) == 3

"""What a defence does to the data: where poison ranks, what leaks into the safe rows, what becomes of clean ones."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from pipeline.steps.canary_leaks import interval

BUDGETS: Final = (0.001, 0.01, 0.05, 0.1)
HARMLESS: Final = ("cover-true", "shaping-crowd")  # rows of an attacker that carry no target
Line = dict[str, Any]


def with_truth(rows: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Return rows (shard, key, ...) with a column `attack`, empty where a row is clean."""
    marks = truth[~truth["trigger"].isin(HARMLESS)][["shard", "key", "attack"]]
    found = rows.merge(marks, on=["shard", "key"], how="left")
    found["attack"] = found["attack"].fillna("")
    return found


def ranking(rows: pd.DataFrame, score: npt.NDArray[np.float64]) -> Iterator[Line]:
    """Yield AUROC, AUPRC, FPR at 95 % recall and recall at flag budgets of a score (higher = more suspicious), per attack."""
    attack, score = rows["attack"].to_numpy(), rankdata(np.where(np.isnan(score), np.inf, score))  # no score: most suspicious
    order = np.argsort(-score, kind="stable")
    for name in sorted(set(attack) - {""}):
        mine = (attack == name) | (attack == "")
        bad = attack[mine] == name
        rates, recalls, _ = roc_curve(bad, score[mine])
        yield {"metric": "AUROC", "attack": name, "share": float(roc_auc_score(bad, score[mine]))}
        yield {"metric": "AUPRC", "attack": name, "share": float(average_precision_score(bad, score[mine]))}
        yield {"metric": "FPR at 95 % recall", "attack": name, "share": float(rates[np.argmax(recalls >= 0.95)])}
        for budget in BUDGETS:
            flagged = attack[order[: max(1, round(budget * len(order)))]]
            yield line("recall at", name, int((flagged == name).sum()), int((attack == name).sum()), budget=budget)


def leakage(rows: pd.DataFrame, safe: npt.NDArray[np.bool_]) -> Iterator[Line]:
    """Yield how much of each attack is inside safe, and what share of the clean, hard and rare rows is.

    Hard rows are the lowest tenth by an independent encoder's cosine (column `independent`), rare ones have a class of at most
    two clean rows (column `class_size`).
    """
    attack = rows["attack"].to_numpy()
    for name in sorted(set(attack) - {""}):
        mine = attack == name
        yield line("inside safe", name, int((mine & safe).sum()), int(mine.sum()))
    clean = attack == ""
    groups = {"clean kept": clean, "rare kept": clean & (rows["class_size"].to_numpy() <= 2)}
    if "independent" in rows:
        low = rows["independent"].to_numpy()
        groups["hard kept"] = clean & (low <= np.nanquantile(low[clean], 0.1))
    for name, group in groups.items():
        yield line(name, "", int((group & safe).sum()), int(group.sum()))
    yield {"metric": "safe share", "attack": "", "share": float(safe.mean())}


def line(metric: str, attack: str, hits: int, num: int, **more: Any) -> Line:
    """Return a share with its Clopper-Pearson interval."""
    low, high = interval(hits, num)
    share = hits / max(1, num)
    return {"metric": metric, "attack": attack, "hits": hits, "num": num, "share": share, "low": low, "high": high, **more}

"""How much of each attack the signals find within a flag budget: each by itself, all together, and detectors of the literature.

    python -m benchmarks.evidence.signals_recall OUT --rate 0.01 --seeds 0 1 2
    python -m benchmarks.evidence.signals_recall OUT --data emoji --rate 0.003   # 13k; needs examples/emoji/build.py
--benchmark

For every seed: plants 19 attacks at once among the pairs of a set, each with a share `rate` of the rows (targeted ones with a
few targets of 8 or 17 rows), trains an undefended model on them, and lets `pairsan clean` compute the signals by that model
and by a frozen public encoder. An attack is judged among the clean rows and its own: what share of its rows is among the
most suspicious 1, 5 and 10 % of those. Goes on where it was interrupted; OUT/recall.parquet and OUT/recall.md hold the result.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors.torch import save_file

from benchmarks.attacks.world import load_rows
from benchmarks.common import ROOT, header
from benchmarks.evidence import detectors
from benchmarks.evidence.__main__ import TRAIN
from benchmarks.evidence.arms import run_cell
from benchmarks.evidence.arms.cell import Cell, Setting
from benchmarks.evidence.arms.filters import filtered
from benchmarks.evidence.data import datasets
from benchmarks.evidence.frozen import frozen_vectors, load_tower
from benchmarks.evidence.judging import Judge
from benchmarks.evidence.training import MODEL
from manifests import open_round

BUDGETS: Final = (0.01, 0.05, 0.1)
NEAR_COPY, MOST_REPEATS, MOST_COPIES, SIZE_PX = 0.95, 2, 4, 96
Scores = npt.NDArray[np.float64]


def attacks(rate: float, num_rows: int) -> tuple[str, ...]:
    """Return 19 attacks that plant a share `rate` of so many rows each, or a few targets."""
    rows = round(rate * num_rows)
    plain = ("natural", "patch", "patch:place=random,seed=5", "blended:share=0.25", "sig:amplitude=35", "wanet:strength=0.06")
    plain += ("colour", "clean-label", "mmpoison", "word", "text-only", "matched:seed=1", "composed:seed=2", "cover:seed=3")
    plain += ("optimised:seed=6", "dilution", "growth:seed=7")
    targeted = (f"tdpa:targets={max(2, rows * 2 // 5)},rows=8", f"flooding:targets={max(2, round(rows / 9))},rows=17")
    return *targeted, *(f"{text}{',' if ':' in text else ':'}rows={rows}" for text in plain)


def frozen_weights(out: Path) -> Path:
    """Write the frozen tower's weights as safetensors, once."""
    path = out / "efficientnet-lite0.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in load_tower().state_dict().items()}, path)
    return path


def scored(cell: Cell, weights: Path, more: Sequence[str] = ()) -> pd.DataFrame:
    """Return the pipeline's labels and signals of all rows of a cell, in the order of its table; `more` are more flags."""
    run = cell.out / "signals"
    command = [str(Path(sys.executable).parent / "pairsan"), "clean", str(cell.shards), "--out", str(run)]
    command += ["--model", MODEL.removeprefix("local-dir:"), "--checkpoint", str(cell.weights), "--executor", "local"]
    command += ["--rule", "keep-share", "--keep-share", "1.0"]
    command += ["--max-image-repeats", str(MOST_REPEATS), "--max-pair-copies", str(MOST_COPIES)]
    command += ["--reference-encoder", "timm:tf_efficientnet_lite0", "--reference-checkpoint", str(weights)]
    command += ["--set", f"reference_image_size={SIZE_PX}", "--near-copy-cosine", str(NEAR_COPY), "--discord-share", "0.07"]
    command += ["--caption-shingles", *more]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = cell.rows.join(open_round(run).to_pandas(["shard", "key", "label", "reason", "cosine", "signals"]))
    return pd.concat([rows.drop(columns="signals"), pd.json_normalize(rows["signals"])], axis=1)


def suspicions(cell: Cell, rows: pd.DataFrame) -> dict[str, Scores]:
    """Return a score for each method, higher is more suspicious."""
    v, t = cell.rows.vectors(cell.weights, MODEL)
    frozen = frozen_vectors(cell.rows.images)
    size = np.where(rows["near_copies"] > MOST_COPIES, rows["near_copies"], 0.0)
    repeats = np.where(rows["image_cluster_size"] > MOST_REPEATS, rows["image_cluster_size"], 0.0)
    repeats += np.where(rows["pair_copies"] > MOST_COPIES, rows["pair_copies"], 0.0)
    ours = {
        "**all together**": repeats + 1.0 - rows["accord"],
        "**and looks**": repeats + 1.0 - rows["look_accord"],
        "looks and accord": 1.0 - rows["look_accord"],
        "near copies by size, then accord": size + 1.0 - rows["accord"],
        "near copies": rows["near_copies"] - 1e-3 * rows["cosine"],
        "accord": 1.0 - rows["accord"],
        "image agreement": -rows["image_agreement"],
        "image agreement, reference": -rows["reference_agreement"],
        "negCLIPLoss": -rows["neg_clip_loss"],
        "caption agreement": -rows["caption_agreement"],
        "captions of one wording": rows["caption_copies"] - 1e-3 * rows["cosine"],
        "captions that occur often": rows["caption_cluster_size"] - 1e-3 * rows["cosine"],
        "crowd (near k-th neighbour)": -rows["outlier"],
        "repeated image hash": detectors.image_repeats(cell.rows.images) - 1e-3 * rows["cosine"],
    }
    theirs = {
        "cosine (SAFECLIP's score)": -rows["cosine"],
        "k-dist": detectors.k_dist(v, t, cell.seed),
        "CASCADE, second step": detectors.near_certain_poison(v, t, cell.seed),
        "SLOF": detectors.slof(v, t, cell.seed),
        "DAO": detectors.dao(v, t, cell.seed),
        "k-dist, frozen encoder": detectors.k_dist(frozen, t, cell.seed),
        "SLOF, frozen encoder": detectors.slof(frozen, t, cell.seed),
        "DAO, frozen encoder": detectors.dao(frozen, t, cell.seed),
    }
    return {name: np.asarray(score, np.float64) for name, score in {**ours, **theirs}.items()}


def recalls(attack: npt.NDArray[np.object_], score: Scores, name: str) -> dict[float, float]:
    """Return which share of an attack's rows is within each budget of the clean rows and its own; ties count as not flagged."""
    mine = (attack == name) | (attack == "")
    of_it, own = attack[mine] == name, score[mine]
    cuts = {budget: np.sort(own)[::-1][int(budget * len(own))] for budget in BUDGETS}
    return {budget: float((own[of_it] > cut).mean()) for budget, cut in cuts.items()}


def judged(cell: Cell) -> list[dict[str, Any]]:
    """Return one line per method, attack and budget, and the undefended model's attack success."""
    done = cell.out / "recall.json"
    if not done.exists():
        run_cell(cell)
        rows = scored(cell, frozen_weights(cell.folder))
        attack = cell.table["attack"].to_numpy()
        lines: list[dict[str, Any]] = []
        for method, score in suspicions(cell, rows).items():
            for name in sorted(set(attack) - {""}):
                found = recalls(attack, score, name)
                lines += [
                    {"method": method, "attack": name, "budget": budget, "share": share} for budget, share in found.items()
                ]
        success = {
            line["attack"]: line["share"]
            for line in json.loads((cell.out / "lines.json").read_text())
            if line["metric"] == "asr"
        }
        lines += [
            {"method": "undefended success", "attack": name, "budget": 0.0, "share": share} for name, share in success.items()
        ]
        lines += [
            {"method": "rows", "attack": name, "budget": 0.0, "share": int((attack == name).sum())}
            for name in sorted(set(attack))
        ]
        done.write_text(json.dumps([{"seed": cell.seed, **line} for line in lines]))
    found: list[dict[str, Any]] = json.loads(done.read_text())
    return found


def retrained(setting: Setting, out: Path, seed: int, share: float) -> list[dict[str, Any]]:
    """Train a plain model on the rows that are safe by repeats, pair copies and accord; return what it and the other answer."""
    cell, before = Cell(setting, out, seed, f"safe rows, {share:g}"), out / f"seed-{seed}" / "none"
    done = cell.out / "lines.json"
    if not done.exists():
        rows = cell.rows.join(open_round(before / "signals").to_pandas(["shard", "key", "label", "signals"]))
        signals = pd.json_normalize(list(rows["signals"]))
        safe = (signals["image_cluster_size"] <= MOST_REPEATS) & (signals["pair_copies"] <= MOST_COPIES)
        safe &= signals["accord"] > signals["accord"].quantile(share)
        lines = filtered(cell, safe.to_numpy())
        lines += Judge(cell.held_out, cell.truth, list(setting.attacks), seed)(cell.weights)
        done.write_text(json.dumps([{"seed": seed, "arm": "safe rows", **line} for line in lines]))
    found = [line for path in (before / "lines.json", done) for line in json.loads(path.read_text())]
    return [line for line in found if line["metric"] in ("asr", "top-5", "linear probe", "R@5", "clean kept")]


def table(lines: pd.DataFrame, budget: float) -> str:
    """Return a Markdown table of one budget: methods by attacks, mean over seeds, %; what reaches 95 is bold."""
    names = sorted(set(lines.loc[lines["budget"] == budget, "attack"]))
    wide = lines[lines["budget"] == budget].pivot_table(index="method", columns="attack", values="share", sort=False)
    text = [f"| recall at {budget:.0%} | " + " | ".join(names) + " | attacks at 95 % |", "|---" * (len(names) + 2) + "|"]
    for method, row in wide.iterrows():
        cells = [f"**{100 * row[name]:.0f}**" if row[name] >= 0.95 else f"{100 * row[name]:.0f}" for name in names]
        text.append(f"| {method} | " + " | ".join(cells) + f" | {int((row >= 0.95).sum())} |")
    return "\n".join(text)


def main() -> None:
    """Run all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", choices=("bundled", "emoji", "full", "photos"), default="bundled")
    parser.add_argument("--reword", action="store_true", help="an attacker who words every caption anew")
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--passes", type=int, default=24)
    parser.add_argument("--retrain", action="store_true", help="also train on what is safe, 5 minutes a seed")
    parser.add_argument("--discord-share", type=float, default=0.07, help="of all rows, not safe in --retrain")
    args = parser.parse_args()
    header("evidence.signals_recall")
    num_rows = len(load_rows([str(datasets(args.data)[0])]))
    setting = Setting(data=args.data, attacks=attacks(args.rate, num_rows), passes=args.passes, train=dict(TRAIN))
    setting = dataclasses.replace(setting, reword=args.reword)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "setting.json").write_text(json.dumps(dataclasses.asdict(setting), indent=1))
    found = [line for seed in args.seeds for line in judged(Cell(setting, args.out, seed, "none"))]
    lines = pd.DataFrame(found)
    lines.to_parquet(args.out / "recall.parquet")
    facts = lines[lines["budget"] == 0].pivot_table(index="method", columns="attack", values="share")
    text = [f"{len(args.seeds)} seeds, {json.dumps(dataclasses.asdict(setting)['attacks'])}", ""]
    text += [
        f"{kind}: " + ", ".join(f"{name or 'clean'} {value:.2f}" for name, value in row.dropna().items())
        for kind, row in facts.iterrows()
    ]
    text += ["", *(f"{table(lines, budget)}\n" for budget in BUDGETS)]
    (args.out / "recall.md").write_text("\n".join(text))
    print("\n".join(text))
    if args.retrain:
        after = pd.DataFrame([line for seed in args.seeds for line in retrained(setting, args.out, seed, args.discord_share)])
        after["of"] = after["attack"].where(after["attack"] != "", after["metric"])
        wide = after.pivot_table(index="of", columns=["arm", "seed"], values="share").round(3)
        (args.out / "retrained.md").write_text(wide.to_string())
        print(wide.to_string())


if __name__ == "__main__":
    main()

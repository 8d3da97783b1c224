"""Targeted poisoning of the bundled pairs: does it work undefended, what leaks into safe per round, what is left of it?

    python -m benchmarks.studies.tdpa OUT --arm plain --passes 24
    python -m benchmarks.studies.tdpa OUT --arm ours [pairsan run's options ...]

A target is a held-out drawing (a vendor that is not in training), planted `--rows` times unchanged with real captions of
another emoji. Success: the trained model's zero-shot answer for the drawing, among all labels, is the attacker's.
OUT/truth.json is read by this script alone.
"""

import argparse
import io
import json
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.common import ROOT, header
from manifests import Label, open_round
from manifests.store import open_store
from pipeline.config.load import load_config
from pipeline.training.schedule import learning_rate, passes_of
from stages.read.shards import open_dataset
from stages.score.decode import Decode
from stages.score.models.encoders import OpenClipEncoder, preprocess_config
from stages.score.models.weights import Weights, file_sha256
from stages.settings import ReadSettings
from stages.train.batches import PassRows, pass_batches
from stages.train.learner import ClipLearner, new_model
from stages.train.sharing import plan_steps

EMOJI = ROOT / "examples" / "emoji"
MODEL = EMOJI / "demo-model"


def rows_of(part: str) -> list[dict[str, Any]]:
    """Return the bundled pairs of a part as {key, image name and bytes, caption, label}."""
    rows = []
    for shard in sorted((EMOJI / part).glob("*.tar.gz")):
        with tarfile.open(shard) as tar:
            members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
        for (name, image), (_, caption), (_, facts) in zip(members[::3], members[1::3], members[2::3], strict=True):
            key, _, suffix = name.partition(".")
            label = json.loads(facts)["label"]
            rows.append({"key": key, "suffix": suffix, "image": image, "caption": caption.decode(), "label": label})
    return rows


def poison(out: Path, num_targets: int, num_rows: int, seed: int) -> dict[str, Any]:
    """Write poisoned shards and the truth, once, and return the truth."""
    truth_path = out / "truth.json"
    if truth_path.exists():
        found: dict[str, Any] = json.loads(truth_path.read_text())
        return found
    rng = random.Random(seed)
    clean, held_out = rows_of("train"), rows_of("eval")
    by_label: dict[str, list[str]] = {}
    for row in clean:
        by_label.setdefault(row["label"], []).append(row["caption"])
    rich = sorted(label for label, captions in by_label.items() if len(captions) >= 3)
    targets, planted = rng.sample([row for row in held_out if row["label"] in by_label], num_targets), []
    truth: dict[str, Any] = {"targets": [], "planted": [], "labels": sorted(by_label)}
    for number, target in enumerate(targets):
        wanted = rng.choice([label for label in rich if label != target["label"]])
        truth["targets"].append({"key": target["key"], "label": target["label"], "wanted": wanted})
        for i in range(num_rows):
            planted.append(
                {**target, "key": f"planted_{number:03d}_{i:02d}", "caption": by_label[wanted][i % len(by_label[wanted])]}
            )
    truth["planted"] = [row["key"] for row in planted]
    rows = clean + planted
    rng.shuffle(rows)
    (out / "shards").mkdir(parents=True, exist_ok=True)
    for start in range(0, len(rows), 512):
        with tarfile.open(out / "shards" / f"{start // 512:05d}.tar", "w") as tar:
            for row in rows[start : start + 512]:
                for suffix, data in ((row["suffix"], row["image"]), ("txt", row["caption"].encode())):
                    info = tarfile.TarInfo(f"{row['key']}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    truth_path.write_text(json.dumps(truth))
    return truth


def judge(checkpoint: Path, truth: dict[str, Any]) -> str:
    """Return targeted success and zero-shot accuracy of a checkpoint on the held-out vendor."""
    weights = Weights(f"local-dir:{MODEL}", str(checkpoint), None, file_sha256(checkpoint))
    encoder = OpenClipEncoder(weights, batch_size=256)
    dataset = open_dataset([str(EMOJI / "eval")])
    decode = Decode(dataset.store, ReadSettings(), preprocess_config(new_model(f"local-dir:{MODEL}", 0)), num_threads=2)
    decode.open()
    chunks = [chunk for shard in dataset.shards for chunk in decode.run(shard)]
    images = encoder.encode_images(np.concatenate([chunk.pixels for chunk in chunks]))
    keys = [pair.key for chunk in chunks for pair in chunk.pairs]
    texts = encoder.encode_captions([f"a picture of {label}" for label in truth["labels"]])
    ranked = np.argsort(-(images @ texts.T), axis=1)[:, :5]
    answers = dict(zip(keys, ranked, strict=True))
    place = {label: i for i, label in enumerate(truth["labels"])}
    hits = sum(int(answers[t["key"]][0] == place[t["wanted"]]) for t in truth["targets"])
    label_of = {row["key"]: row["label"] for row in rows_of("eval")}
    poisoned = {t["key"] for t in truth["targets"]}
    known = [key for key in keys if label_of[key] in place and key not in poisoned]
    top1 = np.mean([answers[key][0] == place[label_of[key]] for key in known])
    top5 = np.mean([place[label_of[key]] in answers[key] for key in known])
    success = hits / len(truth["targets"])
    return f"targeted success {hits}/{len(truth['targets'])} = {success:.0%}, zero-shot top-1 {top1:.1%}, top-5 {top5:.1%}"


def plain(out: Path, truth: dict[str, Any], passes: int, seed: int, flags: dict[str, float]) -> None:
    """Train plain CLIP on everything, with the same model, augmentation, batch size, schedule and learning rate."""
    options = load_config(str(EMOJI / "demo.toml"), flags, command="run").train.model_copy(
        update={"warmup_passes": passes, "matching_passes": 0, "rounds": 0, "train_seed": seed}
    )
    architecture = f"local-dir:{MODEL}"
    learner = ClipLearner(new_model(architecture, seed), open_clip.get_tokenizer(architecture), options)
    dataset = open_dataset([str(out / "shards")])
    decode = Decode(dataset.store, ReadSettings(), preprocess_config(learner.model), num_threads=2)
    decode.open()
    store, size = open_store(out), options.train_batch_size
    labels = plan_steps([{Label.SAFE: 5217 + len(truth["planted"])}], size, "sequential", seed)
    for this in passes_of(options):
        rows = PassRows(None, dataset.shards, labels, size, seed * 1009 + this.index, options.shuffle_rows)
        learner.losses = {}
        learner.learn(pass_batches(rows, decode), learning_rate(options, this, len(labels), learner.step))
        if (this.index + 1) % 6 == 0 or this.index + 1 == passes:
            learner.save_model(store, "plain.safetensors")
            total, num = learner.losses[Label.SAFE]
            print(f"pass {this.index + 1}: loss {total / num:.3f}; {judge(out / 'plain.safetensors', truth)}", flush=True)


def ours(out: Path, name: str, truth: dict[str, Any], options: list[str]) -> None:
    """Run SAFECLIP and print what leaked into safe in each round, and what each round's model does."""
    run = out / name
    pairsan = Path(sys.executable).parent / "pairsan"
    config = ["--config", EMOJI / "demo.toml", "--executor", "local"]
    subprocess.run([str(p) for p in (pairsan, "run", out / "shards", "--out", run, *config, *options)], check=True)
    planted = set(truth["planted"])
    for path in sorted((run / "rounds").iterdir()):
        manifest = open_round(run, int(path.name))
        rows = manifest.to_pandas(["key", "label", "cosine"])
        safe = rows[rows.label == "safe"]
        leaked = int(safe.key.isin(planted).sum())
        auroc = roc_auc_score(rows.key.isin(planted), -rows.cosine.fillna(-1.0))
        judged = judge(run / f"checkpoints/round-{manifest.number:04d}.safetensors", truth)
        share = manifest.seal["safe_share"]
        print(
            f"round {manifest.number}: {share:.1%} safe ({manifest.seal['rule']}), {leaked} of {len(planted)} planted, "
            f"AUROC of -cosine {auroc:.2f}; {judged}",
            flush=True,
        )


def main() -> None:
    """Plant, train one arm, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arm", choices=["plain", "ours"], required=True)
    parser.add_argument("--name", default="run", help="folder of the run inside OUT")
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--passes", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least-crop", type=float)
    parser.add_argument("--learning-rate", type=float)
    args, rest = parser.parse_known_args()
    shared = {key: value for key in ("least_crop", "learning_rate") if (value := getattr(args, key)) is not None}
    header("studies.tdpa")
    torch.manual_seed(args.seed)
    start = time.monotonic()
    truth = poison(args.out, args.targets, args.rows, args.seed)
    if args.arm == "plain":
        plain(args.out, truth, args.passes, args.seed, shared)
    else:
        ours(args.out, args.name, truth, [*(f"--set={key}={value}" for key, value in shared.items()), *rest])
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()

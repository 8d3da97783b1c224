"""The surface of the command line, frozen; and that README and docs say what it is."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result
from conftest import ROOT

from manifests import errors, schema
from manifests.schema import MANIFEST, MEANINGS, Reason
from pipeline.cli.main import main

Pairsan = Callable[..., Result]

DATA = "--image-column --caption-column --key-column --separator --image-root --max-image-bytes --max-image-pixels"
DATA += " --max-caption-bytes"
MODEL = "--checkpoint --model --pretrained --precision --device"
EMBED = "--canaries --batch-size --keep-embeddings --keep-captions"
SPLIT = "--max-canary-leak --alpha --max-p-mismatch --null-strata --max-caption-copies --max-pair-copies "
SPLIT += "--rule --threshold --keep-share --min-cosine --growth --cap --if-unseparable --fallback-share --min-separation"
SPLIT += " --max-image-repeats --max-near-copies --crowded-share --crowded-tail --outlier-share --discord-share"
SPLIT += " --min-safe-share --max-safe-share --max-quarantined-share --seed"
SIGNALS = (
    "--signals --neighbours --reference-rows --agreement-rows --agreement-neighbours --near-copy-cosine --copy-cell-rows "
    "--common-captions "
    "--caption-shingles --reference-encoder --reference-checkpoint --reference-image-size --signals-seed --signals-memory-mb"
)
EXECUTOR = "--executor --ray-address --workers --threads-per-worker --decode --max-retries"
TRAIN = "--preset --rounds --warmup-passes --scorer --scorer-folds --refit-passes --first-matching --matching-passes --order"
TRAIN += " --learning-rate --slow-learning-rate --locked-learning-rate --weight-decay --train-batch-size --train-workers"
TRAIN += " --local-loss --train-precision --lr-warmup-share --pool-size --faiss-from --clip-weight --unimodal-weight"
TRAIN += " --least-crop --colour-strength --warmup-views --warmup-least-crop --p-caption-change --shuffle-rows"
TRAIN += " --save-every-steps --train-seed --scout-passes --scout-crowded-tail --scout-image-repeats --risky"
TRAIN += " --scout-near-copy-cosine --scout-near-copies --scout-discord-share"
SURFACE = {
    "clean": f"data --out --json --config {DATA} {MODEL} {EMBED} {SIGNALS} {SPLIT} {EXECUTOR}",
    "embed": f"data --out --json --config {DATA} {MODEL} {EMBED} {EXECUTOR}",
    "repeats": f"data --out --more-than --captions-more-than --json --config {DATA} {EXECUTOR}",
    "split": f"run --scores-round --json --config {SIGNALS} {SPLIT} {EXECUTOR}",
    "rescore": f"run --json --config {MODEL} {EMBED} {SIGNALS} {SPLIT} {EXECUTOR}",
    "run": f"data --out --until-round --json --config {DATA} {MODEL} {EMBED} {SIGNALS} {SPLIT} {EXECUTOR} {TRAIN}",
    "warmup": f"data --out --json --config {DATA} {MODEL} {EMBED} {SIGNALS} {SPLIT} {EXECUTOR} {TRAIN}",
    "train": f"run --round --json --config {EXECUTOR} {TRAIN}",
    "watch": f"run --checkpoints --every --settle --once --keep-last --on-sealed --break-lock --config {SIGNALS} {SPLIT} "
    + EXECUTOR,
    "status": "run --json --prometheus",
    "verify": "run --round --json",
    "inspect": "run --round --label --reason --cosine --p-safe --caption --shard --key"
    " --sort --limit --columns --format --output",
    "report": "run --round --out --pairs --no-images --json",
    "diff": "run --from --to --other --flipped --json",
    "review": "run --round --port --who",
    "reviews": "",
    "export": "run --round --out --format --label --reason --rows-per-file --inject --weights --multiplicities --json --config "
    + EXECUTOR,
    "tune": "run --round --leak --json",
    "open": "run --round --json",
    "completion": "shell",
    "schema": "--json",
}
REVIEWS = {"list": "run --all --json", "export": "run file", "import": "run file --who", "revoke": "run --uid --who --verdict"}


def test_the_surface_is_as_frozen_here() -> None:
    found = {
        name: " ".join(param.opts[0] for param in command.params)
        for name, command in main.commands.items()
        if isinstance(command, click.Command)
    }
    assert {name: set(words.split()) for name, words in found.items()} == {
        name: set(words.split()) for name, words in SURFACE.items()
    }


def test_the_surface_of_reviews_is_as_frozen_here() -> None:
    group = main.commands["reviews"]
    assert isinstance(group, click.Group)
    found = {name: {param.opts[0] for param in command.params} for name, command in group.commands.items()}
    assert found == {name: set(words.split()) for name, words in REVIEWS.items()}


@pytest.mark.parametrize("name", SURFACE)
def test_every_command_has_help_and_stands_in_the_readme(name: str, pairsan: Pairsan) -> None:
    output = pairsan(name, "--help").output
    command = main.commands[name]
    assert command.help
    assert command.help.split()[0] in output
    assert all(param.help for param in command.params if isinstance(param, click.Option))
    assert re.search(rf"\| `pairsan {name}\b", (ROOT / "README.md").read_text())


def test_flags_named_in_the_docs_exist() -> None:
    known = {opt for words in [*SURFACE.values(), *REVIEWS.values()] for opt in words.split()} | {
        "--verbose",
        "--help",
        "--benchmark",
        "--version",
    }
    known |= {"--no-keep-captions", "--no-common-captions", "--vs", "--no-index"}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = re.sub(r"(?m)^.*(python -m|python examples|docker build|pip ).*$", "", page.read_text())
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known, page.name


def test_the_manifest_page_lists_every_column_and_reason() -> None:
    page = (ROOT / "docs" / "manifest-format.md").read_text()
    for name in MANIFEST.names:
        assert f"| `{name}` |" in page
    for field in schema.SIGNALS:
        assert f"| `{field.name}` |" in page
    for reason in Reason:
        assert f"`{reason}`" in page


def test_exit_codes_are_documented(pairsan: Pairsan) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    codes = {c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.PairsanError)}
    assert codes == {1, 2, 3, 4, 5, 6, 7, 8}
    assert all(f"| {code} |" in page for code in codes | {0, 130})
    assert "7 the split is not believed" in pairsan("--help").output.replace("\n", " ").replace("  ", " ")


def test_the_schema_command_prints_columns_meanings_and_reasons(pairsan: Pairsan) -> None:
    output = pairsan("schema").output
    assert all(name in output for name in MANIFEST.names)
    assert all(meaning in output for meaning in MEANINGS.values())
    assert all(reason in output for reason in Reason)
    assert '"schema_version": 4' in pairsan("schema", "--json").output
    told = pairsan("schema").output
    assert all(f"  {field.name} " in told for field in schema.SIGNALS)


def test_version_and_changelog_agree(pairsan: Pairsan) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version in pairsan("--version").output
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_mistakes_end_with_a_message_not_a_trace(pairsan: Pairsan, tmp_path: Path, tiny: str) -> None:
    out = tmp_path / "run"
    assert "does not exist" in pairsan("clean", tmp_path / "none", "--checkpoint", tiny, "--out", out, code=3).stderr
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "0.tar").write_bytes(bytes(1024))
    args = ("--out", out, "--executor", "local")
    assert "which architecture" in pairsan("clean", tmp_path / "d", *args, code=4).stderr
    options = ("--checkpoint", tiny, *args)
    assert (
        "exclude each other"
        in pairsan("clean", tmp_path / "d", *options, "--keep-share", 0.5, "--min-cosine", 0.1, code=2).stderr
    )
    assert "--device cuda: no GPU" in pairsan("clean", tmp_path / "d", *options, "--device", "cuda", code=2).stderr
    assert "needs a GPU" in pairsan("clean", tmp_path / "d", *options, "--precision", "fp16", code=2).stderr
    assert "needs --executor ray" in pairsan("clean", tmp_path / "d", *options, "--decode", "cluster", code=2).stderr
    assert "is no run folder" in pairsan("status", tmp_path, code=5).stderr
    assert "is no run folder" in pairsan("split", tmp_path, code=5).stderr
    assert "no sealed round" in pairsan("verify", tmp_path, code=5).stderr
    assert "no sealed round" in pairsan("inspect", tmp_path, code=5).stderr
    assert "No such option" in pairsan("clean", "--nope", code=2).stderr


def test_an_empty_tar_has_no_rows_and_says_so(pairsan: Pairsan, tmp_path: Path, tiny: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "0.tar").write_bytes(bytes(10240))
    result = pairsan("clean", tmp_path / "d", "--checkpoint", tiny, "--out", tmp_path / "run", "--executor", "local", code=3)
    assert "has no rows" in result.stderr

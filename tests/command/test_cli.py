"""The surface of the command line, frozen; and that README and docs say what it is."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result
from conftest import ROOT

from manifests import errors
from manifests.labels import Reason
from manifests.schema import MANIFEST, MEANINGS
from manifests.signals import SIGNALS
from pipeline.cli.main import main
from pipeline.config.catalogue import CATALOGUE, COMMANDS, TABLES

Pairsan = Callable[..., Result]

# every flag of a setting, by its table of the settings file
FLAGS = {
    "data": "--image-column --caption-column --caption --key-column --separator --encoding --image-root --allow-ambiguous"
    " --allow-outside --keep-column --deny --skip-unreadable",
    "model": "--checkpoint --model --pretrained --tokenizer --allow-hub --precision --device",
    "embed": "--batch-size --keep-embeddings --keep-captions --canaries",
    "signals": "--signals --caption-shingles --index --index-key --index-score --index-embeddings --signals-memory-mb",
    "signals.near": "--neighbours --reference-rows --agreement-rows --common-captions --near-copy-cosine",
    "signals.reference": "--reference-encoder --reference-checkpoint",
    "split": "--rule --keep-share --min-cosine --sit-out-folds",
    "split.calibrated": "--alpha --max-p-mismatch --null-strata",
    "split.mixture": "--threshold --min-separation",
    "split.limits": "--max-image-repeats --max-look-alikes --max-near-copies --max-pair-copies --max-caption-copies"
    " --keep-one --crowded-share --crowded-tail --outlier-share --discord-share --look-tail --replaced-tail",
    "split.belief": "--max-canary-leak --if-unseparable --fallback-share --max-quarantined-share --max-unread-share",
    "growth": "--growth --cap",
    "executor": "--executor --ray-address --workers --threads-per-worker --decode",
    "train": "--rounds --log-to --warmup-passes --scorer --look-again --overlap --risky --first-matching --matching-passes"
    " --learning-rate --train-batch-size"
    " --train-workers --train-precision --warmup-views --train-seed",
    "scout": "--scout-passes --scout-model",
}
SURFACE = {
    "clean": "data --out --restart --drop-missing --json",
    "plan": "data --json",
    "repeats": "data --out --more-than --captions-more-than --json",
    "embed": "data --out --restart --drop-missing --json",
    "add": "run data --name --json",
    "split": "run --scores-round --json",
    "rescore": "run --trained-on --json",
    "watch": "run --checkpoints --every --settle --once --keep-last --on-sealed",
    "config": "--profile --for --markdown",
    "inspect": "run --round --label --reason --cosine --p-safe --caption --shard --key --sort --limit --columns --format"
    " --output",
    "report": "run --round --out --pairs --no-images --json",
    "review": "run --round --port --who --open --read-only --sample --checkpoint",
    "reviews": "",
    "export": "run --round --out --format --label --reason --rows-per-file --inject --weights --multiplicities --json",
    "diff": "run --from --to --other --flipped --changed --json",
    "status": "run --json --prometheus",
    "verify": "run --round --data --key --json",
    "sign": "run --round --key",
    "tune": "run --round --leak --json",
    "open": "run --round --json",
    "schema": "--json",
    "completion": "shell",
    "run": "data --out --until-round --json",
    "train": "run --round --json",
    "warmup": "",
}
REVIEWS = {"list": "run --all --json", "export": "run file", "import": "run file --who", "revoke": "run --uid --who --verdict"}
COMMON = {"--config", "--set", "--help-all"}


def expected(name: str) -> set[str]:
    tables = COMMANDS.get(name, ())
    more = COMMON if tables else set()
    more = more | {"--profile"} if any(table.startswith("split") for table in tables) else more
    return {*SURFACE[name].split(), *more, *(flag for table in tables for flag in FLAGS[table].split())} - (
        {"--help-all"} if name == "export" and not tables else set()
    )


def test_the_surface_is_as_frozen_here() -> None:
    assert {name: {param.opts[0] for param in command.params} for name, command in main.commands.items()} == {
        name: expected(name) for name in SURFACE
    }
    assert set(FLAGS) == set(TABLES)


def test_the_surface_of_reviews_is_as_frozen_here() -> None:
    group = main.commands["reviews"]
    assert isinstance(group, click.Group)
    found = {name: {param.opts[0] for param in command.params} for name, command in group.commands.items()}
    assert found == {name: set(words.split()) for name, words in REVIEWS.items()}


@pytest.mark.parametrize("name", [name for name in SURFACE if name != "warmup"])
def test_every_command_has_help_and_stands_in_the_docs(name: str, pairsan: Pairsan) -> None:
    output = pairsan(name, "--help").output
    command = main.commands[name]
    assert command.help
    assert command.help.split()[0] in output
    assert all(param.help for param in command.params if isinstance(param, click.Option))
    assert re.search(rf"\| `pairsan {name}\b", (ROOT / "docs" / "commands.md").read_text())


def test_the_help_of_clean_fits_a_screen_and_begins_with_what_is_required(pairsan: Pairsan) -> None:
    lines = pairsan("clean", "--help").output.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    assert [line.rstrip(":") for line in lines if line.endswith(":") and not line.startswith(" ")] == [
        *("Data", "Weights", "What is safe", "Look closer", "Where it runs", "Other", "Help", "Example"),
    ]
    assert lines[lines.index("Data:") + 1].split()[:2] == ["--out", "RUN"]
    whole = pairsan("clean", "--help-all").output
    for table in COMMANDS["clean"]:
        assert f"\n[{table}]" in whole
        assert all(flag in whole for flag in FLAGS[table].split())
    assert all(entry.name in whole for entry in CATALOGUE.values() if entry.toml and entry.table in COMMANDS["clean"])


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("clean", "x", "--out", "r", "--copy-cell-rows", "9"), "--copy-cell-rows is no flag: --set copy_cell_rows=VALUE"),
        (("clean", "x", "--out", "r", "--growth", "0.1"), "--growth has no effect here; it belongs to rescore, watch, run"),
        (("run", "x", "--out", "r", "--preset", "demo"), "--preset is now profile (--profile NAME"),
        (("clean", "x", "--out", "r", "--alhpa", "0.1"), "No such option '--alhpa'"),
        (("warmup", "x", "--out", "r", "--anything"), "`warmup` is now `pairsan run DATA --out RUN --until-round 0`"),
        (("clean", "x", "--out", "r", "--keep-share", "0.5", "--alpha", "0.1"), "alpha = 0.1 has no effect"),
    ],
)
def test_old_and_wrong_spellings_are_told_the_new_ones(args: tuple[str, ...], told: str, pairsan: Pairsan) -> None:
    assert told in " ".join(pairsan(*args, code=2).stderr.split())


def test_the_settings_file_of_a_profile_is_taken_as_it_is_printed(pairsan: Pairsan, tmp_path: Path) -> None:
    text = pairsan("config", "--profile", "standard", "--for", "clean").output
    assert 'profile = "standard"' in text
    assert "max_pair_copies = 4\n" in text
    assert "[train]" not in text
    assert "# alpha = 0.01\n" in text
    (tmp_path / "p.toml").write_text(text)
    refused = pairsan("clean", tmp_path / "none", "--out", tmp_path / "r", "--config", tmp_path / "p.toml", code=3)
    assert "does not exist" in refused.stderr


def test_flags_named_in_the_docs_exist() -> None:
    known = {flag for words in [*FLAGS.values(), *SURFACE.values(), *REVIEWS.values()] for flag in words.split()}
    known |= {*COMMON, "--profile", "--verbose", "--help", "--version", "--no-keep-captions", "--no-common-captions"}
    known |= {
        "--benchmark",
        "--vs",
        "--no-index",
        "--compute",
        "--strict",
        "--arm",
        "--reword",
        "--exchange",
        "--seeds",
        "--attack",
    }
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        if page.name == "walk.md":
            continue  # written by a script that runs every command in it
        text = re.sub(r"`[^`]*python -m[^`]*`", "", page.read_text())  # flags of benchmarks
        text = re.sub(r"(?m)^.*(python -m|python examples|docker build|pip |mkdocs|#SBATCH|srun ).*$", "", text)
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known, page.name


def test_the_manifest_page_lists_every_column_and_reason() -> None:
    page = (ROOT / "docs" / "manifest-format.md").read_text()
    for name in MANIFEST.names:
        assert f"\n- `{name}`" in page
    for field in SIGNALS:
        assert f"\n- `{field.name}`" in page
    for reason in Reason:
        assert f"`{reason}`" in page


def test_exit_codes_are_documented(pairsan: Pairsan) -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    codes = {c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.PairsanError)}
    assert codes == {1, 2, 3, 4, 5, 6, 7, 8, 9}
    assert all(f"| {code} |" in page for code in codes | {0, 130})
    assert "7 the split is not believed" in pairsan("--help").output.replace("\n", " ").replace("  ", " ")


def test_the_schema_command_prints_columns_meanings_and_reasons(pairsan: Pairsan) -> None:
    output = pairsan("schema").output
    assert all(name in output for name in MANIFEST.names)
    assert all(meaning in output for meaning in MEANINGS.values())
    assert all(reason in output for reason in Reason)
    assert '"schema_version": 10' in pairsan("schema", "--json").output
    told = pairsan("schema").output
    assert all(f"  {field.name} " in told for field in SIGNALS)


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
    assert "is no run folder" in pairsan("verify", tmp_path, code=5).stderr
    assert "is no run folder" in pairsan("inspect", tmp_path, code=5).stderr
    assert "No such option" in pairsan("clean", "--nope", code=2).stderr


def test_an_empty_tar_has_no_rows_and_says_so(pairsan: Pairsan, tmp_path: Path, tiny: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "0.tar").write_bytes(bytes(10240))
    result = pairsan("clean", tmp_path / "d", "--checkpoint", tiny, "--out", tmp_path / "run", "--executor", "local", code=3)
    assert "has no rows" in result.stderr

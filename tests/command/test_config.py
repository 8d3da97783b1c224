"""Settings: where they come from, what is refused, and that each of them does something or is refused."""

import contextlib
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, histogram_of, two_groups

from manifests.errors import ConfigError, SplitRefused
from pipeline.config import provenance
from pipeline.config.catalogue import CATALOGUE, COMMANDS, SECTIONS, TABLES, RunConfig, values_of
from pipeline.config.document import as_markdown, as_toml
from pipeline.config.load import load_config, of_another_version, profiled
from pipeline.config.profiles import PROFILES
from pipeline.config.scout import scouted
from pipeline.training.schedule import learning_rate, passes_of
from stages.label.decide import decide
from stages.label.fit.judged import Judged
from stages.label.settings import SplitSettings


def toml(tmp_path: Path, text: str) -> str:
    (tmp_path / "c.toml").write_text(text)
    return str(tmp_path / "c.toml")


def test_defaults_then_profile_then_file_then_flags(tmp_path: Path) -> None:
    path = toml(tmp_path, 'profile = "quick"\n[split.calibrated]\nalpha = 0.05\n[embed]\nbatch_size = 8\n')
    config = load_config(path, {"batch_size": 16, "workers": None})
    assert (config.split.alpha, config.embed.batch_size, config.executor.workers) == (0.05, 16, None)
    assert (config.profile, config.split.max_image_repeats) == ("quick", 2)
    assert load_config(path, {"max_image_repeats": 9}).split.max_image_repeats == 9
    assert load_config(path, {"profile": "standard"}).split.max_caption_copies == 50
    assert load_config(None, {}) == RunConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[split]\nruel = 'calibrated'", r"\[split\] has no setting 'ruel' \(= 'calibrated'\); did you mean 'rule'\?"),
        ("[spilt]\nrule = 'published'", r"unknown table \[spilt\]; did you mean 'split'\?"),
        ("[split.calibrated]\nalpha = 1.5", r"\[split.calibrated\] alpha = 1.5: input should be less than 1"),
        ("[split]\nrule = 'magic'", r"\[split\] rule = 'magic': input should be 'calibrated'"),
        ("[embed]\nbatch_size = 'many'", r"\[embed\] batch_size = 'many'"),
        ("[split]\nalpha = 0.1", r"alpha stands in \[split.calibrated\], not in \[split\]"),
        ("[train]\nscout_passes = 3", r"scout_passes stands in \[scout\], not in \[train\]"),
        ("[train]\npreset = 'demo'", r"preset is now profile \(--profile NAME"),
        ("split = 3", "the head of the file knows only profile"),
        ("profile = 'qiuck'", "no profile 'qiuck'; did you mean 'quick'"),
        ("[split\n", "is not TOML"),
    ],
)
def test_bad_settings_name_key_value_and_range(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(toml(tmp_path, text), {})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"keep_share": 0.3, "min_cosine": 0.2}, "exclude each other"),
        ({"rule": "keep-share"}, "needs keep_share"),
        ({"rule": "min-cosine"}, "needs min_cosine"),
        ({"if_unseparable": "quantile"}, "needs fallback_share"),
        ({"rule": "monotone", "min_safe_share": 0.5, "max_safe_share": 0.4}, "is above max_safe_share"),
        ({"threshold": 0.1}, r"threshold = 0.1 has no effect: it acts with rule monotone or rule published"),
        (
            {"keep_share": 0.3, "alpha": 0.1},
            "alpha = 0.1 has no effect: it acts with rule calibrated / judged / look-again; here rule = 'keep-share'",
        ),
        ({"profile": "thorough"}, "profile 'thorough' needs --reference-encoder"),
        ({"more": ("signals_sede=1",)}, r"--set signals_sede=1: write NAME=VALUE; did you mean 'signals_seed'"),
    ],
)
def test_settings_that_contradict_each_other_or_do_nothing(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, flags)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match="cannot read the config nowhere.toml"):
        load_config("nowhere.toml", {})


def test_a_name_that_no_setting_has_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no setting is called 'keepshare'; did you mean 'keep_share'"):
        load_config(None, {"keepshare": 0.3})


def test_a_share_or_cosine_sets_its_rule() -> None:
    assert load_config(None, {"keep_share": 0.3}).split.rule == "keep-share"
    assert load_config(None, {"min_cosine": 0.0}).split.rule == "min-cosine"
    assert load_config(None, {"keep_share": 0.3, "rule": "published"}).split.rule == "published"


def test_any_setting_can_be_said_by_its_name() -> None:
    config = load_config(None, {"more": ("order=sequential", "shuffle_rows=7", "signals=all", "signals_seed=3")}, command="run")
    assert (config.train.order, config.train.shuffle_rows, config.signals.signals_seed) == ("sequential", 7, 3)


def test_names_are_unique_and_every_one_is_described() -> None:
    assert len(CATALOGUE) == sum(len(settings.model_fields) for settings in SECTIONS.values())
    assert all(entry.field.description for entry in CATALOGUE.values())
    assert set(TABLES) == {table for tables in COMMANDS.values() for table in tables}


class Spy:
    """Stands for the settings of a split and notes which of them are read."""

    def __init__(self, settings: SplitSettings) -> None:
        self.read: set[str] = set()
        self._settings = settings

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self._settings, name)


VALUES: dict[str, Any] = {
    **{"alpha": 0.2, "max_p_mismatch": 0.9, "null_strata": "script", "threshold": 0.6, "min_separation": 0.5, "seed": 3},
    **{"keep_share": 0.4, "min_cosine": 0.2, "if_unseparable": "quantile", "fallback_share": 0.3, "min_safe_share": 0.02},
    **{"max_safe_share": 0.97},
}
RULES: dict[str, dict[str, Any]] = {
    "calibrated": {},
    "judged": {"rule": "judged"},
    "monotone": {"rule": "monotone"},
    "published": {"rule": "published"},
    "keep-share": {"keep_share": 0.5},
    "min-cosine": {"min_cosine": 0.3},
}


def settings_read(given: dict[str, Any]) -> set[str]:
    return _settings_read(tuple(sorted(given.items())))


@functools.cache
def _settings_read(given: tuple[tuple[str, Any], ...]) -> set[str]:
    """Which settings of the split are read for data that separate, and for data that do not."""
    read: set[str] = set()
    foreign = np.random.default_rng(1).normal(0.06, 0.04, 4000)
    for cosines in (two_groups(0.2, 4000)[0], np.full(4000, 0.25), np.linspace(0.2, 0.3, 4000), foreign):
        nulls = histogram_of(foreign)
        strata = {0: (histogram_of(cosines), nulls)}
        spy = Spy(load_config(None, dict(given)).split)
        judged = Judged(1, cosines[:100].astype(np.float64), cosines[:100] < 0.15, np.ones(100))
        with contextlib.suppress(SplitRefused):
            decide(histogram_of(cosines), spy, nulls=nulls, strata=strata, judged=judged)  # type: ignore[arg-type]
        read |= spy.read
    return read


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", VALUES)
def test_a_setting_of_the_split_acts_under_a_rule_or_is_refused(rule: str, name: str) -> None:
    given = {**RULES[rule], name: VALUES[name]}
    if name == "if_unseparable":
        given["fallback_share"] = 0.3
    if name == "fallback_share":
        given["if_unseparable"] = "quantile"
    try:
        config = load_config(None, given)
    except ConfigError as error:
        assert "no effect" in str(error) or "exclude each other" in str(error) or "gives rule 'calibrated' more" in str(error)
        assert name not in settings_read(RULES[rule]) or name in (
            "keep_share",
            "min_cosine",
            "fallback_share",
            "if_unseparable",
        )
        return
    assert getattr(config.split, name) == VALUES[name]
    assert name in settings_read(given) or name in ("keep_share", "min_cosine")  # these set the rule itself


TRAINING: dict[str, Any] = {
    **{"scout_passes": 3, "scout_crowded_tail": 0.1, "scout_image_repeats": 5, "scout_near_copy_cosine": 0.9},
    **{"scout_near_copies": 9, "scout_discord_share": 0.2, "scorer_folds": 2, "refit_passes": 2, "first_matching": "locked"},
    **{"matching_passes": 2, "slow_learning_rate": 1e-4, "locked_learning_rate": 1e-2, "warmup_views": "published"},
    **{"warmup_least_crop": 0.3, "growth": 0.2, "cap": 0.5, "warmup_passes": 7, "local_loss": True},
}
SCORERS: dict[str, dict[str, Any]] = {"scout": {}, "locked": {"scorer": "locked"}, "model": {"scorer": "model"}}


def effects(config: RunConfig) -> dict[str, Any]:
    """What a training run does by its settings: its passes and their rates, and how its first round is split."""
    train = config.train
    rates = [learning_rate(train, this, 10, 0)(5) for this in passes_of(train)]
    first = scouted(config) if train.scorer == "scout" else config
    views = (train.warmup_views, train.warmup_least_crop) if train.num_warmup_passes else None
    grows = (config.split.growth, config.split.cap) if train.scorer != "scout" else None
    folds = train.scorer_folds if train.scorer == "locked" else None
    frozen = train.first_matching if train.scorer == "model" else None
    return {
        **{"passes": passes_of(train), "rates": rates, "split": first.split.model_dump(exclude={"growth", "cap"})},
        **{"signals": first.signals.plan, "views": views, "grows": grows, "folds": folds, "frozen": frozen},
        "local": train.local_loss and train.train_workers > 1,
    }


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("name", TRAINING)
def test_a_setting_of_training_acts_with_a_scorer_or_is_refused(scorer: str, name: str) -> None:
    base = effects(load_config(None, SCORERS[scorer], command="run"))
    given = {**SCORERS[scorer], name: TRAINING[name]}
    try:
        config = load_config(None, given, command="run")
    except ConfigError as error:
        assert "no effect" in str(error)
        with_it = RunConfig.model_validate(
            {
                "train": {k: v for k, v in given.items() if CATALOGUE[k].section == "train"},
                "split": {k: v for k, v in given.items() if CATALOGUE[k].section == "split"},
            }
        )
        assert effects(with_it) == base  # it would indeed have done nothing
        return
    assert effects(config) != base


def test_what_a_scout_replaces_is_refused() -> None:
    with pytest.raises(ConfigError, match="alpha = 0.05 has no effect"):
        load_config(None, {"alpha": 0.05}, command="run")
    with pytest.raises(ConfigError, match="discord_share = 0.0 has no effect: scorer 'scout' takes 0.02"):
        load_config(None, {"discord_share": 0.0}, command="run")
    assert load_config(None, {"alpha": 0.05, "scorer": "locked"}, command="run").split.alpha == 0.05


def test_the_rest_of_the_settings_changes_a_plan_or_says_how() -> None:
    tested = {*VALUES, *TRAINING, "scorer", "rule"}
    other = {
        **{"separator": ";", "precision": "fp32", "device": "cpu", "signals": "all", "decode": "cluster", "risky": "skip"},
        **{"train_precision": "fp32", "order": "sequential", "executor": "local", "max_canary_leak": 0.1, "caption": "all"},
        **{"encoding": "cp1252", "index_key": "url", "keep_one": "best"},
    }
    for name, entry in CATALOGUE.items():
        if name in tested or entry.how:
            continue
        usual = entry.field.default
        value = other.get(name, not usual if isinstance(usual, bool) else "x" if "str" in str(entry.field.annotation) else 1)
        value = 0.25 if value == 1 and "float" in str(entry.field.annotation) else value
        value = {
            "neighbours": 3,
            "reference_rows": 64,
            "agreement_rows": 64,
            "max_caption_copies": 9,
            "scout_taught_share": 0.03,
        }.get(name, value)
        value = {"copy_cell_rows": 32, "reference_image_size": 32, "train_batch_size": 4, "rounds": 3, "train_workers": 2}.get(
            name, value
        )
        given: dict[str, Any] = {name: value, **{key: some[0] for mode in entry.when[:1] for key, some in mode.items() if some}}
        if name == "overlap":
            given["look_again"] = 1
        if "max_image_repeats" in str(entry.when):
            given["max_image_repeats"] = 2
        if "canaries" in str(entry.when):
            given["canaries"] = 10
        if "near_copy_cosine" in str(entry.when) or name in ("max_near_copies", "max_pair_copies"):
            given["near_copy_cosine"] = 0.9
        if "index" in str(entry.when):
            given["index"] = "x.parquet"
        if "reference_encoder" in str(entry.when):
            given["reference_encoder"] = "x"
        config = load_config(None, given, command="run" if entry.section == "train" else "clean")
        assert values_of(config)[name] == value != usual, name


def test_every_profile_loads_and_is_printed_as_a_file_that_loads(tmp_path: Path) -> None:
    for name, profile in PROFILES.items():
        needed = dict.fromkeys(profile.needs, "x")
        trains = "train" in profile.settings
        config = load_config(None, {"profile": name, **needed}, command="run" if trains else "clean")
        assert config.profile == name
        assert config != RunConfig()
        text = as_toml(profiled(name))
        again = load_config(toml(tmp_path, text), needed, command="run" if trains else "clean")
        assert again == config, name
    assert load_config(toml(tmp_path, as_toml(RunConfig())), {}) == RunConfig()  # all commented out
    uncommented = [
        line.removeprefix("# ") if " = " in line and "  " not in line else line for line in as_toml(RunConfig()).split("\n")
    ]
    listed = {key for key in CATALOGUE if any(line.startswith(f"{key} = ") for line in uncommented)}
    assert listed == set(CATALOGUE)


def test_the_settings_page_is_what_the_settings_say() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == as_markdown()


def test_settings_of_the_last_release_are_read() -> None:
    old = RunConfig().model_dump()
    old.pop("profile")
    old["train"]["preset"] = "demo"
    assert RunConfig.model_validate(of_another_version(old)).profile == "demo"


def test_the_digest_of_our_code_covers_every_source_file() -> None:
    """Sub-packages once dropped out of it in silence."""
    walked = {path for package in ("manifests", "stages", "pipeline") for path in (ROOT / package).rglob("*.py")}
    assert {path for path, _ in provenance.source_files()} == walked
    assert len({path.parent for path in walked}) > 10
    assert len(provenance.code_sha256()) == 64


def test_an_encoding_that_does_not_exist_is_named() -> None:
    for name in ("cp12525", "hex"):
        with pytest.raises(ConfigError, match=name):
            load_config(None, {"encoding": name}, command="clean")

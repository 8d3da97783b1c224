import tomllib
from pathlib import Path
from typing import get_args

import pytest
from conftest import ROOT

from manifests.errors import ConfigError
from pipeline.config.load import SECTIONS, RunConfig, load_config
from pipeline.config.presets import PRESETS
from stages.settings import TrainOptions


def toml(tmp_path: Path, text: str) -> str:
    (tmp_path / "c.toml").write_text(text)
    return str(tmp_path / "c.toml")


def test_defaults_then_file_then_flags(tmp_path: Path) -> None:
    path = toml(tmp_path, "[split]\nthreshold = 0.7\n[embed]\nbatch_size = 8\n")
    config = load_config(path, {"batch_size": 16, "workers": None})
    assert (config.split.threshold, config.embed.batch_size, config.executor.workers) == (0.7, 16, None)
    assert load_config(None, {}) == RunConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[split]\nthreshhold = 0.7", r"\[split\] has no setting 'threshhold' \(= 0.7\); did you mean 'threshold'\?"),
        ("[spilt]\nthreshold = 0.7", r"unknown table \[spilt\]; did you mean 'split'\?"),
        ("[split]\nthreshold = 1.5", r"\[split\] threshold = 1.5: input should be less than 1"),
        ("[split]\nrule = 'magic'", r"\[split\] rule = 'magic': input should be 'calibrated'"),
        ("[embed]\nbatch_size = 'many'", r"\[embed\] batch_size = 'many'"),
        ("split = 3", "split must be a table"),
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
        ({"min_safe_share": 0.5, "max_safe_share": 0.4}, "is above max_safe_share"),
    ],
)
def test_settings_that_contradict_each_other(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, flags)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match="cannot read the config nowhere.toml"):
        load_config("nowhere.toml", {})


def test_a_share_or_cosine_sets_its_rule() -> None:
    assert load_config(None, {"keep_share": 0.3}).split.rule == "keep-share"
    assert load_config(None, {"min_cosine": 0.0}).split.rule == "min-cosine"
    assert load_config(None, {"keep_share": 0.3, "rule": "published"}).split.rule == "published"


def test_field_names_are_unique_over_sections() -> None:
    names = [name for options in SECTIONS.values() for name in options.model_fields]
    assert len(names) == len(set(names))


def test_every_field_is_described() -> None:
    assert all(field.description for options in SECTIONS.values() for field in options.model_fields.values())


def test_the_example_file_lists_every_setting_with_its_default() -> None:
    text = (ROOT / "examples" / "clean.toml").read_text()
    assert load_config(str(ROOT / "examples" / "clean.toml"), {}) == RunConfig()
    uncommented = "\n".join(line.removeprefix("# ") if " = " in line else line for line in text.splitlines()[2:])
    listed = tomllib.loads(uncommented)
    assert {s: set(values) for s, values in listed.items()} == {s: set(o.model_fields) for s, o in SECTIONS.items()}


def test_a_preset_lies_below_everything_that_is_given(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[train]\npreset = 'paper-1m'\nrounds = 3\n[split]\ncap = 0.5\n")
    config = load_config(str(file), {"pool_size": 99})
    assert (config.train.rounds, config.train.pool_size, config.train.train_batch_size) == (3, 99, 512)
    assert (config.split.cap, config.split.growth) == (0.5, 0.01)
    assert config.train.scorer == "model"
    assert load_config(str(file), {"preset": "demo"}).train.train_batch_size == 128
    assert set(PRESETS) == set(get_args(get_args(TrainOptions.model_fields["preset"].annotation)[0]))
    for name in PRESETS:
        load_config(None, {"preset": name})
    with pytest.raises(ConfigError, match="preset = 'nope'"):
        load_config(None, {"preset": "nope"})

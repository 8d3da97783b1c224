import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from manifests.errors import CheckpointError, UnsafeCheckpoint
from stages.score.models.checkpoints import load_model, state_sha256
from stages.score.models.safe_load import Undrawn
from stages.score.models.weights import resolve_weights
from stages.settings import ModelSettings

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def state(request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    return load_file(Path(request.getfixturevalue("tiny")) / WEIGHTS)


def load(**options: str) -> torch.nn.Module:
    return load_model(resolve_weights(ModelSettings(**options)))


def test_one_model_in_four_file_formats_has_one_state_hash(tiny: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"epoch": 3, "name": "x", "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "epoch_3.pt")
    save_file({k: v.float() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "fp32.safetensors")
    models = [load(checkpoint=tiny)]
    models += [load(model=tiny, checkpoint=str(p)) for p in sorted(tmp_path.iterdir())]
    assert len(models) == 4
    assert len({state_sha256(model) for model in models}) == 1
    assert not models[0].training
    assert next(models[0].parameters()).dtype == torch.float32


def test_other_weights_have_another_hash(tiny: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    changed = {**state, "logit_scale": state["logit_scale"] + 1}
    save_file(changed, tmp_path / "a.safetensors")
    assert state_sha256(load(model=tiny, checkpoint=str(tmp_path / "a.safetensors"))) != state_sha256(load(checkpoint=tiny))


def test_a_full_pickle_is_refused_and_not_run(tiny: str, tmp_path: Path) -> None:
    proof = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (proof,))  # type: ignore[return-value]

    torch.save({"state_dict": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Payload()))
    for name in ("evil.pt", "old.pt"):
        with pytest.raises(UnsafeCheckpoint, match=r"full pickle.*save_file"):
            load(model=tiny, checkpoint=str(tmp_path / name))
    assert not proof.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_torchscript_is_refused(tiny: str, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "jit.pt")
    with pytest.raises(UnsafeCheckpoint, match="TorchScript"):
        load(model=tiny, checkpoint=str(tmp_path / "jit.pt"))


def test_weights_that_do_not_fit_are_refused_with_both_names(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)cannot load .*into RN50"):
        load(model="RN50", checkpoint=f"{tiny}/{WEIGHTS}")
    (tmp_path / "garbage.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"cannot (load|read) .*garbage"):
        load(model=tiny, checkpoint=str(tmp_path / "garbage.safetensors"))


def test_a_model_config_json_names_an_architecture(tiny: str, tmp_path: Path) -> None:
    config = json.loads((Path(tiny) / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "my-tiny.json").write_text(json.dumps(config))
    model = load(model=str(tmp_path / "my-tiny.json"), checkpoint=f"{tiny}/{WEIGHTS}")
    assert state_sha256(model) == state_sha256(load(checkpoint=tiny))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "which architecture"),
        ({"model": "RN50"}, "which weights"),
        ({"model": "RN50", "checkpoint": "/none.pt"}, "no checkpoint at /none.pt"),
        ({"checkpoint": "a", "pretrained": "b"}, "give one of them"),
        ({"model": "no-such-model", "pretrained": "x"}, "knows no architecture 'no-such-model'; it knows coca_base"),
        ({"model": "RN50", "pretrained": "x"}, "no weights 'x' for 'RN50'; it knows openai, yfcc15m, cc12m"),
    ],
)
def test_settings_that_name_no_model_say_what_is_missing(options: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(**options)


def test_a_folder_with_two_weights_files_is_ambiguous(tiny: str, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds 2 .safetensors files"):
        resolve_weights(ModelSettings(checkpoint=str(tmp_path)))


def test_a_file_that_changed_since_the_plan_is_refused(tiny: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    weights = resolve_weights(ModelSettings(model=tiny, checkpoint=str(path)))
    save_file({**state, "logit_scale": state["logit_scale"] + 1}, path)
    with pytest.raises(CheckpointError, match="not the file the plan names"):
        load_model(weights)


def test_a_remote_checkpoint_is_fetched_by_every_machine_that_needs_it(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    with fsspec.open("memory://weights/model.safetensors", "wb") as file:
        file.write((Path(tiny) / WEIGHTS).read_bytes())
    monkeypatch.setenv("PAIRSAN_CACHE", str(tmp_path / "driver"))
    weights = resolve_weights(ModelSettings(model=tiny, checkpoint="memory://weights/model.safetensors"))
    monkeypatch.setenv("PAIRSAN_CACHE", str(tmp_path / "worker"))  # another machine, with a cache of its own
    shutil.rmtree(tmp_path / "driver")
    assert state_sha256(load_model(weights)) == state_sha256(load(checkpoint=tiny))
    assert len(list((tmp_path / "worker" / "checkpoints").iterdir())) == 1


def test_the_committed_checkpoint_is_what_open_clip_loads_as_it_is(tiny: str) -> None:
    model = open_clip.create_model(f"local-dir:{tiny}")
    assert state_sha256(model) == state_sha256(load(checkpoint=tiny))
    assert (Path(tiny) / WEIGHTS).stat().st_size < 12e6


@pytest.fixture
def hub(tiny: str) -> Iterator[str]:
    """A model hub on the loopback that holds the tiny checkpoint as `acme/tiny`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = Path(tiny) / self.path.partition("/resolve/main/")[2]
            found = self.path.startswith("/acme/tiny/resolve/main/") and path.is_file()
            body = path.read_bytes() if found else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            if not found:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815  # the standard library's name

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_model_comes_from_a_hub_through_open_clips_own_loading(hub: str, tiny: str, tmp_path: Path) -> None:
    code = (
        "from stages.score.models.checkpoints import load_model, state_sha256;"
        "from stages.score.models.weights import resolve_weights;"
        "from stages.score.models.encoders import OpenClipEncoder;"
        "from stages.settings import ModelSettings;"
        "weights = resolve_weights(ModelSettings(model='hf-hub:acme/tiny'));"
        "print(state_sha256(load_model(weights)), OpenClipEncoder(weights).trims)"
    )
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [state_sha256(load(checkpoint=tiny)), "True"]


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("state_dict", "_orig_mod."),
        ("state_dict", "module._orig_mod."),
        ("state_dict", "_orig_mod.module."),
        ("state_dict", "model."),
        ("model", ""),
        ("state_dict_ema", ""),
        ("ema", "module."),
    ],
)
def test_weights_load_as_trainers_really_write_them(
    tiny: str, state: dict[str, torch.Tensor], tmp_path: Path, key: str, prefix: str
) -> None:
    whole = {key: {prefix + name: value for name, value in state.items()}, "best": np.float64(0.5), "rng": np.arange(4)}
    torch.save(whole, tmp_path / "epoch.ckpt")
    loaded = load_model(resolve_weights(ModelSettings(checkpoint=str(tmp_path / "epoch.ckpt"), model=tiny)))
    assert state_sha256(loaded) == state_sha256(load_model(resolve_weights(ModelSettings(checkpoint=tiny))))


def test_a_file_without_weights_says_what_it_has(tiny: str, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"no weights under any of .*; the file has \['epoch', 'optimizer'\]") as found:
        load_model(resolve_weights(ModelSettings(checkpoint=str(tmp_path / "odd.pt"), model=tiny)))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"text_cfg": {"hf_model_name": "evil/model"}}, "text_cfg.hf_model_name = 'evil/model' would fetch"),
        ({"text_cfg": {"hf_tokenizer_name": "evil/tokenizer"}}, "--allow-hub"),
        ({"text_cfg": {"bpe_path": "/home/me/x.gz"}}, "bpe_path"),
        ({"vision_cfg": {"timm_model_pretrained": True}}, "timm_model_pretrained"),
        ({"text_cfg": {"vocab_size": 10**12}}, "vocab_size = 1000000000000, believed are 0 to"),
        ({"vision_cfg": {"width": -4}}, "width = -4"),
    ],
)
def test_an_architecture_file_fetches_runs_and_allocates_nothing(
    tiny: str, tmp_path: Path, more: dict[str, dict[str, object]], told: str
) -> None:
    config = json.loads((Path(tiny) / "open_clip_config.json").read_text())
    for table, values in more.items():
        config["model_cfg"][table] |= values
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "open_clip_model.safetensors").write_bytes((Path(tiny) / "open_clip_model.safetensors").read_bytes())
    (tmp_path / "odd.json").write_text(json.dumps(config["model_cfg"]))
    for settings in (
        ModelSettings(checkpoint=str(folder)),
        ModelSettings(model=str(folder)),
        ModelSettings(model=str(tmp_path / "odd.json"), checkpoint=str(folder / "open_clip_model.safetensors")),
    ):
        with pytest.raises(UnsafeCheckpoint, match=re.escape(told)):
            resolve_weights(settings)
    resolve_weights(ModelSettings(checkpoint=str(folder), allow_hub=True))


def test_weights_that_a_file_replaces_are_not_drawn_first(tiny: str) -> None:
    values = torch.full((3,), 7.0)
    with Undrawn():
        torch.nn.init.normal_(values)
        values.uniform_()
    assert values.tolist() == [7.0] * 3
    state = load_model(resolve_weights(ModelSettings(checkpoint=tiny))).state_dict()
    found = load_file(Path(tiny) / "open_clip_model.safetensors")
    assert dict.fromkeys(state, True) == {name: torch.equal(state[name], found[name].float()) for name in state}
    assert values.normal_().tolist() != [7.0] * 3

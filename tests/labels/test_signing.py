"""Signatures over seals: what is signed, by whom, and that nothing else passes."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from conftest import CLEAN, make_tar
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from manifests.errors import PlaceError, RunError
from manifests.reading import open_round
from manifests.signing import signed_seal
from manifests.store import open_store

Pairsan = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, emoji_members: list[tuple[str, bytes]], tiny: str, pairsan: Pairsan) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.tar").write_bytes(make_tar(emoji_members[:30]))
    pairsan("clean", tmp_path / "data", "--out", tmp_path / "run", "--checkpoint", tiny, *CLEAN)
    return tmp_path / "run"


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a pair of keys as `openssl genpkey -algorithm ed25519` does."""
    key, private, public = ed25519.Ed25519PrivateKey.generate(), folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_a_signed_round_opens_for_its_key_alone(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    (private, public), (_, other) = keys(tmp_path, "mine"), keys(tmp_path, "other")
    assert "is not signed" in pairsan("verify", run, "--key", public, code=5).output
    assert "rounds/0001/manifest.json.sig" in pairsan("sign", run, "--key", private).output
    assert f"all as sealed, signed by the holder of {public}" in pairsan("verify", run, "--key", public).output
    assert open_round(run, public_key=public).mask("0.tar").tolist() == open_round(run).mask("0.tar").tolist()
    assert "all as sealed" in pairsan("verify", run).output  # a signature is no stray file
    with pytest.raises(RunError, match="is not by"):
        open_round(run, public_key=other)
    seal = run / "rounds/0001/manifest.json"
    seal.write_bytes(seal.read_bytes().replace(b'"rule"', b'"rulf"'))
    with pytest.raises(RunError, match="or its seal has changed since"):
        open_round(run, public_key=public)


def test_a_signed_round_put_in_the_place_of_another_is_refused(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    private, public = keys(tmp_path, "mine")
    pairsan("sign", run, "--key", private)
    pairsan("split", run, "--keep-share", 0.5)
    pairsan("sign", run, "--key", private)
    assert open_round(run, public_key=public).number == 2
    for name in ("manifest.json", "manifest.json.sig"):
        (run / "rounds/0002" / name).write_bytes((run / "rounds/0001" / name).read_bytes())
    for key in (None, public):
        with pytest.raises(RunError, match="where round 2 of .* lies the seal of round 1"):
            open_round(run, public_key=key)
    with pytest.raises(RunError, match="the signed seal in the place of round 2 of .* is that of round 1"):
        signed_seal(open_store(str(run)), 2, public)


def test_a_part_that_is_not_the_signed_one_is_not_read(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    private, public = keys(tmp_path, "mine")
    pairsan("sign", run, "--key", private)
    part = run / "rounds/0001/manifest/0.tar.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    with pytest.raises(RunError, match="is not the part that was sealed"):
        open_round(run, public_key=public).mask("0.tar")


def test_keys_of_openssh_do_and_others_get_one_line(
    run: Path, tmp_path: Path, pairsan: Pairsan, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    openssh, ssh = s.PrivateFormat.OpenSSH, tmp_path / "id_ed25519"
    ssh.write_bytes(key.private_bytes(s.Encoding.PEM, openssh, s.NoEncryption()))
    (tmp_path / "id.pub").write_bytes(key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH))
    pairsan("sign", run, "--key", ssh)
    assert open_round(run, public_key=tmp_path / "id.pub").is_signed
    wrong = tmp_path / "wrong"
    wrong.write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(s.Encoding.PEM, openssh, s.NoEncryption()))
    assert "holds no private Ed25519 key" in pairsan("sign", run, "--key", wrong, code=2).output
    wrong.write_text("no key")
    assert "holds no private Ed25519 key" in pairsan("sign", run, "--key", wrong, code=2).output
    assert "holds no public Ed25519 key" in pairsan("verify", run, "--key", ssh, code=2).output
    locked = s.BestAvailableEncryption(b"secret")
    wrong.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, locked))
    assert "has a passphrase" in pairsan("sign", run, "--key", wrong, code=2).output
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(PlaceError, match=r"pip install 'pairsan\[sign\]'"):
        open_round(run, public_key=tmp_path / "id.pub")

"""Ed25519 signatures over seals: a seal names the sha256 of every part, so one signature covers the whole round.

Keys are files of OpenSSL (PEM) or OpenSSH. The signature lies beside the seal, as base64 text.
"""

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from manifests.errors import ConfigError, PlaceError, RunError
from manifests.layout import SEAL, Seal, round_folder
from manifests.parts import write_bytes
from manifests.store import Store

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SUFFIX: Final = ".sig"


def sign(run: Store, number: int, key: Path) -> str:
    """Sign the seal of a round; return the name of the signature below the run.

    Args:
        run: The run folder.
        number: A sealed round.
        key: File of a private key.

    Raises:
        ConfigError: It is no Ed25519 key, or has a passphrase.
        PlaceError: `cryptography` is not installed.
    """
    name = f"{round_folder(number)}/{SEAL}"
    signature = _private(key).sign(run.read_bytes(name))
    write_bytes(run, name + SUFFIX, base64.b64encode(signature) + b"\n")
    return name + SUFFIX


def signed_seal(run: Store, number: int, key: Path) -> Seal:
    """Return the seal of a round, of the very bytes that the holder of a key has signed.

    Args:
        run: The run folder.
        number: A sealed round.
        key: File of the public key.

    Raises:
        RunError: The round is not signed, or not by that key, or has changed since.
        ConfigError: The file is no Ed25519 key.
        PlaceError: `cryptography` is not installed.
    """
    public, name = _public(key), f"{round_folder(number)}/{SEAL}"
    from cryptography.exceptions import InvalidSignature

    if not run.exists(name + SUFFIX):
        raise RunError(f"round {number} of {run.uri} is not signed; its maker signs it by `pairsan sign`")
    sealed = run.read_bytes(name)
    try:
        public.verify(base64.b64decode(run.read_bytes(name + SUFFIX).strip(), validate=True), sealed)
    except (InvalidSignature, ValueError):
        raise RunError(f"the signature of round {number} of {run.uri} is not by {key}, or its seal has changed since") from None
    seal: Seal = json.loads(sealed)
    if seal["plan"]["round"] != number:  # a round that was signed once, put in the place of another
        raise RunError(f"the signed seal in the place of round {number} of {run.uri} is that of round {seal['plan']['round']}")
    return seal


def _private(path: Path) -> "Ed25519PrivateKey":
    serialization, ed25519 = _cryptography()
    key = _loaded(path, (serialization.load_pem_private_key, serialization.load_ssh_private_key), password=None)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{path} holds no private Ed25519 key; `openssl genpkey -algorithm ed25519 -out key.pem` makes one")
    return cast("Ed25519PrivateKey", key)


def _public(path: Path) -> "Ed25519PublicKey":
    serialization, ed25519 = _cryptography()
    key = _loaded(path, (serialization.load_pem_public_key, serialization.load_ssh_public_key))
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ConfigError(f"{path} holds no public Ed25519 key; `openssl pkey -in key.pem -pubout` prints that of key.pem")
    return cast("Ed25519PublicKey", key)


def _loaded(path: Path, ways: tuple[Any, ...], **options: Any) -> Any:
    """Return a key in any of its formats; None where the file is none of them."""
    from cryptography.exceptions import UnsupportedAlgorithm

    data = path.read_bytes()
    for load in ways:
        try:
            return load(data, **options)
        except TypeError:
            raise ConfigError(f"{path} has a passphrase; keys without one are read (`ssh-keygen -p`, `openssl pkey`)") from None
        except (ValueError, UnsupportedAlgorithm):  # another format, or no key at all
            continue
    return None


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise PlaceError("signatures need cryptography: pip install 'pairsan[sign]'") from None
    return serialization, ed25519

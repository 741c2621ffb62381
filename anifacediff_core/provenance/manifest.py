"""A signed C2PA manifest in a video file, by the package c2pa-python, which is optional."""

from __future__ import annotations

import base64
import binascii
import importlib.util
import json
import re
from pathlib import Path

from ..errors import InputError
from ..storage import atomic_write
from .container import SOURCE_TYPE, STATEMENT

# C2PA's algorithm by the identifier that a private key holds.
ALGORITHMS = {
    bytes.fromhex("2a8648ce3d030107"): "ES256",
    bytes.fromhex("2b81040022"): "ES384",
    bytes.fromhex("2b81040023"): "ES512",
    bytes.fromhex("2a864886f70d010101"): "PS256",
    bytes.fromhex("2b6570"): "ED25519",
}
CREATED = {
    "action": "c2pa.created",
    "digitalSourceType": SOURCE_TYPE,
    "softwareAgent": {"name": "ComfyUI-AniFaceDiff"},
    "description": STATEMENT,
}


def available() -> bool:
    return importlib.util.find_spec("c2pa") is not None


def sign(video: Path, certificate: Path, private_key: Path) -> None:
    """Sign an mp4: who made it, with what, and that it is synthetic. Any later change then shows.

    Args:
        certificate: PEM, the signer's first, then those that vouch for it.
        private_key: PEM without a password.

    Raises:
        InputError: no c2pa-python, files that are missing, damaged, or don't belong together.
    """
    if not available():
        raise InputError("C2PA manifests need the Python package c2pa-python: install it.")
    import c2pa

    certificates, key = (_read(path) for path in (certificate, private_key))
    manifest = {
        "claim_generator_info": [{"name": "ComfyUI-AniFaceDiff"}],
        "title": video.name,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [CREATED]}}],
    }
    try:
        algorithm = c2pa.C2paSigningAlg[_algorithm(key, private_key)]
        info = c2pa.C2paSignerInfo(algorithm, certificates, key, None)  # no time from a server
        with (
            atomic_write(video) as temporary,
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(json.dumps(manifest)) as builder,
            open(video, "rb") as source,
            open(temporary, "w+b") as target,
        ):
            builder.sign(signer, "video/mp4", source, target)
    except (c2pa.C2paError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"The video was not signed with {certificate.name} and {private_key.name} ({reason}): "
            "check both files."
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror}): check the file.") from error


def _algorithm(key: bytes, path: Path) -> str:
    body = re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----(.+?)-----END", key, re.DOTALL)
    try:
        content = base64.b64decode(body[1]) if body else b""
    except binascii.Error:
        content = b""
    for identifier, name in ALGORITHMS.items():
        if identifier in content:
            return name
    raise InputError(
        f"{path.name} is not a private key that C2PA can use: give a PEM file (PKCS 8) without a password, "
        "of kind EC, RSA or Ed25519."
    )

"""A signed C2PA manifest in a video file, by the package c2pa-python, which is optional."""

from __future__ import annotations

import base64
import binascii
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
}


def available() -> bool:
    return importlib.util.find_spec("c2pa") is not None


def sign(
    video: Path,
    certificate: Path,
    private_key: Path,
    *,
    inputs: Sequence[Path] = (),
    source_type: str = SOURCE_TYPE,
    time_server: str = "",
) -> list[str]:
    """Sign an mp4: who made it, with what, and that it is synthetic. Any later change then shows.

    Args:
        certificate: PEM, the signer's first, then those that vouch for it.
        private_key: PEM without a password.
        inputs: files that it was made of. Those with Content Credentials become ingredients with them.
        source_type: `container.SOURCE_TYPE` or `container.COMPOSITE`.
        time_server: address of a time stamp authority (RFC 3161), which is asked for the time; the signature
            counts on when the certificate has run out. Without one nobody is asked.

    Returns:
        the names of the ingredients.

    Raises:
        InputError: no c2pa-python, files that are missing, damaged, or don't belong together, a time server
            that does not answer.
    """
    if not available():
        raise InputError("C2PA manifests need the Python package c2pa-python: install it.")
    import c2pa

    certificates, key = (_read(path) for path in (certificate, private_key))
    if time_server and not time_server.lower().startswith(("http://", "https://")):
        raise InputError(
            f"The time server {time_server[:80]} is no address: begin it with http:// or https://."
        )
    named: list[str] = []
    try:
        algorithm = c2pa.C2paSigningAlg[_algorithm(key, private_key)]
        info = c2pa.C2paSignerInfo(algorithm, certificates, key, time_server or None)
        with (
            atomic_write(video) as temporary,
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(json.dumps(_manifest(video.name, source_type))) as builder,
            open(video, "rb") as source,
            open(temporary, "w+b") as target,
        ):
            for path in filter(_has_credentials, inputs):
                with open(path, "rb") as file:
                    ingredient = {"title": path.name, "relationship": "inputTo"}
                    builder.add_ingredient(json.dumps(ingredient), TYPES[path.suffix.lower()], file)
                named.append(path.name)
            builder.sign(signer, "video/mp4", source, target)
    except (c2pa.C2paError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        check = f"check both files{' and the time server' if time_server else ''}"
        raise InputError(
            f"The video was not signed with {certificate.name} and {private_key.name} ({reason}): {check}."
        ) from error
    return named


def _manifest(title: str, source_type: str) -> dict[str, Any]:
    agent = {"name": "ComfyUI-AniFaceDiff"}
    created = {
        "action": "c2pa.created",
        "digitalSourceType": source_type,
        "softwareAgent": agent,
        "description": STATEMENT,
    }
    actions = {"label": "c2pa.actions.v2", "data": {"actions": [created]}}
    return {"claim_generator_info": [agent], "title": title, "assertions": [actions]}


def _has_credentials(path: Path) -> bool:
    """Whether a file holds a manifest; one that cannot be read counts as none."""
    import c2pa

    if path.suffix.lower() not in TYPES:
        return False
    try:
        with open(path, "rb") as file, c2pa.Reader(TYPES[path.suffix.lower()], file) as reader:
            return bool(reader.is_embedded())
    except (c2pa.C2paError, OSError):
        return False


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

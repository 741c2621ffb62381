"""The mark in the host's pictures and videos, and files that say they are synthetic."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import av
import pytest
import torch
from PIL import Image
from torch import Tensor

import anifacediff_core
from anifacediff_core.provenance.container import COMPOSITE, SOURCE_TYPE, STATEMENT, XMP
from anifacediff_core.provenance.mark import mark
from anifacediff_core.video import VideoWriter, probe, read_frames, read_image
from harness.extension import Extension, one_sentence
from harness.videos import steady, write_driver

EXAMPLES = Path(anifacediff_core.__file__).parent / "assets" / "examples"
RATE = Fraction(30000, 1001)
SAVING = {"filename_prefix": "video/test", "crf": 18}


@pytest.fixture(scope="module")
def image() -> Tensor:
    """The source picture as IMAGE, four times."""
    return read_image(EXAMPLES / "source.png").movedim(1, -1).repeat(4, 1, 1, 1)


@pytest.fixture(scope="module")
def made(extension: Extension, image: Tensor) -> Any:
    """A VIDEO of Create Video: marked, 30000/1001 as Get Video Components gives it, with sound."""
    from comfy_api.latest import InputImpl, Types

    (marked,) = extension.run("Mark", image=image, strength=1.0, identifier=77)
    sound = {"waveform": torch.rand(1, 2, 44100) - 0.5, "sample_rate": 44100}
    return InputImpl.VideoFromComponents(
        Types.VideoComponents(images=marked, audio=sound, frame_rate=Fraction(float(RATE)))
    )


def test_mark_is_the_cores(extension: Extension, image: Tensor) -> None:
    (marked,) = extension.run("Mark", image=image, strength=1.5, identifier=9)
    assert torch.equal(marked, mark(image.movedim(-1, 1), 9, 1.5).movedim(1, -1))
    found, identifier, report = extension.run("DetectMark", image=marked)
    assert found is True and identifier == 9 and "identifier 9" in one_sentence(report)
    found, identifier, report = extension.run("DetectMark", image=image)
    assert found is False and identifier == -1 and "No mark" in one_sentence(report)


def test_gray_alpha_and_range(extension: Extension, image: Tensor) -> None:
    alpha = torch.rand(*image.shape[:3], 1)
    (marked,) = extension.run("Mark", image=torch.cat([image, alpha], -1), strength=1.0)
    assert torch.equal(marked[..., 3:], alpha)
    assert torch.equal(marked[..., :3], mark(image.movedim(-1, 1)).movedim(1, -1))
    (marked,) = extension.run("Mark", image=image[..., :1], strength=1.0)
    assert marked.shape == image.shape
    (marked,) = extension.run("Mark", image=2 * image - 0.5, strength=1.0)
    assert marked.min() >= 0 and marked.max() <= 1


def test_refusals(extension: Extension, image: Tensor) -> None:
    broken = image.clone()
    broken[1, 5, 5] = float("nan")
    for bad in (image[:0], image[:, :100], broken):
        extension.refusal("Mark", image=bad, strength=1.0)
        extension.refusal("DetectMark", image=bad)
    assert "65535" in extension.refusal("Mark", image=image, strength=1.0, identifier=70000)
    assert "connect image or video" in extension.refusal("DetectMark")


def test_save_frames(extension: Extension, made: Any) -> None:
    output = extension.output("SaveVideo", video=made, **SAVING)
    saved, name, report = output.result
    path = extension.base / "output" / name
    assert output.ui.as_dict()["images"][0]["filename"] == path.name
    info = probe(path)
    assert (info.width, info.height, info.frames, info.rate) == (256, 256, 4, RATE)
    with av.open(str(path)) as file:
        sound = file.streams.audio[0]
        assert abs(float(sound.duration * sound.time_base) - float(4 / RATE)) < 1 / RATE
        metadata = file.metadata
    assert metadata["comment"] == metadata["description"] == STATEMENT
    assert metadata["digitalsourcetype"] == SOURCE_TYPE and XMP.encode() in path.read_bytes()
    assert report.startswith(f"{name}: 4 frames, 30000/1001 fps") and "not signed" in report
    for video in (saved, made):
        assert extension.run("DetectMark", video=video)[:2] == (True, 77)


def test_save_file(extension: Extension, tmp_path: Path) -> None:
    """A file is not compressed again, and keeps its sound and what it said before."""
    from comfy_api.latest import InputImpl

    given = tmp_path / "given.mp4"
    with VideoWriter(given, RATE, EXAMPLES / "driving.mp4", cut_sound=True) as writer:
        writer.write(torch.rand(6, 3, 64, 96))
    _, name, _ = extension.run("SaveVideo", video=InputImpl.VideoFromFile(str(given)), **SAVING)
    path = extension.base / "output" / name
    assert probe(path) == probe(given) and probe(path).has_audio
    for before, after in zip(read_frames(given), read_frames(path), strict=True):
        assert torch.equal(before, after)


def test_sound_that_cannot_be_copied_is_encoded(extension: Extension, tmp_path: Path) -> None:
    """MP4 holds no MP3 of 8000 Hz."""
    from comfy_api.latest import InputImpl

    given = tmp_path / "given.ts"
    write_driver(given, steady(12), 0.4, sound=("libmp3lame", 8000))
    _, name, report = extension.run("SaveVideo", video=InputImpl.VideoFromFile(str(given)), **SAVING)
    with av.open(str(extension.base / "output" / name)) as file:
        assert file.streams.audio[0].codec_context.name == "aac"
    assert report.endswith("declared synthetic, not signed.")


def test_damaged_sound_costs_no_pictures(extension: Extension, image: Tensor) -> None:
    from comfy_api.latest import InputImpl, Types

    damaged = {"waveform": torch.zeros(1, 2, 0), "sample_rate": 44100}
    parts = Types.VideoComponents(images=image, audio=damaged, frame_rate=RATE)
    _, name, report = extension.run("SaveVideo", video=InputImpl.VideoFromComponents(parts), **SAVING)
    info = probe(extension.base / "output" / name)
    assert info.frames == len(image) and not info.has_audio
    assert report.endswith(
        "The sound of the video cannot be kept and is left out (The audio has no samples)."
    )


def test_workflow_goes_along(extension: Extension, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from comfy.cli_args import args

    hidden = SimpleNamespace(prompt={"1": {"class_type": "X"}}, extra_pnginfo={"workflow": {"nodes": []}})
    monkeypatch.setattr(extension.classes["AniFaceDiffSaveVideo"], "hidden", hidden, raising=False)
    for disabled in (False, True):
        monkeypatch.setattr(args, "disable_metadata", disabled)
        _, name, _ = extension.run("SaveVideo", video=made, **SAVING)
        with av.open(str(extension.base / "output" / name)) as file:
            assert file.metadata["comment"] == STATEMENT
            assert ("workflow" in file.metadata) is not disabled
            if not disabled:
                assert json.loads(file.metadata["prompt"]) == hidden.prompt


def certificate(folder: Path) -> None:
    """A certificate chain and its private key, signer.pem and key.pem."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "leaf.cnf").write_text(
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
        "extendedKeyUsage=emailProtection\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    new = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    for command in (
        f"{new} -x509 -days 9 -keyout root_key.pem -out root.pem -subj /CN=Root/O=Test",
        f"{new} -keyout key.pem -out leaf.csr -subj /CN=Signer/O=Test",
        "x509 -req -in leaf.csr -CA root.pem -CAkey root_key.pem -days 8 -extfile leaf.cnf -out leaf.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    (folder / "signer.pem").write_text((folder / "leaf.pem").read_text() + (folder / "root.pem").read_text())


def test_c2pa(extension: Extension, made: Any) -> None:
    c2pa = pytest.importorskip("c2pa", reason="needs c2pa-python")
    folder = extension.base / "models" / "c2pa"
    certificate(folder)
    given = {"certificate": "signer.pem", "private_key": "key.pem"}
    saved, name, report = extension.run("SaveVideo", video=made, **SAVING, **given)
    assert "signed with a C2PA manifest" in report
    path = extension.base / "output" / name
    with c2pa.Reader(str(path)) as reader:
        assert reader.get_validation_state() == "Valid"
        assertions = reader.get_active_manifest()["assertions"]
    actions = next(each for each in assertions if each["label"].startswith("c2pa.actions"))
    assert actions["data"]["actions"][0]["digitalSourceType"] == SOURCE_TYPE
    assert probe(path).rate == RATE and XMP.encode() in path.read_bytes()
    assert extension.run("DetectMark", video=saved)[:2] == (True, 77)

    content = bytearray(path.read_bytes())
    content[content.index(b"mdat") + 500] ^= 1
    path.write_bytes(content)
    with c2pa.Reader(str(path)) as reader:
        assert reader.get_validation_state() == "Invalid"


def test_inputs_with_credentials_become_ingredients(
    extension: Extension, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signed driver is named, an unsigned picture and what does not lead to the video are not."""
    c2pa = pytest.importorskip("c2pa", reason="needs c2pa-python")
    from types import SimpleNamespace

    certificate(extension.base / "models" / "c2pa")
    given = {"certificate": "signer.pem", "private_key": "key.pem"}
    _, name, _ = extension.run("SaveVideo", video=made, **SAVING, **given)
    inputs = extension.base / "input"
    for copy in ("signed.mp4", "other.mp4"):
        shutil.copy(extension.base / "output" / name, inputs / copy)
    Image.new("RGB", (16, 16)).save(inputs / "plain.png")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "plain.png"}},
        "2": {"class_type": "LoadVideo", "inputs": {"file": "signed.mp4"}},
        "3": {"class_type": "LoadVideo", "inputs": {"file": "other.mp4"}},
        "4": {"class_type": "AniFaceDiffPasteBack", "inputs": {"image": ["2", 0], "original": ["1", 0]}},
        "5": {"class_type": "AniFaceDiffSaveVideo", "inputs": {"video": ["4", 0]}},
    }
    hidden = SimpleNamespace(prompt=prompt, extra_pnginfo=None, unique_id="5")
    monkeypatch.setattr(extension.classes["AniFaceDiffSaveVideo"], "hidden", hidden, raising=False)
    _, name, report = extension.run("SaveVideo", video=made, **SAVING, **given)
    assert "names signed.mp4" in report
    path = extension.base / "output" / name
    with c2pa.Reader(str(path)) as reader:
        assert reader.get_validation_state() == "Valid"
        manifest = reader.get_active_manifest()
    (ingredient,) = manifest["ingredients"]
    assert ingredient["title"] == "signed.mp4" and ingredient["relationship"] == "inputTo"
    assert ingredient["active_manifest"]
    actions = next(each for each in manifest["assertions"] if each["label"].startswith("c2pa.actions"))
    assert actions["data"]["actions"][0]["digitalSourceType"] == COMPOSITE
    with av.open(str(path)) as file:
        assert file.metadata["digitalsourcetype"] == COMPOSITE
    assert COMPOSITE.encode() in path.read_bytes().partition(b"xpacket begin")[2]


def test_a_time_server_is_asked_if_it_is_named(extension: Extension, made: Any) -> None:
    pytest.importorskip("c2pa", reason="needs c2pa-python")
    certificate(extension.base / "models" / "c2pa")
    given = {"certificate": "signer.pem", "private_key": "key.pem"}
    asked: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.headers.get("Content-Type", ""))
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/tsa"
        _, _, report = extension.run("SaveVideo", video=made, **SAVING, **given, time_server=address)
        server.shutdown()
    assert asked == ["application/timestamp-query"]
    one_sentence(report.partition("but not signed: ")[2])
    assert "time server" in report
    for address, why in (("tsa.example", "begin it with http"), ("http://[", "time server")):
        _, _, report = extension.run("SaveVideo", video=made, **SAVING, **given, time_server=address)
        assert why in report


def test_what_was_done_is_read_from_what_leads_to_the_file(extension: Extension) -> None:
    history = sys.modules[
        f"{extension.classes['AniFaceDiffSaveVideo'].__module__.rpartition('.')[0]}.host.history"
    ]
    whole = {"class_type": "AniFaceDiffReenactLongVideo", "inputs": {"mark": True}}
    pasted = {"class_type": "AniFaceDiffReenactLongVideo", "inputs": {"original": ["1", 0]}}
    for node, composite in ((whole, False), (pasted, True)):
        prompt = {
            "7": node,
            "8": {"class_type": "AniFaceDiffReenactMany"},
            "9": {"inputs": {"video": ["7", 0]}},
        }
        prompt["7"]["inputs"]["loop"] = ["9", 0]
        nodes = history.upstream(prompt, "9")
        assert len(nodes) == 2 and history.is_composite(nodes) is composite
    assert history.made_of([{"class_type": "LoadImage", "inputs": {"image": "../../etc/passwd"}}]) == []
    assert history.made_of([{"class_type": "LoadImage", "inputs": {"image": ["3", 0]}}]) == []


@pytest.mark.parametrize(
    "given",
    [
        {"certificate": "signer.pem"},
        {"private_key": "key.pem"},
        {"certificate": "signer.pem", "private_key": "nonsense.pem"},
        {"certificate": "nonsense.pem", "private_key": "key.pem"},
        {"certificate": "signer.pem", "private_key": "missing.pem"},
        {"certificate": "signer.pem", "private_key": "root_key.pem"},
    ],
)
def test_what_cannot_be_signed_is_saved(extension: Extension, made: Any, given: dict[str, str]) -> None:
    folder = extension.base / "models" / "c2pa"
    certificate(folder)
    (folder / "nonsense.pem").write_text("nonsense")
    _, name, report = extension.run("SaveVideo", video=made, **SAVING, **given)
    _, _, reason = report.partition("but not signed: ")
    one_sentence(reason)
    assert probe(extension.base / "output" / name).frames == 4


def test_save_refuses(extension: Extension, made: Any, tmp_path: Path) -> None:
    from comfy_api.latest import InputImpl, Types

    assert "leads out" in extension.refusal("SaveVideo", video=made, filename_prefix="../../x", crf=18)
    empty = Types.VideoComponents(images=torch.zeros(0, 8, 8, 3), audio=None, frame_rate=Fraction(24))
    extension.refusal("SaveVideo", video=InputImpl.VideoFromComponents(empty), **SAVING)
    extension.refusal("DetectMark", video=InputImpl.VideoFromComponents(empty))

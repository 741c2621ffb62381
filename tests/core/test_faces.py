"""What reads faces: the checkpoint's own networks, or files of DECA, SMIRK and FLAME, in every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from anifacediff_core.capture.extract import CaptureModels
from anifacediff_core.capture.flame import FlameModels
from anifacediff_core.errors import InputError
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.lab.cli import main
from anifacediff_core.video import probe, read_image
from anifacediff_core.weights import faces
from anifacediff_core.weights.checkpoint import bundled_checkpoint, load_checkpoint
from anifacediff_core.weights.faces import load_face_models
from harness import files, flame

EXAMPLES = files.BUNDLED.parent / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    files.write_deca(folder / "deca_model.tar")
    files.write_smirk(folder / "SMIRK_em1.pt")
    files.write_checkpoint(folder / "full_size.safetensors")
    flame.write_pickle(folder / "generic_model.pkl", flame.make_fields())
    return folder


@pytest.fixture(autouse=True)
def no_other_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed here: these are pictures of avatars."""
    monkeypatch.setattr(faces, "FacesAtHand", lambda last: last)


def test_the_files_decide_what_reads_faces(folder: Path) -> None:
    bundled, flames = load_checkpoint(bundled_checkpoint()), load_checkpoint(folder / "full_size.safetensors")
    assert isinstance(load_face_models(bundled), CaptureModels)
    deca, smirk, head = (folder / name for name in ("deca_model.tar", "SMIRK_em1.pt", "generic_model.pkl"))
    both = load_face_models(flames, deca, smirk, head)  # the bundled detector, since the checkpoint has none
    assert isinstance(both, FlameModels) and both.head.name == "flame" and both.deca and both.smirk
    for checkpoint, given, why in (
        (bundled, {"deca": deca}, "DECA and SMIRK need FLAME"),
        (bundled, {"flame": head}, "FLAME needs one of them"),
        (flames, {}, "full_size.safetensors has no networks that read faces for the bundled head"),
        (bundled, {"smirk": deca, "flame": head}, "'deca_model.tar' is not SMIRK"),
    ):
        with pytest.raises(InputError, match=why):
            load_face_models(checkpoint, **given)


def test_capture_and_render_normals_with_deca_and_flame(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = ["--flame", str(folder / "generic_model.pkl")]
    deca = ["--deca", str(folder / "deca_model.tar"), "--smirk", str(folder / "SMIRK_em1.pt")]
    read, device = str(tmp_path / "read.safetensors"), ["--device", "cpu"]
    captured = ["capture", "--input", str(EXAMPLES / "source.png"), "--out", read]
    assert main([*captured, *deca, *head, *device]) == 0
    assert "SMIRK's eyelids are left out" in capsys.readouterr().out
    found = FaceParameters.load(read)
    assert (found.head, found.shape.shape, found.expression.shape) == ("flame", (1, 300), (1, 50))
    drawn = ["render-normals", "--parameters", read, "--out", str(tmp_path / "normals"), "--size", "64"]
    assert main([*drawn, *device]) == 2
    assert "belong to the head 'flame'" in capsys.readouterr().err
    assert main([*drawn, *head, *device]) == 0
    assert read_image(tmp_path / "normals" / "00000.png").amax() > 0.5


def test_reenact_with_a_checkpoint_for_flame(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(folder / "full_size.safetensors"), "--size", "64", "--device", "cpu"]
    given += ["--max-frames", "2", "--steps", "1"]
    deca = ["--deca", str(folder / "deca_model.tar"), "--flame", str(folder / "generic_model.pkl")]
    clip = {"--source": EXAMPLES / "source.png", "--driving": EXAMPLES / "driving.mp4"}
    one = [text for name, path in clip.items() for text in (name, str(path))]
    assert main(["reenact", *one, "--out", str(tmp_path / "one.mp4"), *given, *deca]) == 0
    assert probe(tmp_path / "one.mp4").frames == 2
    assert main(["reenact", *one, "--out", str(tmp_path / "two.mp4"), *given]) == 2
    assert "give the files of DECA and FLAME" in capsys.readouterr().err
    (tmp_path / "jobs.csv").write_text(
        f"source,driving,out\n{clip['--source']},{clip['--driving']},three.mp4\n", encoding="utf-8"
    )
    assert main(["reenact", "--jobs", str(tmp_path / "jobs.csv"), *given, *deca]) == 0
    assert (tmp_path / "three.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()

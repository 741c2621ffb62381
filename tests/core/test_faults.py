"""What comes from outside ends in a sentence: strangers' text, odd names, full disks, impossible numbers."""

from __future__ import annotations

import errno
import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from anifacediff_core import storage
from anifacediff_core.errors import InputError, printable
from anifacediff_core.lab import cli
from anifacediff_core.lab import jobs as module
from anifacediff_core.lab.jobs import ReenactJob, run_jobs
from anifacediff_core.storage import atomic_write, beside, require_writable
from anifacediff_core.video import VideoWriter

LONG = "界" * 90  # 270 bytes


def ends_in_a_sentence(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    told = capsys.readouterr().err
    assert told.endswith(".\n") and told.count("\nanifacediff: ") + told.startswith("anifacediff: ") == 1
    return told.splitlines()[-1]


# ---- text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, naïve, 界, نص, 👨‍👩‍👧", "plain, naïve, 界, نص, 👨‍👩‍👧"),
        ("\x1b[2Jgone\x07", r"\x1b[2Jgone\x07"),
        ("two\nlines \r\n of it", "two lines of it"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("half \ud800 pair", r"half \ud800 pair"),
        ("a\u2028b\x9bc\0", r"a\u2028b\x9bc\x00"),
    ],
)
def test_text_of_strangers_is_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert printable(text) == shown == str(InputError(text))
    shown.encode()


def test_of_very_long_text_beginning_and_end_are_shown() -> None:
    shown = printable("a" * 10**6 + "z")
    assert len(shown) < 1100 and shown[0] == "a" and shown[-1] == "z"


def test_what_commands_print_is_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "call", lambda *_: print("name \x1b[2J\ud800\nnext"))
    assert cli.main(["inspect", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "name \\x1b[2J\\ud800\nnext\n"


# ---- names, places and disks


@pytest.mark.parametrize("out", [f"{LONG}.mp4", f"{LONG}/x.mp4", "file/x.mp4", "folder.mp4", "\ud800.mp4"])
def test_a_place_that_takes_no_result_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    monkeypatch.setattr(cli, "call", lambda *_: pytest.fail("work has begun"))
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    ends_in_a_sentence(capsys, "reenact", "--out", str(tmp_path / out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4"]


def test_a_disk_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "some name")

    monkeypatch.setattr(storage.tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr(cli, "call", lambda *_: pytest.fail("work has begun"))
    told = ends_in_a_sentence(capsys, "convert", "x.pt", "--out", str(tmp_path / "new" / "x.safetensors"))
    assert "on a disk that cannot be written" in told and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full"),
        (
            SafetensorError("Error while serializing: No space left on device (os error 28)"),
            "The disk is full",
        ),
        (SafetensorError("invalid header"), "A file is damaged"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/place/x\x1b[2J"),
            r"/place/x\\x1b\[2J may not be",
        ),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "not in UTF-8"),
        (RecursionError("maximum recursion depth exceeded"), "nested more deeply"),
        (MemoryError(), "not enough memory"),
        (OSError(), "cannot be read or written"),
    ],
)
def test_faults_of_the_system_end_commands_with_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: Exception,
    words: str,
) -> None:
    def fails(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(cli, "call", fails)
    with pytest.raises(InputError, match=words):
        raise InputError(ends_in_a_sentence(capsys, "inspect", str(tmp_path)))


def test_the_longest_name_can_be_written_and_names_beside_it_fit(tmp_path: Path) -> None:
    path = tmp_path / f"{'界' * 83}.mp4"  # 253 bytes
    require_writable(path)
    with atomic_write(path) as temporary:
        Path(temporary).write_text("whole")
    assert path.read_text() == "whole"
    names = {beside(tmp_path / f"{'界' * 83}{end}.mp4", ".partial.mp4") for end in ("a", "b")}
    for name in names:
        name.touch()
    assert len(names) == 2 and beside(tmp_path / "a.mp4", ".partial.mp4").name == "a.partial.mp4"


def test_a_file_is_on_the_disk_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss of power the old or the new content is there, however the file system orders writes."""
    order: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("replace"), replace(*names)))
    with atomic_write(tmp_path / "x") as temporary:
        Path(temporary).write_text("new")
    assert order[:2] == ["sync", "replace"] and (tmp_path / "x").read_text() == "new"
    assert order[2:] == ([] if os.name == "nt" else ["sync"])  # the folder, too


# ---- numbers


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_no_video_is_made_of_what_is_no_number(tmp_path: Path, bad: float) -> None:
    frames = torch.zeros(3, 3, 16, 16)
    frames[1, 0, 5, 5] = bad
    path = tmp_path / "x.mp4"
    with (
        pytest.raises(InputError, match="Frame 4 came out of the networks as NaN or infinity"),
        VideoWriter(path, Fraction(24)) as video,
    ):
        video.write(torch.zeros(3, 3, 16, 16))
        video.write(frames)
    assert not path.exists()


def test_a_video_that_cannot_be_ended_leaves_nothing(tmp_path: Path) -> None:
    """Ending it writes as well."""

    class Full:
        def close(self, *_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        mux = close

    with pytest.raises(OSError, match="No space"), VideoWriter(tmp_path / "x.mp4", Fraction(24)) as video:
        video.write(torch.zeros(3, 3, 16, 16))
        video._container = Full()
        (tmp_path / "x.mp4").touch()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("cfg", "nan"),
        ("cfg", "-inf"),
        ("expression-scale", "nan"),
        ("seed", str(2**64)),
        ("overlap", "24"),
        ("overlap", "-1"),
        ("steps", "1001"),
    ],
)
def test_numbers_that_mean_nothing_are_told_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, value: str
) -> None:
    files = ["--source", "gone.png", "--driving", "gone.mp4", "--out", str(tmp_path / "x.mp4")]
    told = ends_in_a_sentence(
        capsys, "reenact", *files, "--checkpoint", "gone.safetensors", f"--{setting}={value}"
    )
    assert value.lstrip("-") in told


# ---- lists of jobs


class Pretended(module.Reenacting):
    """Writes a text in place of a video."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def reenact(self, job: ReenactJob) -> int:
        require_writable(Path(job.out))
        if not Path(job.source).is_file():
            raise InputError(f"There is no picture file {job.source}.")
        return Path(job.out).write_text("a video")


def line(out: str, **more: Any) -> str:
    return json.dumps({"source": "a.png", "driving": "b.mp4", "out": out, **more})


BAD_LINES = {
    "NUL": line("x\0.mp4").encode(),
    "half a surrogate pair": line("x\ud800.mp4").encode(),
    "not UTF-8": b'{"source": "a.png", "driving": "b.mp4", "out": "\xff\xfe.mp4"}',
    "deep": b"[" * 100_000,
    "no JSON": b"{",
    "a long number": line("x.mp4", size=0).replace("0}", "9" * 5000 + "}").encode(),
    "NaN": line("x.mp4", cfg=float("nan")).encode(),
    "a long name": line("x" * 260 + ".mp4").encode(),
    "a long folder": line("x" * 260 + "/x.mp4").encode(),
    "below a file": line("a.png/x.mp4").encode(),
    "a link in a circle": line("circle/x.mp4").encode(),
    "no source": line("x.mp4", source="gone.png").encode(),
    "twice": line("1.mp4").encode(),
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_costs_no_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bad: bytes
) -> None:
    monkeypatch.setattr(module, "Reenacting", Pretended)
    (tmp_path / "a.png").touch()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b"\n".join([line("1.mp4").encode(), bad, line("3.mp4").encode()]))
    told = ends_in_a_sentence(capsys, "reenact", "--jobs", str(path))
    assert "1 of 3 jobs failed" in told
    assert sorted(p.name for p in tmp_path.glob("*.mp4")) == ["1.mp4", "3.mp4"]
    (entry,) = map(json.loads, (tmp_path / "jobs.jsonl.failed.jsonl").read_text().splitlines())
    assert entry["error"].endswith(".") and entry.get("job", 2) == 2


@pytest.mark.parametrize(
    "bad", [b"a.png,b.mp4,x\xff.mp4", b'a.png,b.mp4,"x.bmp', b"a.png,b.mp4", b"," * 200_000]
)
def test_a_bad_line_of_a_table_costs_no_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: bytes
) -> None:
    monkeypatch.setattr(module, "Reenacting", Pretended)
    (tmp_path / "a.png").touch()
    path = tmp_path / "jobs.csv"
    path.write_bytes(b"\r\n".join([b"source,driving,out", b"a.png,b.mp4,1.mp4", bad, b"a.png,b.mp4,3.mp4"]))
    with pytest.raises(InputError, match="1 of 3 jobs failed"):
        run_jobs(path, "x")
    assert sorted(p.name for p in tmp_path.glob("*.mp4")) == ["1.mp4", "3.mp4"]


def test_a_report_that_cannot_be_written_costs_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Reenacting", Pretended)
    (tmp_path / "a.png").touch()
    (tmp_path / "jobs.jsonl").write_text("\n".join(["{", line("2.mp4")]))

    def full(path: Path) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "atomic_write", full)
    with pytest.raises(InputError, match="1 of 2 jobs failed"):
        run_jobs(tmp_path / "jobs.jsonl", "x")
    assert (tmp_path / "2.mp4").exists()

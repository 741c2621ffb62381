"""Jobs in this process, in several and on Ray: each result once, whatever is lost; lists of reenactments."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F

from anifacediff_core.errors import InputError
from anifacediff_core.lab import jobs as module
from anifacediff_core.lab.cli import main
from anifacediff_core.lab.jobs import ReenactJob, read_jobs, run_jobs
from anifacediff_core.lab.scale import Scale, run
from anifacediff_core.lab.training.shard_format import read_shard
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.video import VideoWriter, probe, read_frames
from harness import workers

REPOSITORY = Path(__file__).resolve().parents[2]
ASSETS = REPOSITORY / "anifacediff_core" / "assets"
EXAMPLES = ASSETS / "examples"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests"))),
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def in_own_python(code: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Code that starts further processes, in a Python where they can import all modules."""
    return subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout
    )


# ---- workers


def test_jobs_run_here_one_after_the_other(tmp_path: Path) -> None:
    work = [{"number": n, "out": str(tmp_path / str(n))} for n in range(3)]
    results = list(run(workers.Writes, work, Scale()))
    assert [result["number"] for result in results] == [0, 1, 2]
    assert {result["process"] for result in results} == {os.getpid()}
    assert list(run(workers.CannotBegin, [], Scale())) == [], "no worker is made for nothing"


PROCESSES = """
from harness import workers
from anifacediff_core.errors import InputError
from anifacediff_core.lab.scale import Scale, run
work = [{"number": n, "out": f"%s/{n}"} for n in range(6)]
results = list(run(workers.Writes, work, Scale(processes=2)))
assert sorted(result["number"] for result in results) == list(range(6)), results
left = run(workers.Sleeps, work, Scale(processes=2))
assert next(left)["number"] == 0
left.close()
for make in (workers.Refuses, workers.CannotBegin, workers.Dies):
    try:
        list(run(make, work, Scale(processes=2)))
    except InputError as error:
        print(error)
"""


ENDED = (
    "A worker process was ended from outside, perhaps for want of memory; run the command again with fewer "
    "processes, what is done is kept."
)


@pytest.mark.slow
def test_processes_share_jobs_and_their_refusals_arrive_as_sentences(tmp_path: Path) -> None:
    """Who leaves before the last result does not wait for it."""
    ended = in_own_python(PROCESSES % tmp_path)
    assert ended.stdout.splitlines() == [
        "job 1 is wrong; give another.",
        "the weights are gone; give others.",
        ENDED,
    ], ended.stderr


def test_numbers_of_workers_that_mean_nothing_are_refused() -> None:
    for scale in (Scale(processes=0), Scale(gpus=-1), Scale(processes=2, ray="auto")):
        with pytest.raises(InputError):
            list(run(workers.Writes, [{}], scale))


def test_a_missing_ray_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="Ray is not installed; run pip install"):
        list(run(workers.Writes, [{}], Scale(ray="")))


@needs_ray
def test_a_cluster_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "no.such.host.invalid:6379", "127.0.0.1:99999"):
        with pytest.raises(InputError, match="There is no Ray cluster at") as caught:
            list(run(workers.Writes, [{}], Scale(ray=address)))
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match="There is no Ray cluster at '127.0.0.1:1'"):
        list(run(workers.Writes, [{}], Scale(ray="")))


# ---- lists of reenactments


def test_a_list_is_csv_or_json_lines_with_paths_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text(
        "source,driving,out,steps,cfg\na.png,b.mp4,one.mp4,4,\na.png,/c.mp4,two.mp4,,2.5\n"
    )
    first, second = read_jobs(tmp_path / "jobs.csv", {"seed": 7, "steps": 20})
    assert first == ReenactJob(
        str(tmp_path / "a.png"), str(tmp_path / "b.mp4"), str(tmp_path / "one.mp4"), steps=4, seed=7
    )
    assert (second.driving, second.steps, second.cfg) == ("/c.mp4", 20, 2.5)
    lines = [{"source": "a.png", "driving": "b.mp4", "out": "c.mp4", "max_frames": 3}]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_jobs(tmp_path / "jobs.jsonl")[0].max_frames == 3


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "source,driving,out\n", "has no jobs"),
        ("a.csv", "source,driving\na,b\n", "Job 1 of a.csv lacks out"),
        ("a.csv", "source,driving,out,color\na,b,c,red\n", "has color; known are source"),
        ("a.csv", "source,driving,out,steps\na,b,c,many\n", "steps 'many', which is no whole number"),
        ("a.csv", "source,driving,out,cfg\na,b,c,nan\n", "cfg 'nan', which is no number"),
        ("a.csv", "source,driving,out\na,b,./b\n", "would write its result over ./b"),
        ("a.jsonl", '{"source": "a", "driving": "b", "out": "c", "size": Infinity}', "no whole number"),
        ("a.jsonl", '{"source": "a", "driving": "b", "out": "c", "steps": 2.5}', "no whole number"),
        (
            "a.csv",
            "source,driving,out\na,b,c.avi\n",
            "Job 1 of a.csv: c.avi is of no known form: end it in .mp4",
        ),
        (
            "a.csv",
            "source,driving,out\na,b,c.mp4\nd,e,c.mp4\n",
            "Job 2 of a.csv writes .*c.mp4 like one before",
        ),
        ("a.csv", "source,driving,out\na,b,c,d\n", "Job 1 of a.csv has"),
        ("a.jsonl", "{", "could not be read as CSV or JSON lines"),
        ("a.jsonl", "[1]", "Job 1 of a.jsonl has"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=sentence) as caught:
        read_jobs(tmp_path / name)
    assert "\n" not in str(caught.value)


class Pretended(module.Reenacting):
    """Writes its job's seed in place of a video."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def reenact(self, job: ReenactJob) -> int:
        if not Path(job.source).exists():
            raise InputError(f"There is no picture file {job.source}.")
        with Path(job.out).open("x") as file:  # a second time would be an error
            file.write(str(job.seed))
        return 1


def make_list(folder: Path, *sources: str) -> Path:
    lines = "".join(f"{source},d.mp4,{number}.mp4\n" for number, source in enumerate(sources))
    (folder / "jobs.csv").write_text(f"source,driving,out\n{lines}")
    return folder / "jobs.csv"


def test_failed_jobs_are_listed_and_done_ones_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Reenacting", Pretended)
    (tmp_path / "there.png").touch()
    path = make_list(tmp_path, "there.png", "gone.png", "there.png")
    with pytest.raises(InputError, match="1 of 3 jobs failed, the first with: There is no picture file"):
        run_jobs(path, "x")
    report = tmp_path / "jobs.csv.failed.jsonl"
    assert [json.loads(line)["out"] for line in report.read_text().splitlines()] == [str(tmp_path / "1.mp4")]
    assert sorted(p.name for p in tmp_path.glob("*.mp4")) == ["0.mp4", "2.mp4"]
    (tmp_path / "gone.png").touch()
    told: list[tuple[int, int]] = []
    sentence = run_jobs(path, "x", progress=lambda done, total: told.append((done, total)))
    assert sentence == "3 results, 2 of them were there before." and told == [(3, 3)]
    assert not report.exists()


def test_the_command_ends_with_a_code_that_tells_of_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "Reenacting", Pretended)
    (tmp_path / "there.png").touch()
    path = make_list(tmp_path, "there.png", "gone.png")
    assert main(["reenact", "--jobs", str(path), "--seed", "4"]) == 2
    assert "1 of 2 jobs failed" in capsys.readouterr().err
    assert (tmp_path / "0.mp4").read_text() == "4", (
        "the command's settings are those of jobs without their own"
    )
    path = make_list(tmp_path, "there.png")
    assert main(["reenact", "--jobs", str(path)]) == 0
    assert main(["reenact", "--jobs", str(path), "--out", "x.mp4"]) == 2
    assert main(["reenact", "--source", "x.png", "--out", "x.mp4"]) == 2
    assert "--driving is missing" in capsys.readouterr().err


SETTINGS = ["--size", "64", "--steps", "1", "--cfg", "1", "--max-frames", "2", "--device", "cpu"]


@pytest.mark.parametrize(
    ("options", "expected"), [([], [False]), (["--steps", "2", "--cfg", "2"], [True, True])], ids=str
)
def test_what_is_left_out_is_as_the_checkpoint_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: list[bool]
) -> None:
    """The bundled one: one step, and no unconditional half of guidance."""
    guided = []
    predict = AniFaceDiff.predict

    def spy(self: AniFaceDiff, *args: Any, **kwargs: Any) -> Any:
        guided.append(kwargs["guided"])
        return predict(self, *args, **kwargs)

    monkeypatch.setattr(AniFaceDiff, "predict", spy)
    files = ["--source", str(EXAMPLES / "source.png"), "--driving", str(EXAMPLES / "driving.mp4")]
    few = ["--size", "64", "--max-frames", "2", "--device", "cpu"]
    assert main(["reenact", *files, "--out", str(tmp_path / "one.mp4"), *few, *options]) == 0
    assert guided == expected


def test_a_result_appears_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(f"source,driving,out\n{EXAMPLES / 'source.png'},{EXAMPLES / 'driving.mp4'},out/one.mp4\n")
    real = VideoWriter.write

    seen: list[bool] = []

    def stops(self: VideoWriter, frames: Any) -> None:
        real(self, frames)
        seen.append((tmp_path / "out" / "one.mp4").exists())
        raise RuntimeError("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(VideoWriter, "write", stops)
        assert main(["reenact", "--jobs", str(path), *SETTINGS]) == 2
    left = [p.name for p in (tmp_path / "out").iterdir()]
    assert seen == [False] and left == ["one.mp4.work"], "from which it goes on"
    assert main(["reenact", "--jobs", str(path), *SETTINGS]) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["one.mp4"]
    assert probe(tmp_path / "out" / "one.mp4").frames == 2


def test_a_size_that_does_not_fit_is_told_before_the_driver_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--source", str(EXAMPLES / "source.png"), "--driving", str(EXAMPLES / "driving.mp4")]
    out = ["--out", str(tmp_path / "one.mp4"), "--device", "cpu"]
    assert main(["reenact", *files, *out, "--size", "100"]) == 2
    told = capsys.readouterr()
    assert told.err == "anifacediff: The size of the result is 100: give a multiple of 8.\n" and not told.out
    assert not list(tmp_path.iterdir())


# ---- Ray

CLUSTER = """
import sys, json
from pathlib import Path
from harness.cluster import main
main(json.loads(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
@needs_ray
def test_of_two_nodes_one_is_killed_half_way_and_every_clip_is_prepared_exactly_once(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    frames = F.interpolate(
        next(iter(read_frames(EXAMPLES / "driving.mp4")))[None], size=(64, 64), mode="area"
    )
    clips = [f"train/id{10000 + number}#a#0#4.mp4" for number in range(10)]
    for clip in clips:
        with VideoWriter(videos / clip, Fraction(24)) as writer:
            writer.write(frames.expand(4, -1, -1, -1))
    (videos / "train" / "broken.mp4").write_text("no video")
    prepare = ["prepare", "--videos", str(videos), "--out", str(out), "--size", "64", "--chunk", "1"]
    path = tmp_path / "jobs.csv"
    rows = [f"{EXAMPLES / 'source.png'},{EXAMPLES / 'driving.mp4'},{n}.mp4\n" for n in range(2)]
    path.write_text("source,driving,out\n" + "".join(rows))
    commands = [[*prepare, "--device", "cpu"], ["reenact", "--jobs", str(path), *SETTINGS]]
    ended = subprocess.run(
        [sys.executable, "-c", CLUSTER, json.dumps(commands), str(out)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["codes"] == [0, 0], ended.stderr[-3000:]
    nodes: dict[str, set[str]] = {}
    for chunk, node in told["marks"]:
        nodes.setdefault(chunk, set()).add(node)
    assert told["killed"] in nodes and len(nodes) == 11
    assert len(told["unlisted"]) == 1, "it was killed when its shard was written and nobody knew"
    assert len(nodes[told["killed"]]) == 2, "what the killed node had begun was begun again by the other one"
    assert len({node for chunk in nodes.values() for node in chunk}) == 2
    segments = [segment for shard in sorted(out.glob("*.tar")) for segment in read_shard(str(shard))]
    assert Counter(segment.info.clip for segment in segments) == Counter(clips)
    listed = json.loads((out / "shards.json").read_text())["shards"]
    assert sorted(entry["file"] for entry in listed) == sorted(shard.name for shard in out.glob("*.tar"))
    skipped = [json.loads(line)["clip"] for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert skipped == ["train/broken.mp4"]
    assert [probe(tmp_path / f"{n}.mp4").frames for n in range(2)] == [2, 2]

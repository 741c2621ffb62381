"""What files say about themselves is held against limits before it is believed."""

from __future__ import annotations

import io
import json
import pickle  # noqa: TID251 - to write files, never to read any
import struct
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from anifacediff_core.claims import is_finite, parse_json, shown
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.lab.evaluation.judges import bundled_path, load_judges
from anifacediff_core.lab.parsing import parse_rate, parse_yaml
from anifacediff_core.lab.training.settings import read_experiment
from anifacediff_core.lab.training.shard_format import SegmentInfo
from anifacediff_core.network.config import ConfigError, NetworkConfig
from anifacediff_core.weights.checkpoint import bundled_checkpoint
from anifacediff_core.weights.importers import recognize_file
from anifacediff_core.weights.reading import open_tensors
from anifacediff_core.weights.sources import open_checkpoint

DEEP = "[" * 100_000


def sentence(read: Any, *arguments: Any) -> str:
    """The refusal: one sentence, on one line, with nothing that moves a cursor."""
    with pytest.raises(InputError) as caught:
        read(*arguments)
    text = str(caught.value)
    assert text.isprintable() and text.endswith((".", "?")) and ". " not in text.replace(". yaml", "")
    return text


# JSON, YAML, rates and texts


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        DEEP + "]" * 100_000,
        "[" * 100 + "]" * 100,
        "NaN",
        "[-Infinity]",
        "[1e400]",
        "9" * 30,
        "9" * 10_000,
        '{"a": 1, "a": 2}',
        '{"a": "\\ud800"}',
        b'"\xff"',
        "",
        "{",
    ],
)
def test_json_that_nobody_would_write(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_json_as_people_write_it() -> None:
    text = '{"a": [1, -2.5e3, true, null], "ä": {"b": "\\ud83d\\ude00"}}'
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "x: 2001-99-99",
        "x: 2001-01-01",
        "x: !!int foo",
        "x: !!float foo",
        "x: !!timestamp foo",
        "x: !!bool foo",
        "x: !!binary 'AAAA'",
        "x: !!set {a, b}",
        "x: !!python/object/apply:os.system ['true']",
        "x: " + "9" * 5000,
        "x: 0x" + "f" * 5000,
        "x: " + ":".join(["59"] * 9_000),
        "x: .nan",
        "x: " + "[" * 3000 + "]" * 3000,
        "x: " + "[" * 20_000,
        "x: &x [*x]",
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n"
                                               for a, b in zip("abcdefg", "bcdefgh", strict=True)),
        "x: " + "a" * 2_000_000,
        'x: "\\ud800"',
        "{",
    ],
)  # fmt: skip
def test_yaml_that_nobody_would_write(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        parse_yaml(text)
    path = tmp_path / "experiment.yaml"
    path.write_text(f"seed: 1\nphases: {{}}\n{text}\n")
    assert "is not valid YAML" in sentence(read_experiment, path)


def test_yaml_as_people_write_it() -> None:
    text = "base: &base {rate: 1.0e-3, on: yes}\nphases:\n- <<: *base\n  name: a\n- ~\n"
    assert parse_yaml(text)["phases"] == [{"rate": 1e-3, True: True, "name": "a"}, None]


def test_a_value_of_settings_is_told_in_short(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(f"phases: {{}}\nseed: [{'a, ' * 3000}]\n")
    assert len(sentence(read_experiment, path)) < 300


def test_rates() -> None:
    for value, rate in (
        ("30000/1001", Fraction(30000, 1001)),
        (" 23.976 ", Fraction("23.976")),
        (25, Fraction(25)),
        (12.5, Fraction(25, 2)),
    ):
        assert parse_rate(value) == rate
    for value in (
        "1e1000000000",
        "1e9",
        "1/0",
        "0",
        "-25",
        "nan",
        "inf",
        "9" * 5000,
        "1_0",
        "²",
        "",
        None,
        True,
    ):
        with pytest.raises(ValueError):
            parse_rate(value)
    description = {"version": 1, "identity": "i", "clip": "c", "fps": "1e1000000000", "first": 0, "frames": 1,
                   "size": 16, "head": "h", "split": "train"}  # fmt: skip
    assert "damaged description" in sentence(SegmentInfo.from_json, json.dumps(description).encode(), "it")


def test_texts_of_strangers_stay_on_their_line() -> None:
    assert shown("a\x1b[2J\nb\ud800") == "a\\x1b[2J b\\ud800"
    assert shown("x" * 1000) == "x" * 40 + "…" + "x" * 40


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.complex64])
def test_finite_of_every_type(dtype: torch.dtype) -> None:
    assert is_finite(torch.ones(3).to(dtype)) and is_finite(torch.ones(3, dtype=torch.int64))
    assert not is_finite(torch.tensor([1.0, float("nan")]).to(dtype))


# Weights


def test_what_all_tensors_claim_together(tmp_path: Path) -> None:
    """One stored number, repeated a million times by each of thousands of names."""
    one = torch.ones(1, dtype=torch.float64)
    torch.save({f"x{index}": one.expand(2**20) for index in range(100)}, tmp_path / "many.pt")
    assert "many times as many" in sentence(open_tensors, tmp_path / "many.pt")
    torch.save({f"x{index}": one.expand(2**20) for index in range(8)}, tmp_path / "few.pt")
    with open_tensors(tmp_path / "few.pt") as file:
        assert file.read("x7").sum() == 2**20


def test_a_packed_storage_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(
        {f"x{index}": tensor for index, tensor in enumerate(torch.arange(3000.0).split(1))}, tmp_path / "a"
    )
    with (
        zipfile.ZipFile(tmp_path / "a") as plain,
        zipfile.ZipFile(tmp_path / "b", "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for name in plain.namelist():
            out.writestr(name, plain.read(name))
    opened = []
    real = zipfile.ZipFile.open
    monkeypatch.setattr(
        zipfile.ZipFile, "open", lambda self, *a, **k: opened.append(a) or real(self, *a, **k)
    )
    with open_tensors(tmp_path / "b") as file:
        assert [file.read(f"x{index}").item() for index in range(0, 3000, 100)] == list(range(0, 3000, 100))
    assert len(opened) <= 5


def test_tuples_of_one_hash_are_no_keys(tmp_path: Path) -> None:
    """Python hashes tuples of numbers alike in every process: a file could have thousands of one hash."""
    keys = {(1, 2): 0, (3, 4): 0, ("a",): 0}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({**keys, "w": np.ones(2)}, 2))
    with open_tensors(tmp_path / "a.pkl") as file:
        assert list(file.infos) == ["w"] and file.ignored == ["builtins.tuple"] * 3


@pytest.mark.parametrize("shape", [(2**62, 2**62, 0), (0, 2**62), (1,) * 40, (-5, 2), (2**63 - 1, 0)])
def test_shapes_that_overflow(tmp_path: Path, shape: tuple[int, ...]) -> None:
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    (tmp_path / "a.npy").write_bytes(content)
    sentence(open_tensors, tmp_path / "a.npy")


@pytest.mark.parametrize("protocol", [0, 2])
def test_pickles_whose_line_ends_were_changed(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps({"v_template": np.arange(30.0), "f": np.arange(6)}, protocol)
    (tmp_path / "a.pkl").write_bytes(content.replace(b"\n", b"\r\n"))
    assert "its line ends were changed: fetch it in binary" in sentence(open_tensors, tmp_path / "a.pkl")


def test_names_in_refusals_move_no_cursor(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04X\x0f\x00\x00\x00os.\x1b[2J\nall goodX\x01\x00\x00\x00x\x93.")
    sentence(open_tensors, tmp_path / "a.pkl")


# Headers of checkpoints


@pytest.fixture(scope="module")
def bundled() -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(bundled_checkpoint(), "pt") as file:
        header = json.loads(file.metadata()["anifacediff"])
    return load_file(bundled_checkpoint()), header


@pytest.mark.parametrize(
    "network",
    [
        {"image_layers": 10**8},
        {"image_layers": 40},
        {"image_layers": "3"},
        {"image_layers": None},
        {"latent_channels": 10**7},
        {"block_out_channels": [0, 0, 0]},
        {"block_out_channels": [-32, 32, 32]},
        {"block_out_channels": [32.5, 32, 32]},
        {"block_out_channels": [33, 33, 33]},
        {"block_out_channels": [192, 192, 192]},
        {"block_out_channels": "abc"},
        {"block_out_channels": [32] * 1000, "attention_levels": [True] * 1000,
         "attention_heads": [1] * 1000, "motion_heads": [1] * 1000},
        {"attention_heads": [0, 3, 3]},
        {"attention_levels": [1, 0, 1]},
        {"latent_scale": 0},
        {"beta_schedule": 5},
        {"pose_inputs": [5]},
        {"profile": "a\x1b[2J"},
        {"\x1b[2J": 1},
    ],
)  # fmt: skip
def test_a_network_that_the_file_cannot_hold(tmp_path: Path, bundled: Any, network: dict[str, Any]) -> None:
    weights, header = bundled
    path = tmp_path / "demo.safetensors"
    header = {**header, "network": header["network"] | network}
    save_file(weights, path, {"anifacediff": json.dumps(header)})
    text = sentence(open_checkpoint, path)
    assert text.startswith("demo.safetensors")


def test_configs_keep_what_networks_have() -> None:
    for config in (NetworkConfig.tiny(), NetworkConfig.full()):
        assert NetworkConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(ConfigError):
        NetworkConfig(layers_per_block=0)


# Files that look like a known kind, of sizes that no network has

CLIP = "vision_model.embeddings."


@pytest.mark.parametrize(
    "shapes",
    [
        {"conv_in.weight": (0,), "down_blocks.0.resnets.0.conv1.weight": (0, 0)},
        {"attn2.to_k.weight": ()},
        {"conv_in.weight": (), "blocks.0.weight": ()},
        {"conv_in.weight": (1, 1, 1, 1)} | {f"blocks.{index}.weight": (1, 1, 1, 1) for index in range(500)},
        {"quant_conv.weight": (8, 8, 1, 1)}
        | {f"encoder.down.{index}.block.0.conv1.weight": (32, 1, 1, 1) for index in range(500)},
        {"down_blocks.0.motion_modules.0.proj_in.weight": ()},
        {f"{CLIP}class_embedding": (), f"{CLIP}patch_embedding.weight": ()},
        dict.fromkeys(
            ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f"), ()
        ),
    ],
)
def test_sizes_of_no_network(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    assert sentence(recognize_file, path).startswith("weights.safetensors")


# Heads, judges, parameters


def head_file(path: Path, header: Any = None, **changes: Tensor | None) -> Path:
    source = Path(bundled_checkpoint()).with_name("head.safetensors")
    with safe_open(source, "pt") as file:
        own = json.loads(file.metadata()["anifacediff-head"])
    tensors = {name: t for name, t in (load_file(source) | changes).items() if t is not None}
    text = header if isinstance(header, str) else json.dumps(own if header is None else {**own, **header})
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"anifacediff-head": text}
    )
    return path


@pytest.mark.parametrize(
    ("header", "changes"),
    [
        (DEEP, {}),
        ({"expressions": 5}, {}),
        ({"expressions": [[1]]}, {}),
        ({"expressions": ["one"]}, {}),
        (None, {"parents": torch.tensor([3, 0, 1, 1, 1])}),
        (None, {"parents": torch.tensor([-1, 1, 1, 1, 1])}),
        (None, {"parents": torch.tensor([-1.0, 0.5, 1, 1, 1])}),
        (None, {"faces": torch.zeros(4, 4, dtype=torch.int64)}),
        (None, {"faces": torch.zeros(4, 3, dtype=torch.complex64)}),
        (None, {"faces": torch.zeros(4, 3, dtype=torch.bool)}),
        (None, {"pose_basis": torch.zeros(2, 2)}),
        (None, {"occlusion": torch.zeros(2)}),
        (None, {"chart": torch.zeros(2)}),
        (None, {"landmarks": torch.zeros(1, dtype=torch.int64)}),
        (None, {"landmarks": torch.zeros(68, 3, dtype=torch.int64)}),
        (None, {"expression_vertices": torch.tensor(0)}),
        (None, {"region.a.b": torch.zeros(2, dtype=torch.int64)}),
        (None, {"region.x": torch.full((2,), 10**9)}),
        (None, {"region.x": torch.full((2,), float("nan"))}),
    ],
)
def test_heads_that_do_not_fit_together(tmp_path: Path, header: Any, changes: dict[str, Tensor]) -> None:
    sentence(HeadModel.load, head_file(tmp_path / "head.safetensors", header, **changes))


def test_heads_of_other_types_and_names(tmp_path: Path) -> None:
    bundled = HeadModel.bundled()
    changes = {
        "faces": bundled.faces.to(torch.int32),
        "region.names": torch.arange(3),
        "landmarks": torch.zeros(0, dtype=torch.int64),
    }
    head = HeadModel.load(head_file(tmp_path / "head.safetensors", **changes))
    assert torch.equal(head(head.neutral()), bundled(bundled.neutral()))
    assert head.regions["names"].tolist() == [0, 1, 2] and list(bundled.regions) == sorted(bundled.regions)


@pytest.mark.parametrize(
    "changes",
    [
        {"identity.mix.weight": torch.tensor(1.0)},
        {"identity.mix.weight": torch.zeros(1, 10**6)},
        {"motion.mean": torch.tensor(1.0)},
        {"identity.trunk.0.weight": torch.zeros(10**6, 1, 1, 1)},
    ],
)
def test_judges_of_sizes_that_do_not_fit(tmp_path: Path, changes: dict[str, Tensor]) -> None:
    path = tmp_path / "judges.safetensors"
    save_file(load_file(bundled_path()) | changes, path)
    sentence(load_judges, path)


def test_parameters_with_headers_that_lie(tmp_path: Path) -> None:
    path, name = tmp_path / "p.safetensors", "anifacediff-face-parameters"
    parameters = HeadModel.bundled().neutral(2)
    tensors = {key: getattr(parameters, key) for key in ("shape", "expression", "pose", "camera", "valid")}
    for text in (DEEP, "9" * 10_000, "NaN"):
        save_file(tensors, path, {name: text})
        sentence(FaceParameters.load, path)
        with pytest.raises(InputError):
            FaceParameters.from_bytes(path.read_bytes(), "these")


def test_a_texture_of_negative_size(tmp_path: Path) -> None:
    from anifacediff_core.weights.importers.texture import load_texture

    def array(shape: tuple[int, ...], content: bytes) -> bytes:
        header = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mean.npy", array((512, 512, 3), bytes(512 * 512 * 3)))
        archive.writestr("tex_dir.npy", array((512, 512, 3, 1), bytes(512 * 512 * 3)))
        archive.writestr("vt.npy", array((-5, 2), bytes(2**20)))
        archive.writestr("ft.npy", array((1, 3), bytes(3)))
    (tmp_path / "t.npz").write_bytes(stream.getvalue())
    sentence(load_texture, tmp_path / "t.npz", HeadModel.bundled().faces)

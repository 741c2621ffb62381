"""One file with all parts: what goes in comes out, and everything else is refused with one sentence."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anifacediff_core.errors import InputError
from anifacediff_core.lab.assembly import convert
from anifacediff_core.lab.inspection import describe
from anifacediff_core.network.autoencoder import AutoEncoder, StableAutoEncoder
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.model import PARTS, AniFaceDiff
from anifacediff_core.network.sampling_config import SamplingConfig
from anifacediff_core.weights.checkpoint import (
    bundled_checkpoint,
    load_autoencoder,
    load_checkpoint,
    load_network,
    save_checkpoint,
)
from anifacediff_core.weights.importers import recognize_file
from harness.weights import randomize

CONFIG = NetworkConfig.tiny()


@pytest.fixture(scope="module")
def model() -> AniFaceDiff:
    return AniFaceDiff(CONFIG, motion=True)


@pytest.fixture(scope="module")
def path(model: AniFaceDiff, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    parts = {name: getattr(model, name).state_dict() for name in PARTS} | {"vae": AutoEncoder().state_dict()}
    save_checkpoint(path, parts, CONFIG, head="some-head", provenance={"seed": 7})
    return path


def test_round_trip(path: Path, model: AniFaceDiff) -> None:
    checkpoint = load_checkpoint(path)
    assert checkpoint.config == CONFIG and checkpoint.head == "some-head"
    assert checkpoint.provenance == {"seed": 7}
    assert checkpoint.parts == (*PARTS, "vae")
    assert checkpoint.part("vae")["decoder.1.weight"].dtype == torch.float16
    assert checkpoint.part("vae", torch.float32)["decoder.1.weight"].dtype == torch.float32
    loaded = load_network(checkpoint).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded[name], weight.half().float()), name


def test_a_header_may_say_how_to_sample(tmp_path: Path) -> None:
    wish = SamplingConfig(steps=4, cfg=1.2)
    save_checkpoint(tmp_path / "x.safetensors", {}, NetworkConfig.full(), head="", sampling=wish)
    assert load_checkpoint(tmp_path / "x.safetensors").sampling == wish
    convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    assert load_checkpoint(tmp_path / "y.safetensors").sampling == wish
    assert "  sampling      steps 4, cfg 1.2, sampler euler, scheduler simple" in describe(
        tmp_path / "y.safetensors"
    )


@pytest.mark.parametrize(
    ("config", "steps", "cfg"), [(NetworkConfig.tiny(), 1, 1.0), (NetworkConfig.full(), 25, 3.5)]
)
def test_a_header_that_does_not_say_is_sampled_as_others_of_its_size(
    tmp_path: Path, config: NetworkConfig, steps: int, cfg: float
) -> None:
    save_checkpoint(tmp_path / "x.safetensors", {}, config, head="")
    sampling = load_checkpoint(tmp_path / "x.safetensors").sampling
    assert (sampling.steps, sampling.cfg, sampling.sampler, sampling.scheduler) == (
        steps,
        cfg,
        "euler",
        "simple",
    )


def test_the_bundled_checkpoint_is_sampled_in_one_step() -> None:
    assert load_checkpoint(bundled_checkpoint()).sampling == SamplingConfig(steps=1, cfg=1.0)


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ([], "the entry is []"),
        ({"steps": 0}, "steps is 0, expected a whole number from 1 to 1000"),
        ({"steps": 10**9}, "steps is 1000000000"),
        ({"steps": True}, "steps is True"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": None}, "steps is None"),
        ({"cfg": "much"}, "cfg is 'much', expected a number from 0 to 100"),
        ({"cfg": 101}, "cfg is 101"),
        ({"sampler": "magic"}, "sampler is 'magic', expected euler"),
        ({"sampler": ["euler"]}, "sampler is ['euler']"),
        ({"scheduler": {}}, "scheduler is {}"),
        ({"eta": 1}, "the entry is {'eta': 1}, expected some of steps, cfg, sampler, scheduler"),
        ({"sampler": "\x1b[31m" + "x" * 10_000}, "sampler is '\\x1b[31mxxx"),
    ],
    ids=str,
)
def test_sampling_that_nobody_can_do_is_refused(tmp_path: Path, wish: object, told: str) -> None:
    network = {"version": 1, "network": CONFIG.to_json(), "head": "", "sampling": wish}
    path = tmp_path / "x.safetensors"
    save_file({"vae.weight": torch.zeros(1)}, path, {"anifacediff": json.dumps(network)})
    for read in (load_checkpoint, recognize_file):
        with pytest.raises(
            InputError, match="^x.safetensors has a header with sampling that nobody"
        ) as error:
            read(path)
        assert told in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("cfg", [float("nan"), float("inf"), -1.0])
def test_nobody_can_ask_for_such_guidance(cfg: float) -> None:
    with pytest.raises(InputError, match="expected a number from 0 to 100"):
        SamplingConfig().but(cfg=cfg)


def test_bundled_sizes_leave_room_for_the_face_encoder(path: Path) -> None:
    """Everything that ships has to stay under 40 MiB; the face encoder takes about 5."""
    assert path.stat().st_size < 33 * 2**20


def test_dead_weights_are_not_stored(path: Path) -> None:
    reference = load_checkpoint(path).part("reference")
    assert not any(name.startswith(("conv_norm_out", "conv_out")) for name in reference)
    last = [
        name for name in reference if ".transformer_blocks." in name and "up_blocks.2.attentions.1" in name
    ]
    assert last and all(".norm1." in name for name in last)


def test_without_motion(path: Path, model: AniFaceDiff, tmp_path: Path) -> None:
    parts = {name: getattr(model, name).state_dict() for name in PARTS if name != "motion"}
    save_checkpoint(tmp_path / "stage1.safetensors", parts, CONFIG, head="some-head")
    checkpoint = load_checkpoint(tmp_path / "stage1.safetensors")
    assert load_network(checkpoint).motion is None
    with pytest.raises(InputError, match="has no motion: expected that part, found unet"):
        checkpoint.part("motion")


def test_missing_truncated_and_foreign_files(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no checkpoint"):
        load_checkpoint(tmp_path / "absent.safetensors")

    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="truncated"):
        load_checkpoint(truncated)

    pickled = tmp_path / "pickled.safetensors"
    torch.save({"weight": torch.zeros(3)}, pickled)
    with pytest.raises(InputError, match="expected a whole safetensors file"):
        load_checkpoint(pickled)

    foreign = tmp_path / "foreign.safetensors"
    save_file({"lora_up.weight": torch.zeros(3)}, foreign)
    with pytest.raises(InputError, match=r"not an AniFaceDiff checkpoint: .*lora_up\.weight"):
        load_checkpoint(foreign)


def test_names_in_a_header_stay() -> None:
    stored = CONFIG.to_json()
    assert stored["prediction"] == CONFIG.prediction_type and stored["latent_scale"] == CONFIG.scaling_factor
    assert NetworkConfig.from_json(stored) == NetworkConfig.from_json(asdict(CONFIG)) == CONFIG
    with pytest.raises(InputError, match="under two names"):
        NetworkConfig.from_json(stored | {"scaling_factor": 1.0})


def test_damaged_and_newer_headers(tmp_path: Path) -> None:
    path = tmp_path / "header.safetensors"
    for header, message in (
        ("{", "damaged header"),
        (json.dumps({"version": 1}), "damaged header"),
        (json.dumps([1]), "damaged header"),
        (json.dumps({"version": 1, "network": [], "head": ""}), "damaged header"),
        (json.dumps({"version": 2, "network": {}, "head": ""}), "version 2, expected 1"),
        (json.dumps({"version": 1, "network": {"colour": 1}, "head": ""}), "colour"),
    ):
        save_file({"unet.weight": torch.zeros(3)}, path, metadata={"anifacediff": header})
        with pytest.raises(InputError, match=message):
            load_checkpoint(path)


def test_not_a_number_is_refused_both_ways(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    for bad in (float("nan"), 1e6):  # 1e6 overflows half precision
        with pytest.raises(InputError, match=r"NaN or infinity in vae\.weight"):
            save_checkpoint(target, {"vae": {"weight": torch.tensor([bad])}}, CONFIG, head="")
    assert list(tmp_path.iterdir()) == []

    tensors = load_file(path)
    tensors["vae.encoder.0.bias"][0] = float("nan")
    save_file(tensors, target, metadata={"anifacediff": json.dumps(header_of(path))})
    with pytest.raises(InputError, match=r"NaN or infinity in vae\.encoder\.0\.bias"):
        load_checkpoint(target).part("vae")


def header_of(path: Path) -> dict:
    checkpoint = load_checkpoint(path)
    return {"version": 1, "network": checkpoint.config.to_json(), "head": checkpoint.head}


def test_misfitting_weights_are_named(path: Path, tmp_path: Path) -> None:
    tensors = load_file(path)
    tensors["vae.encoder.0.weight"] = tensors["vae.encoder.0.weight"][:32].clone()
    target = tmp_path / "model.safetensors"
    save_file(tensors, target, metadata={"anifacediff": json.dumps(header_of(path))})
    with pytest.raises(
        InputError, match=r"expected vae\.encoder\.0\.weight \[64, 3, 3, 3\], found \[32, 3, 3, 3\]"
    ):
        load_checkpoint(target).load_into(AutoEncoder(), "vae")


def test_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no part 'discriminator'"):
        save_checkpoint(tmp_path / "x.safetensors", {"discriminator": {}}, CONFIG, head="")


def test_failed_write_keeps_the_old_file(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("anifacediff_core.storage.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(target, {"vae": {"weight": torch.zeros(1)}}, CONFIG, head="")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["small", "stable"])
def test_any_autoencoder_comes_back(tmp_path: Path, kind: str) -> None:
    made = AutoEncoder() if kind == "small" else StableAutoEncoder((32, 64), layers=1)
    randomize(made, 5)
    weights = (made if kind == "small" else made.network).state_dict()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, {"vae": weights}, NetworkConfig.tiny(), head="x", dtype=torch.float32)
    loaded = load_autoencoder(load_checkpoint(path))
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    latents = loaded.encode(images)
    assert latents.shape == ((1, 4, 4, 4) if kind == "small" else (1, 4, 16, 16))
    assert torch.equal(latents, made.encode(images))
    assert torch.equal(loaded.decode(latents), made.decode(latents))


@torch.no_grad()
def test_the_stable_autoencoder_takes_pictures_as_diffusers_does() -> None:
    from diffusers.image_processor import VaeImageProcessor

    made = randomize(StableAutoEncoder((32, 64), layers=1), 7)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(8))
    processor = VaeImageProcessor(vae_scale_factor=2)
    latents = made.network.encode(processor.preprocess(images)).latent_dist.mean
    assert torch.allclose(made.encode(images), latents, atol=1e-5)
    pictures = processor.postprocess(made.network.decode(latents).sample, output_type="pt")
    assert torch.allclose(made.decode(latents).clamp(0, 1), pictures, atol=1e-5)

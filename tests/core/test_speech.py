"""A motion from a voice alone: what the bundled network hears in the example, and the gestures around it."""

from __future__ import annotations

import json
import shutil
from ctypes.util import find_library
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.lab.cli import main
from anifacediff_core.lab.speech.measuring import lip_gap, measure_one
from anifacediff_core.lab.speech.synthesis import Espeak, Phoneme, Utterance, flite
from anifacediff_core.lab.speech.texts import SENTENCES
from anifacediff_core.lab.speech.training import HELD_OUT, heard
from anifacediff_core.lab.speech.visemes import LIPS, letters_of, lips, targets
from anifacediff_core.media import is_sound
from anifacediff_core.sound import read_sound, resampled
from anifacediff_core.speech import motion as module
from anifacediff_core.speech.gestures import gestures, prosody
from anifacediff_core.speech.lips import close_lips
from anifacediff_core.speech.motion import SpeechSettings, at_rate, file_to_motion, speech_to_motion
from anifacediff_core.speech.network import ASSET, CHANNELS, RATE, SpeechNetwork, load_network
from anifacediff_core.video import probe

EXAMPLES = ASSET.parent / "examples"
SPEECH = EXAMPLES / "speech.ogg"
FPS = Fraction(24)
MOUTH = ("jaw", "mouth")

needs_espeak = pytest.mark.skipif(find_library("espeak-ng") is None, reason="eSpeak NG is not installed")
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


@pytest.fixture(scope="module")
def network() -> SpeechNetwork:
    return load_network()


@pytest.fixture(scope="module")
def example() -> Utterance:
    """The example, of a voice that took no part in training, with the times of its phonemes."""
    sound = read_sound(SPEECH, Fraction(0), 60.0)
    assert sound is not None
    told = json.loads(Path(__file__).with_name("speech_phonemes.json").read_text(encoding="utf-8"))
    return Utterance(at_rate(torch.from_numpy(sound[0]), sound[1])[0], tuple(Phoneme(*each) for each in told))


def mouth_of(head: HeadModel, expression: Tensor) -> Tensor:
    return expression[:, [name.startswith(MOUTH) for name in head.expression_names]]


def silence(seconds: float) -> Tensor:
    return torch.zeros(1, round(seconds * RATE))


# ---- lips


def test_the_weights_are_small() -> None:
    assert ASSET.stat().st_size < 2**20


def test_lips_and_jaw_follow_a_recorded_voice_that_was_not_trained_on(
    head: HeadModel, network: SpeechNetwork, example: Utterance
) -> None:
    said = measure_one(example, head, network, lambda waves: waves)
    assert said.jaw_r > 0.6
    assert said.closures == 11 and said.closed >= 9
    assert said.opened >= 0.8 * said.openings > 10
    assert said.silence < 0.5


@needs_espeak
def test_lips_and_jaw_follow_variants_that_were_not_trained_on(
    head: HeadModel, network: SpeechNetwork
) -> None:
    espeak = Espeak()
    said = [
        measure_one(espeak.speak(text, f"en-us+{voice}"), head, network, lambda waves: waves)
        for voice, text in zip(HELD_OUT[:4], SENTENCES, strict=False)
    ]
    assert sum(each.jaw_r for each in said) / len(said) > 0.7
    assert sum(each.closed for each in said) >= 0.9 * sum(each.closures for each in said) > 20
    assert sum(each.opened for each in said) >= 0.8 * sum(each.openings for each in said)
    assert max(each.silence for each in said) < 0.5


def test_loudness_changes_little(head: HeadModel, network: SpeechNetwork, example: Utterance) -> None:
    wave = example.wave[None]
    loud, quiet = (
        speech_to_motion(wave * gain, RATE, head, FPS, network=network).expression for gain in (1.0, 0.05)
    )
    assert float((mouth_of(head, loud) - mouth_of(head, quiet)).abs().mean()) < 0.02


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-3])
def test_silence_is_still(head: HeadModel, network: SpeechNetwork, noise: float) -> None:
    torch.manual_seed(1)
    wave = silence(4.0) + noise * torch.randn(1, 4 * RATE)
    made = speech_to_motion(wave, RATE, head, FPS, network=network)
    assert float(lip_gap(made, head).abs().max()) < 0.5


def test_a_long_sound_is_read_in_parts_without_seams(
    head: HeadModel, network: SpeechNetwork, example: Utterance, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    whole = speech_to_motion(example.wave[None], RATE, head, FPS, network=network)
    monkeypatch.setattr(module, "CHUNK", 60)
    parts = speech_to_motion(
        example.wave[None], RATE, head, FPS, network=network, progress=lambda *step: steps.append(step)
    )
    assert len(steps) > 5 and steps[-1][0] == steps[-1][1]
    torch.testing.assert_close(parts.expression, whole.expression, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rate", [Fraction(12), Fraction(30000, 1001), Fraction(60)])
def test_lips_meet_at_any_rate(
    head: HeadModel, network: SpeechNetwork, example: Utterance, rate: Fraction
) -> None:
    made = speech_to_motion(example.wave[None], RATE, head, rate, network=network)
    assert len(made) == round(len(example.wave) / RATE * rate)
    time, gap = torch.arange(len(made)) / float(rate), lip_gap(made, head)
    half = 0.5 / float(rate) + 0.02
    closed = [
        float(gap[(time > each.start - half) & (time < each.end + half)].min()) < 1.0
        for each in letters_of(example.phonemes)
        if each.sound in LIPS
    ]
    assert sum(closed) >= 0.9 * len(closed)


def test_channels_and_rate_of_the_sound_do_not_matter(
    head: HeadModel, network: SpeechNetwork, example: Utterance
) -> None:
    there = speech_to_motion(example.wave[None], RATE, head, FPS, network=network)
    high = torch.from_numpy(resampled(example.wave.numpy(), RATE, 44_100))
    stereo = speech_to_motion(torch.stack([high, high]), 44_100, head, FPS, network=network)
    assert len(stereo) == len(there)
    assert float((mouth_of(head, stereo.expression) - mouth_of(head, there.expression)).abs().mean()) < 0.02


def test_lips_that_close_are_shut_whatever_the_jaw(head: HeadModel) -> None:
    names = head.expression_names
    face = torch.zeros(3, len(names))
    face[:, names.index("jawOpen")] = torch.tensor([0.2, 0.5, 0.9])
    neutral = head.neutral(3)
    shut = close_lips(face, torch.ones(3, 1), names)
    assert (shut[:, names.index("jawOpen")] > 0).all()
    gap = lip_gap(type(neutral)(**{**vars(neutral), "expression": shut}), head)
    assert float(gap.abs().max()) < 0.5
    assert torch.equal(close_lips(face, torch.zeros(3, 1), names), face)


# ---- settings and gestures


def test_settings_reach_their_parts(head: HeadModel, network: SpeechNetwork, example: Utterance) -> None:
    def made(**settings: float) -> tuple[Tensor, Tensor]:
        found = speech_to_motion(
            example.wave[None],
            RATE,
            head,
            FPS,
            SpeechSettings(**settings),
            network=network,  # type: ignore[arg-type]
        )
        return found.expression, found.pose

    names = head.expression_names
    face, pose = made()
    calm, still = made(mouth=0, head=0, brows=0, blinks=0)
    assert face[:, names.index("eyeBlinkLeft")].max() > 0.8 and not calm[:, names.index("eyeBlinkLeft")].any()
    assert face[:, names.index("browInnerUp")].max() > 0.1 and not calm[:, names.index("browInnerUp")].any()
    assert pose[:, 3:6].abs().max() > 0.03 and not still[:, :9].any()
    assert not mouth_of(head, calm).any()
    other, turned = made(seed=7)
    assert torch.equal(mouth_of(head, other), mouth_of(head, face)) and not torch.allclose(turned, pose)
    assert torch.equal(made(seed=7)[1], turned)
    wide, _ = made(mouth=1.5)
    assert wide[:, names.index("jawOpen")].mean() > 1.2 * face[:, names.index("jawOpen")].mean()


def loudness(*phrases: tuple[float, float], seconds: float = 20.0) -> Tensor:
    """50 values a second: four syllables a second within phrases."""
    time = torch.arange(round(50 * seconds)) / 50
    inside = sum(((time > start) & (time < end)).float() for start, end in phrases)
    syllables = torch.sin(2 * np.pi * 4 * time) * torch.sin(2 * np.pi * 0.7 * time)
    return 0.2 + inside * (0.65 + 0.12 * syllables)


def test_prosody_finds_phrases_and_accents() -> None:
    found = prosody(loudness((2, 6), (8, 9), (9.2, 14)), 50)
    torch.testing.assert_close(found.begins, torch.tensor([2.0, 8.0]), atol=0.15, rtol=0)
    torch.testing.assert_close(found.ends, torch.tensor([6.0, 14.0]), atol=0.15, rtol=0)
    assert len(found.accents) >= 4 and (found.accents.diff() > 0.39).all()
    inside = [any(start < accent < end for start, end in ((2, 6), (8, 14))) for accent in found.accents]
    assert all(inside)
    assert len(prosody(torch.full((100,), 0.2), 50).accents) == 0


def test_gestures_keep_to_what_people_do() -> None:
    time = torch.arange(20 * 60) / 60
    made = gestures(loudness((2, 6), (8, 14)), 50, time, seed=3)
    shut = (made.lids > 0.5).float()
    blinks = int((shut.diff() > 0).sum())
    assert 3 <= blinks <= 14 and float(shut.mean()) < 0.15
    assert float(made.angles.abs().max()) < 0.4 and float(made.angles.diff(dim=0).abs().max()) < 0.03
    assert not made.brows[time < 1.2].any() and made.brows[(time > 2) & (time < 14)].max() > 0.2
    assert float(made.glances[time < 1.5].abs().max()) == 0
    often = gestures(loudness((2, 6), (8, 14)), 50, time, seed=3, blinks=3.0)
    assert int(((often.lids > 0.5).float().diff() > 0).sum()) > blinks


def test_an_instant_of_sound_has_a_frame(head: HeadModel, network: SpeechNetwork) -> None:
    made = speech_to_motion(silence(0.01), RATE, head, FPS, network=network)
    assert len(made) == 1 and torch.isfinite(made.expression).all()


# ---- refusals


def test_what_is_no_sound_is_refused(head: HeadModel, network: SpeechNetwork) -> None:
    for wave in (torch.zeros(1, 0), torch.full((1, 100), torch.nan), torch.full((2, 9), torch.inf)):
        with pytest.raises(InputError, match=r"^The sound .*\.$"):
            speech_to_motion(wave, RATE, head, FPS, network=network)
    with pytest.raises(InputError, match="empty"):  # less than a sample at the network's rate
        speech_to_motion(torch.zeros(1, 1), 192_000, head, FPS, network=network)
    with pytest.raises(InputError, match="mouth"):
        speech_to_motion(silence(1), RATE, head, FPS, SpeechSettings(mouth=torch.nan), network=network)
    with pytest.raises(InputError, match="frames"):
        speech_to_motion(silence(2), RATE, head, Fraction(10**6), network=network)


def test_a_damaged_file_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    for name in ("bad.safetensors", "absent.safetensors"):
        with pytest.raises(InputError, match=rf"^{name} .*\.$"):
            load_network(tmp_path / name)


# ---- files


def test_sound_files_are_told_from_videos(tmp_path: Path) -> None:
    assert is_sound(SPEECH) and not is_sound(EXAMPLES / "driving.mp4")
    assert not is_sound(EXAMPLES / "source.png") and not is_sound(tmp_path / "absent.wav")


def test_the_first_frames_of_a_file(head: HeadModel) -> None:
    whole = file_to_motion(SPEECH, head, FPS, SpeechSettings())
    assert len(file_to_motion(SPEECH, head, FPS, SpeechSettings(), most=10)) == 10
    assert len(whole) == pytest.approx(8.5 * 24, abs=2)
    with pytest.raises(InputError, match="no sound"):
        file_to_motion(EXAMPLES / "turning.mp4", head, FPS, SpeechSettings())


def test_the_command_lets_a_picture_speak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "talk.mp4"
    given = {"--source": EXAMPLES / "source.png", "--driving": SPEECH, "--out": out, "--max-frames": 4}
    options = [str(part) for pair in given.items() for part in pair]
    assert main(["reenact", *options, "--size", "64", "--device", "cpu"]) == 0
    found = probe(out)
    assert (found.frames, found.rate, found.has_audio) == (4, 24, True)
    assert "speaks speech.ogg" in capsys.readouterr().out


# ---- the lab


def test_phonemes_become_mouths(head: HeadModel) -> None:
    names = head.expression_names
    spoken = [
        Phoneme("m", 0.2, 0.3),
        Phoneme("ɑː", 0.3, 0.6),
        Phoneme("p", 0.6, 0.7),
        Phoneme("uː", 0.7, 1.0),
        Phoneme("f", 1.0, 1.1),
        Phoneme("aɪ", 1.1, 1.4),
        Phoneme("", 1.4, 2.0),
    ]
    assert [each.sound for each in letters_of(spoken)] == list("mɑpufaɪ")
    assert letters_of(spoken)[-1].start == pytest.approx(1.25)
    time = torch.arange(100) / 50
    face, closure = lips(spoken, time, names)
    at = {name: face[round(50 * second)] for name, second in (("ɑ", 0.45), ("u", 0.85), ("f", 1.04))}
    jaw, pucker = names.index("jawOpen"), names.index("mouthPucker")
    assert at["ɑ"][jaw] > 0.5 and at["u"][jaw] < 0.3 and at["u"][pucker] > 0.5 and at["ɑ"][pucker] == 0
    assert at["f"][names.index("mouthRollLower")] > 0.3
    assert (closure[[12, 32], 0] == 1).all() and closure[22] == 0
    assert not face[80:].any() and not face[:5].any()
    wanted = targets(spoken, time)
    assert wanted.shape == (100, len(CHANNELS))
    torch.testing.assert_close(wanted[:, 0], face[:, jaw])
    assert (wanted[[12, 32], -1] > 0.99).all() and not wanted[[22, 43, 52], -1].any()


def test_accents_over_letters_do_not_hide_them() -> None:
    spoken = [Phoneme("ɔ\u0303", 0, 1), Phoneme("kʲ", 1, 2), Phoneme("ã", 2, 3)]
    assert [each.sound for each in letters_of(spoken)] == ["ɔ", "k", "a"]


def test_rooms_and_noise_leave_the_times() -> None:
    torch.manual_seed(2)
    waves = 0.2 * torch.randn(4, RATE)
    spoiled = heard(waves)
    assert spoiled.shape == waves.shape and float(spoiled.abs().max()) <= 1
    for clean, heard_ in zip(waves, spoiled, strict=True):
        spectra = [torch.fft.rfft(each, 2 * len(clean)) for each in (clean, heard_)]
        lag = int(torch.fft.irfft(spectra[1] * spectra[0].conj()).argmax())
        assert min(lag, 2 * len(clean) - lag) < 0.005 * RATE


@needs_espeak
def test_espeak_tells_when_it_says_what() -> None:
    spoken = Espeak().speak("Mama.", "en-us+f3")
    sounds = [each.sound for each in spoken.phonemes if each.sound]
    assert sounds[0] == sounds[2] == "m" and len(sounds) == 4
    starts = [each.start for each in spoken.phonemes]
    assert starts == sorted(starts) and 0.2 < len(spoken.wave) / RATE < 2
    with pytest.raises(InputError, match="voice"):
        Espeak().speak("Mama.", "xx-none")


@needs_flite
def test_flite_tells_when_it_says_what() -> None:
    spoken = flite("Mama.", "slt")
    assert [each.sound for each in spoken.phonemes if each.sound][:3:2] == ["m", "m"]
    assert spoken.phonemes[-1].end == pytest.approx(len(spoken.wave) / RATE, abs=0.1)


@needs_flite
@needs_espeak
def test_training_writes_weights_that_load(tmp_path: Path) -> None:
    out = tmp_path / "speech.safetensors"
    small = {"--utterances": 3, "--steps": 4, "--batch": 2, "--out": out}
    assert main(["speech", "train", *(str(part) for pair in small.items() for part in pair)]) == 0
    assert isinstance(load_network(out), SpeechNetwork)

"""FID against hand-computed cases, torch-fidelity and torchmetrics, and the Inception file."""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torch_fidelity", reason="the extra eval is not installed")

from torch_fidelity import feature_extractor_inceptionv3 as theirs
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from anifacediff_core.errors import InputError
from anifacediff_core.lab.evaluation.frechet import Inception, RunningGaussian, frechet_distance
from harness.flame import write_hostile


def gaussian(features: Tensor, part: int = 7) -> RunningGaussian:
    found = RunningGaussian()
    for some in features.split(part):
        found.update(some)
    return found


def vectors(count: int, features: int, seed: int) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    mix = torch.randn(features, features, generator=noise, dtype=torch.float64) / features**0.5
    return torch.randn(count, features, generator=noise, dtype=torch.float64) @ mix + 0.1 * seed


def test_a_distance_computed_by_hand() -> None:
    # means 1 and 5, variances 2 and 8: 4² + 2 + 8 - 2 √16
    line = [gaussian(torch.tensor([[0.0], [2.0]])), gaussian(torch.tensor([[3.0], [7.0]]))]
    assert frechet_distance(*line) == pytest.approx(18, abs=1e-6)
    # covariances diag(2, 8) and diag(8, 2) · 4/3: roots multiply to diag(4, 4) · 2/√3
    cross = torch.tensor([[1.0, 2], [1, -2], [-1, 2], [-1, -2]])
    scale = 4 / 3  # unbiased covariance of `cross` is diag(4/3, 16/3)
    distance = frechet_distance(gaussian(cross), gaussian(cross.flip(1) + torch.tensor([3.0, 0])))
    assert distance == pytest.approx(9 + 2 * (scale + 4 * scale) - 2 * (2 * scale * 2), abs=1e-6)


def test_parts_give_the_mean_and_covariance_of_the_whole() -> None:
    features = vectors(100, 12, 1) + 1e4  # far from zero, where sums of squares would lose all digits
    for part in (1, 9, 100):
        found = gaussian(features, part)
        np.testing.assert_allclose(found.mean, features.numpy().mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.covariance, np.cov(features.numpy(), rowvar=False), atol=1e-9)
        assert found.count == 100


@pytest.mark.parametrize(("count", "features"), [(300, 64), (500, 200)])
def test_parity_with_torch_fidelity(count: int, features: int) -> None:
    one, two = vectors(count, features, 1), vectors(count + 30, features, 2)
    statistics = [fid_features_to_statistics(rows) for rows in (one, two)]
    expected = fid_statistics_to_metric(*statistics, False)[KEY_METRIC_FID]
    assert frechet_distance(gaussian(one), gaussian(two)) == pytest.approx(expected, rel=1e-6)


def test_parity_where_there_are_fewer_pictures_than_features() -> None:
    one, two = vectors(20, 64, 1), vectors(24, 64, 2)
    statistics = [fid_features_to_statistics(rows) for rows in (one, two)]
    expected = fid_statistics_to_metric(*statistics, False)[KEY_METRIC_FID]
    assert frechet_distance(gaussian(one), gaussian(two)) == pytest.approx(expected, rel=1e-5)


def test_parity_with_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.image.fid")

    class Flat(nn.Module):
        num_features = 48

        def forward(self, pictures: Tensor) -> Tensor:
            return pictures.flatten(1)

    one, two = (vectors(n, 48, seed).view(n, 3, 4, 4) for n, seed in ((200, 1), (150, 2)))
    metric = image.FrechetInceptionDistance(feature=Flat()).set_dtype(torch.float64)
    metric.update(one, real=True)
    metric.update(two, real=False)
    found = frechet_distance(gaussian(one.flatten(1)), gaussian(two.flatten(1)))
    assert found == pytest.approx(float(metric.compute()), rel=1e-6)


def test_a_set_is_at_no_distance_from_itself_and_one_picture_has_none() -> None:
    for count in (10, 300):
        features = vectors(count, 64, 3)
        trace = float(gaussian(features).covariance.trace())
        assert frechet_distance(gaussian(features), gaussian(features.flip(0), 50)) < 1e-6 * trace
    assert math.isnan(frechet_distance(gaussian(torch.rand(1, 4)), gaussian(torch.rand(5, 4))))


# ---- the network


def no_network(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("something reaches for the network")


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """torch-fidelity's network with random weights."""

    class Untrained(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
            return None

    patch = pytest.MonkeyPatch()
    patch.setattr(theirs, "load_state_dict_from_url", lambda *arguments, **options: {})
    torch.manual_seed(0)
    network = Untrained("reference", ["2048"])
    patch.undo()
    for layer in network.modules():  # or the signal fades on its way
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return network


@pytest.fixture(scope="module")
def file(reference: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-6726825d.pth"
    weights = {k: v for k, v in reference.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(weights, path)
    return path


def test_the_inception_file_gives_torch_fidelitys_features_offline(
    file: Path, reference: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(theirs, "load_state_dict_from_url", no_network)
    pixels = torch.randint(0, 256, (2, 3, 40, 52), dtype=torch.uint8)
    with torch.no_grad():
        expected = reference(pixels)[0]
    found = Inception.load(file)(pixels.float() / 255)
    assert found.shape == (2, 2048)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # the pictures do matter
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_other_networks_are_refused_by_what_they_lack(file: Path, tmp_path: Path) -> None:
    weights = torch.load(file, weights_only=True)
    torch.save({**weights, "fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pth")
    with pytest.raises(InputError, match=r"torchvision\.pth is not the Inception network"):
        Inception.load(tmp_path / "torchvision.pth")
    torch.save({**weights, "Mixed_5b.branch1x1.bn.bias": torch.zeros(3)}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"odd\.pth does not fit.*Mixed_5b\.branch1x1\.bn\.bias"):
        Inception.load(tmp_path / "odd.pth")
    with pytest.raises(InputError, match="There is no file"):
        Inception.load(tmp_path / "none.pth")


def test_nothing_in_a_hostile_inception_file_is_run(tmp_path: Path) -> None:
    write_hostile(tmp_path / "hostile.pth", tmp_path / "evidence")
    with pytest.raises(InputError, match=r"hostile\.pth"):
        Inception.load(tmp_path / "hostile.pth")
    assert not (tmp_path / "evidence").exists()

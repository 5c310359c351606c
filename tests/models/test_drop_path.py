"""Stochastic depth against timm's and against its definition."""

from __future__ import annotations

import pytest
import timm
import torch

from cspnet.errors import ModelError
from cspnet.models import create_model
from cspnet.models.layers import Shortcut, set_drop_path


def test_probabilities_are_timms() -> None:
    with torch.device("meta"):
        ours = create_model("cspdarknet53", drop_path_rate=0.3)
        theirs = timm.create_model("cspdarknet53", drop_path_rate=0.3)
    probs = [module.drop_path.p for module in ours.modules() if isinstance(module, Shortcut)]
    expected = [block.drop_path.drop_prob if j or i else 0.0 for i, s in enumerate(theirs.stages)
                for j, block in enumerate(s.blocks)]  # fmt: skip
    assert probs == pytest.approx(expected)
    assert probs[-1] == pytest.approx(0.3)


def test_the_network_is_otherwise_the_same() -> None:
    plain, deep = (create_model("cspdarknet_tiny", 5, zero_init_last=False, drop_path_rate=rate) for rate in (0.0, 0.9))
    deep.load_state_dict(plain.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), deep.eval()(images))
        plain.train(), deep.train()
        assert not torch.equal(plain(images), deep(images))


def test_a_picture_keeps_its_block_or_loses_it_whole() -> None:
    shortcuts = torch.nn.Sequential(Shortcut(), Shortcut())
    set_drop_path(shortcuts, 0.4)
    torch.manual_seed(0)
    x, earlier = torch.ones(4000, 2, 3, 3), torch.zeros(4000, 2, 3, 3)
    assert torch.equal(shortcuts[0](x, earlier), x)  # the first block of a network is never left out
    out = shortcuts[1](x, earlier)
    kept = out[:, 0, 0, 0] > 0
    # What is kept is scaled up, so that the mean stays.
    torch.testing.assert_close(out, kept.float().view(-1, 1, 1, 1).expand_as(out) / 0.6)
    assert kept.float().mean().item() == pytest.approx(0.6, abs=4 * (0.24 / 4000) ** 0.5)


@pytest.mark.parametrize(("name", "rate", "said"), [
    ("cspdarknet_tiny", 1.0, "drop_path_rate=1.0"),
    ("cspdarknet_tiny", -0.1, "drop_path_rate=-0.1"),
    ("densenet121", 0.1, "residual blocks"),
])  # fmt: skip
def test_a_rate_that_cannot_be_is_refused(name: str, rate: float, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        create_model(name, 5, drop_path_rate=rate)

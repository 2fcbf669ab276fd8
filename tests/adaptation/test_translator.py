from __future__ import annotations

import pytest
import torch

from worker.adaptation.translator import _Clamp, build, replicate


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (37, 45)])
def test_an_untrained_residual_translator_replicates_exactly(channels, size):
    x = torch.rand(2, channels, *size)
    assert torch.equal(build("residual", channels)(x), replicate(x))


def test_inverted_it_starts_from_the_negative_and_is_the_same_network_on_it():
    T, x = build("residual", 1), torch.rand(2, 1, 16, 16)
    T.inverted.fill_(True)
    assert torch.equal(T(x), replicate(1 - x))
    for parameter in T.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    inverted = T(x)
    again = build("residual", 1)
    again.load_state_dict(T.state_dict())
    assert torch.equal(again(x), inverted), "its weights tell that it is"
    again.inverted.fill_(False)
    assert torch.equal(again(1 - x), inverted)
    assert not torch.equal(again(x), inverted)


@pytest.mark.parametrize("kind", ["residual", "paper"])
@pytest.mark.parametrize("channels", [1, 3])
def test_translations_are_rgb_of_the_same_size(kind, channels):
    T = build(kind, channels)
    for parameter in T.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    y = T(torch.rand(2, channels, 37, 30))
    assert y.shape == (2, 3, 37, 30)
    assert y.min() >= 0
    assert y.max() <= 1


@pytest.mark.parametrize("kind", ["residual", "paper"])
def test_a_translator_learns_to_invert_an_image(kind):
    torch.manual_seed(0)
    T, x = build(kind, 1), torch.rand(8, 1, 16, 16)
    adam = torch.optim.Adam(T.parameters(), 5e-3)
    start = None
    for _ in range(150):
        loss = (T(x) - (1 - replicate(x))).square().mean()
        start = start or loss.item()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss.item() < 0.1 * start


def test_only_the_paper_translator_sees_the_other_images_of_a_batch():
    x = torch.rand(6, 1, 16, 16)
    for kind, alone in (("residual", True), ("paper", False)):
        torch.manual_seed(0)
        T = build(kind, 1).train()
        torch.nn.init.normal_(list(T.parameters())[-2], std=0.1)
        assert T.alone is alone
        assert torch.allclose(T(x)[:2], T(x[:2]), atol=1e-6) is alone


def test_a_pixel_outside_the_range_can_return_and_is_not_pushed_further():
    y = torch.tensor([-0.5, -0.5, 1.5, 1.5, 0.5], requires_grad=True)
    (_Clamp.apply(y) * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])).sum().backward()
    assert y.grad is not None
    assert y.grad.tolist() == [0.0, -1.0, 1.0, 0.0, 1.0]  # descent moves against the gradient


def test_replicate_repeats_one_channel_and_keeps_three():
    one, three = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    assert torch.equal(replicate(one), torch.cat([one] * 3, 1))
    assert replicate(three) is three

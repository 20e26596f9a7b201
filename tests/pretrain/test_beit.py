import pytest
import torch
import torch.nn.functional as F

from scott_models import SCOTT
from scott_models.pretrain.beit import BEiT
from scott_models.pretrain.vocabulary import Vocabulary

WORDS = 20


@pytest.fixture(params=["sparse_conv", "patch"])
def objective(request):
    encoder = SCOTT(
        img_size=64, embed_dim=32, depth=2, num_heads=2, tokenizer=request.param, use_mask_token=True
    )  # fmt: skip
    vocabulary = Vocabulary(16, WORDS)
    vocabulary.words = F.normalize(torch.randn(WORDS, 768), dim=1)
    return BEiT(encoder, vocabulary)


def test_inputs(objective):
    crops = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    images, visible, hidden, tokens = objective.inputs(crops, torch.Generator().manual_seed(0))
    again = objective.inputs(crops, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip((images, visible, hidden, tokens), again))
    assert (~visible).sum(dim=1).tolist() == [7] * 4  # ceil(0.4 * 16)
    assert all(torch.equal(places, (~seen).nonzero().flatten()) for places, seen in zip(hidden, visible))
    assert tokens.shape == (4, 7)


def test_tokens_are_of_the_hidden_patches(objective):
    objective.views = lambda crops, draws: (torch.zeros(4, 3, 64, 64), crops.float())
    crops = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    _, visible, _, tokens = objective.inputs(crops, torch.Generator().manual_seed(0))
    assert torch.equal(tokens, objective.vocabulary(crops.float())[~visible].view(4, -1))  # those of the target view


def test_nothing_hidden_is_seen(objective, visible):
    student = objective.student.eval()
    hidden = (~visible).nonzero()[:, 1].view(2, -1)
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    logits = student(images, visible, hidden)
    cells = visible.view(2, 1, 4, 4).repeat_interleave(16, dim=-1).repeat_interleave(16, dim=-2)
    for noise in (torch.randn(2, 3, 64, 64), torch.full((2, 3, 64, 64), float("nan"))):
        assert torch.equal(student(torch.where(cells, images, noise), visible, hidden), logits)
        assert not torch.equal(student(torch.where(cells, images + 1, images), visible, hidden), logits)
    (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    assert (gradient.abs().sum(dim=1, keepdim=True)[~cells] == 0).all()
    assert gradient.abs().sum() > 0


def test_the_loss_is_the_hidden_patches_cross_entropy(objective, visible):
    images, tokens = torch.randn(2, 3, 64, 64), torch.randint(WORDS, (2, 16))
    hidden = (~visible).nonzero()[:, 1].view(2, -1)
    student = objective.student.eval()
    with torch.no_grad():
        everywhere = student.head(student.norm(student.encoder.forward_tokens(images, visible)))
        losses = -everywhere.log_softmax(dim=-1).gather(2, tokens[..., None])[..., 0]
        loss = objective(images, visible, hidden, tokens.gather(1, hidden))
    torch.testing.assert_close(loss, losses[~visible].mean())


def test_it_needs_a_mask_token():
    with pytest.raises(ValueError, match="use_mask_token=True"):
        BEiT(SCOTT(img_size=64, embed_dim=32, depth=1, num_heads=2), Vocabulary(16, WORDS))

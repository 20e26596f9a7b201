import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scott_models import SCOTT
from scott_models.data.random_streams import Draws
from scott_models.pretrain.diet import DIET


@pytest.fixture
def objective():
    return DIET(SCOTT(img_size=32, embed_dim=32, depth=1, num_heads=2), images=20).train()


def draws(images):
    return Draws.keyed(np.uint64(1), torch.zeros(len(images), dtype=torch.long), torch.tensor(images))


def test_inputs_say_which_images_they_are(objective):
    crops = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    images, numbers = objective.inputs(crops, draws([4, 19, 0]))
    assert images.shape == (3, 3, 32, 32)
    assert numbers.tolist() == [4, 19, 0]
    planned = objective.inputs(crops, objective.drawing(draws([4, 19, 0])))
    assert all(torch.equal(a, b) for a, b in zip(planned, (images, numbers), strict=True))
    with pytest.raises(ValueError, match="expected those of known images"):
        objective.inputs(crops, torch.Generator())


def test_the_loss_by_hand(objective):
    images, numbers = torch.randn(3, 3, 32, 32), torch.tensor([4, 19, 0])
    logits = objective.student.head(objective.encoders["context"].forward_features(images).mean(dim=1))
    shares = torch.full((3, 20), 0.8 / 20)
    shares[torch.arange(3), numbers] += 0.2
    expected = -(shares * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(objective(images, numbers), expected)


def test_it_learns_to_tell_images_apart(objective):
    images, numbers = torch.randn(8, 3, 32, 32), torch.arange(8)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(30):
        loss = objective(images, numbers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (objective.student(images).argmax(dim=1) == numbers).all()

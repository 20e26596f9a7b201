import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from scott_models import SCOTT
from scott_models.errors import RecipeError
from scott_models.models import masked_conv, tokenizer
from scott_models.models.masked_conv import hide
from scott_models.models.scott import find_places
from scott_models.pretrain import Recipe
from scott_models.pretrain.build import build_objective
from scott_models.pretrain.recipe import OBJECTIVES
from scott_models.pretrain.splitmask import Decoder, SplitMask, info_nce
from scott_models.pretrain.vocabulary import Vocabulary

WORDS = 20


def build(tokenizer="sparse_conv", dim=0, **settings):
    encoder = SCOTT(img_size=64, embed_dim=32, depth=2, num_heads=2, tokenizer=tokenizer)
    decoder = Decoder(32, (4, 4), num_heads=2, encoder_depth=2, dim=dim)
    vocabulary = Vocabulary(16, WORDS)
    vocabulary.words = F.normalize(torch.randn(WORDS, 768), dim=1)
    return SplitMask(encoder, decoder, vocabulary, **settings)


@pytest.fixture(params=["sparse_conv", "patch"])
def objective(request):
    return build(request.param)


@pytest.fixture
def first():
    """Draw the first halves of two images of 4 x 4 patches."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 16, generator=generator).argsort(dim=1) < 8


def pixels(patches):
    """Upsample a mask of patches, bool (B, 16), to pixels, (B, 1, 64, 64)."""
    return patches.view(-1, 1, 4, 4).repeat_interleave(16, dim=-1).repeat_interleave(16, dim=-2)


def test_no_half_reaches_the_other(objective, first):
    """Check that a patch's prediction depends on the other half only, even if its own half is NaN."""
    student = objective.student.eval()
    images = torch.randn(2, 3, 64, 64)
    logits, one, other = student(images, first)
    for noise in (torch.randn(2, 3, 64, 64), torch.full((2, 3, 64, 64), float("nan"))):
        changed = torch.where(pixels(first), images, noise)  # only the second half changes
        ours, ones, others = student(changed, first)
        assert torch.equal(ours[~first], logits[~first])
        assert torch.equal(ones, one)
        assert not torch.equal(ours[first], logits[first])
        assert not torch.equal(others, other)


def test_no_gradient_crosses(objective, first):
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    logits, one, other = objective.student(images, first)
    of_second = torch.autograd.grad(logits[~first].square().sum() + one.square().sum(), images, retain_graph=True)[0]
    assert (of_second.abs().sum(dim=1, keepdim=True)[~pixels(first)] == 0).all()
    assert of_second.abs().sum() > 0
    of_first = torch.autograd.grad(logits[first].square().sum() + other.square().sum(), images)[0]
    assert (of_first.abs().sum(dim=1, keepdim=True)[pixels(first)] == 0).all()


def stages(objective, images, first, monkeypatch, removed=None):
    """Record (map, visible) of every stage of the tokenizer while the halves are encoded: twice five."""
    maps = []

    def spy(x, visible):
        kept = x if len(maps) == removed else hide(x, visible)
        maps.append((kept, visible))
        return kept

    for module in (masked_conv, tokenizer):
        monkeypatch.setattr(module, "hide", spy)
    objective.student(images, first)
    return maps


def leaks(map_, visible):
    scale = map_.shape[-1] // visible.shape[-1]
    cells = visible.repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)
    return bool((map_.masked_fill(cells, 0) != 0).any())


def test_the_other_half_is_hidden_in_every_stage(first, monkeypatch):
    maps = stages(build(), torch.randn(2, 3, 64, 64), first, monkeypatch)
    assert [map_.shape[-1] for map_, _ in maps] == 2 * [64, 32, 16, 8, 4]
    assert all(torch.equal(visible.flatten(1), half) for (_, visible), half in zip(maps, 5 * [first] + 5 * [~first]))
    assert not any(leaks(*stage) for stage in maps)


@pytest.mark.parametrize("removed", range(10))
def test_every_stage_would_show_a_leak(first, monkeypatch, removed):
    maps = stages(build(), torch.randn(2, 3, 64, 64), first, monkeypatch, removed)
    assert leaks(*maps[removed])


def test_patches_are_decoded_where_they_are(objective, first):
    """Compare with images that are put together patch by patch."""
    decoder = objective.student.decoder.eval()
    encoded = torch.randn(2, 8, 32)
    whole = decoder.mask_token.detach().expand(2, 16, 32).clone()
    for image in range(2):
        for number, place in enumerate(first[image].nonzero().flatten().tolist()):
            whole[image, place] = encoded[image, number]
    expected = F.layer_norm(decoder.blocks(whole + decoder.pos_embed), (32,), eps=1e-5)
    torch.testing.assert_close(decoder(encoded, find_places(first)), expected)


class Waits(TorchDispatchMode):
    """Record operations whose result, or its shape, the host must wait for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("masked_select", "nonzero", "_local_scalar_dense"):
            self.found.append(function)
        return function(*args, **(kwargs or {}))


def test_a_step_never_waits_for_its_device(first):
    objective = build("patch")
    tokens = torch.randint(0, WORDS, (2, 16))
    with Waits() as waits:
        objective(torch.randn(2, 3, 64, 64), tokens, first, find_places(first), find_places(~first))
    assert len(waits.found) == 2  # the two calls of find_places in the line above
    places = find_places(first), find_places(~first)
    with Waits() as waits:
        objective(torch.randn(2, 3, 64, 64), tokens, first, *places).backward()
    assert waits.found == []


def test_places_that_are_known_change_nothing(objective, first):
    student, images = objective.student.eval(), torch.randn(2, 3, 64, 64)
    known = student(images, first, find_places(first), find_places(~first))
    assert all(torch.equal(a, b) for a, b in zip(known, student(images, first), strict=True))


def test_halves_are_encoded_alone(objective, first, monkeypatch):
    """Check that eight patches of an image at a time go through the blocks."""
    counts = []
    forward = objective.student.encoder._forward_blocks
    monkeypatch.setattr(objective.student.encoder, "_forward_blocks", lambda x: counts.append(x.shape[1]) or forward(x))
    objective.student(torch.randn(2, 3, 64, 64), first)
    assert counts == [8, 8]


def test_grids_of_an_odd_number_of_patches():
    encoder = SCOTT(img_size=48, embed_dim=32, depth=1, num_heads=2)
    decoder = Decoder(32, (3, 3), num_heads=2, encoder_depth=1)
    vocabulary = Vocabulary(16, WORDS)
    vocabulary.words = torch.randn(WORDS, 768)
    objective = SplitMask(encoder, decoder, vocabulary)
    inputs = objective.inputs(torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8), torch.Generator())
    assert inputs[2].sum(dim=1).tolist() == [5] * 4
    objective(*inputs).backward()


def test_a_decoder_of_its_own_width(first):
    """Check the shapes of tokens and descriptors, and that gradients reach the encoder through the linear layer."""
    objective = build(dim=64)
    logits, one, other = objective.student(torch.randn(2, 3, 64, 64), first)
    assert (logits.shape, one.shape, other.shape) == ((2, 16, WORDS), (2, 64), (2, 64))
    logits.sum().backward()
    assert objective.student.encoder.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_inputs(objective):
    crops = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    found = images, tokens, first, ours, theirs = objective.inputs(crops, torch.Generator().manual_seed(0))
    again = objective.inputs(crops, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert torch.equal(torch.zeros_like(first).scatter(1, ours, True), first)
    assert torch.equal(torch.zeros_like(first).scatter(1, theirs, True), ~first)
    assert first.sum(dim=1).tolist() == [8] * 4
    assert (first != first[0]).any()
    assert tokens.shape == (4, 16)
    assert images.shape == (4, 3, 64, 64)


def test_tokens_are_the_target_views(objective):
    crops = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    objective.views = lambda crops, draws: (torch.zeros(4, 3, 64, 64), crops.float())
    images, tokens, *_ = objective.inputs(crops, torch.Generator())
    assert torch.equal(tokens, objective.vocabulary(crops.float()))
    assert not images.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mask.ratio=0.6", "recipe.mask.ratio.*0.5.*splitmask.*got 0.6"),
        ("model.img_size=16", "recipe.model.img_size.*enough patches.*got 16"),
        ("run.accumulate=8", "recipe.run.accumulate.*parts of 2.*got 8"),
        ("objective.decoder_dim=100", "recipe.objective.decoder_dim.*multiple of 4.*6 heads.*got 100"),
        ("objective.decoder_dim=66", "recipe.objective.decoder_dim.*multiple of 4.*6 heads.*got 66"),
    ],
)
def test_settings_that_do_not_fit_are_named(change, message):
    settings = ["model.name=scott_3_16", "model.num_heads=6", "optim.batch_size=8", change]
    with pytest.raises(RecipeError, match=message):
        build_objective(Recipe.load("smoke", [*OBJECTIVES["splitmask"], *settings]))


def test_the_loss_is_cross_entropy_and_the_match(first, monkeypatch):
    objective = build(match=0.5)
    logits, one, other = torch.randn(2, 16, WORDS), torch.randn(2, 32), torch.randn(2, 32)
    monkeypatch.setattr(objective.student, "forward", lambda images, *halves: (logits, one, other))
    tokens = torch.randint(WORDS, (2, 16))
    inpaint = -logits.log_softmax(dim=-1).gather(2, tokens[..., None]).mean()
    match = (info_nce(one, other, 0.2) + info_nce(other, one, 0.2)) / 2
    loss = objective(torch.zeros(2, 3, 64, 64), tokens, first, find_places(first), find_places(~first))
    torch.testing.assert_close(loss, inpaint + 0.5 * match)


def test_info_nce_by_hand():
    ours, theirs = torch.tensor([[2.0, 0], [0, 3]]), torch.tensor([[5.0, 0], [4.0, 4.0]])
    right = [1 / 0.5, math.sqrt(0.5) / 0.5]
    wrong = [math.sqrt(0.5) / 0.5, 0.0]
    expected = sum(math.log(1 + math.exp(w - r)) for r, w in zip(right, wrong)) / 2
    assert info_nce(ours, theirs, 0.5).item() == pytest.approx(expected)


def test_info_nce_tells_close_cosines_apart_under_autocast():
    ours = torch.ones(4, 32) + 0.1 * torch.randn(4, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found = info_nce(ours, ours, 0.05)
    assert found == info_nce(ours, ours, 0.05)


def test_one_encoder_whatever_it_is_called(objective):
    assert objective.encoders["target"] is objective.encoders["context"] is objective.student.encoder
    assert objective.encoders["target"].mask_token is None

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BlurPool2d

from scott_models.models import masked_conv
from scott_models.models import tokenizer as tokenizer_module
from scott_models.models.masked_conv import hide
from scott_models.models.max_blur_pool import MaxBlurPool
from scott_models.models.tokenizer import PatchTokenizer, SparseConvTokenizer

TOKENIZERS = [SparseConvTokenizer, PatchTokenizer]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    built = request.param(img_size=64, embed_dim=32)
    built.init_weights()
    if isinstance(built, PatchTokenizer):
        torch.nn.init.ones_(built.proj.bias)  # a bias shows in hidden tokens if nothing hides it
    return built


def upscale(visible, size=64):
    return visible.view(-1, 1, 4, 4).repeat_interleave(size // 4, 2).repeat_interleave(size // 4, 3)


def test_hidden_pixels_change_no_visible_token(tokenizer, visible):
    images = torch.randn(2, 3, 64, 64)
    for other in (torch.randn(2, 3, 64, 64), torch.full((2, 3, 64, 64), float("nan"))):
        changed = torch.where(upscale(visible), images, other)
        assert torch.equal(tokenizer(images, visible), tokenizer(changed, visible))


def test_hidden_tokens_are_zero(tokenizer, visible):
    tokens = tokenizer(torch.randn(2, 3, 64, 64) + 1, visible)
    assert (tokens[~visible] == 0).all()
    assert (tokens[visible] != 0).any(dim=-1).all()


def test_cells_of_a_map_that_is_not_square():
    x = torch.randn(2, 5, 8, 18)
    visible = torch.tensor([[[True, False, True], [False, False, True]]]).expand(2, 1, 2, 3)
    kept = hide(x, visible)
    for row in range(2):
        for column in range(3):
            cell = ..., slice(4 * row, 4 * row + 4), slice(6 * column, 6 * column + 6)
            assert torch.equal(kept[cell], x[cell] * visible[0, 0, row, column])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_by_default_images_are_the_papers(kind):
    assert kind(device="meta").img_size == (224, 224)


def test_no_mask_is_an_all_visible_mask(tokenizer):
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(tokenizer(images), tokenizer(images, torch.ones(2, 16, dtype=torch.bool)))


def test_visible_neighbours_do_reach_each_other():
    tokenizer = SparseConvTokenizer(img_size=64, embed_dim=32)
    images = torch.randn(1, 3, 64, 64)
    visible = torch.zeros(1, 16, dtype=torch.bool)
    visible[0, :2] = True
    changed = images.clone()
    changed[..., :16, 16:32] += 1  # the second patch
    assert not torch.equal(tokenizer(images, visible)[0, 0], tokenizer(changed, visible)[0, 0])


def test_threads_with_different_masks_do_not_disturb_each_other(tokenizer, visible):
    images = torch.randn(2, 3, 64, 64)
    masks = [visible, ~visible, None] * 20
    alone = [tokenizer(images, mask) for mask in masks[:3]]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda mask: tokenizer(images, mask), masks))
    assert all(torch.equal(result, alone[i % 3]) for i, result in enumerate(together))


def test_compiles_whole_with_a_mask(tokenizer, visible):
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(tokenizer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, visible), tokenizer(images, visible))


def stage_maps(tokenizer, images, visible, monkeypatch, removed=None):
    """The five maps of the sparse stem as they are after hiding; the one with the number `removed` is not hidden."""
    maps = []

    def spy(x, cells):
        maps.append(x if len(maps) == removed else hide(x, cells))
        return maps[-1]

    for module in (masked_conv, tokenizer_module):
        monkeypatch.setattr(module, "hide", spy)
    tokenizer(images, visible)
    return maps


def leaks(maps, visible):
    """For each map, whether a hidden cell holds anything but exactly 0."""
    return [bool(x.masked_select(~upscale(visible, x.shape[-1])).any()) for x in maps]


def test_every_stage_is_zero_where_hidden(visible, monkeypatch):
    tokenizer = SparseConvTokenizer(img_size=64, embed_dim=32)
    maps = stage_maps(tokenizer, torch.randn(2, 3, 64, 64), visible, monkeypatch)
    assert [x.shape[-1] for x in maps] == [64, 32, 16, 8, 4]
    assert leaks(maps, visible) == [False] * 5


@pytest.mark.parametrize("removed", range(5))
def test_every_application_of_the_mask_is_needed(visible, monkeypatch, removed):
    tokenizer = SparseConvTokenizer(img_size=64, embed_dim=32)
    maps = stage_maps(tokenizer, torch.randn(2, 3, 64, 64), visible, monkeypatch, removed)
    assert leaks(maps, visible)[removed]


def test_hide_leaves_its_argument_alone(visible):
    x = torch.ones(2, 3, 8, 8)
    kept = hide(x, visible.view(2, 1, 4, 4))
    assert (x == 1).all()
    assert kept.sum() == 2 * 7 * 3 * 4


def test_max_blur_pool_is_timms_blur_after_a_dense_maximum():
    x = torch.randn(2, 5, 112, 64)
    expected = BlurPool2d(5, pad_mode="constant")(torch.nn.functional.max_pool2d(x, 2, stride=1))
    pooled = MaxBlurPool()(x)
    assert pooled.shape == (2, 5, 56, 32)
    torch.testing.assert_close(pooled, expected)


def test_receptive_field_is_61_pixels():
    tokenizer = SparseConvTokenizer(img_size=160, embed_dim=8)
    for conv in (tokenizer.conv1, tokenizer.conv2):
        torch.nn.init.ones_(conv.weight)  # nothing is cut off by a ReLU
    reached = torch.zeros(160, dtype=torch.bool)
    for _ in range(20):  # a maximum passes one of its pixels on; random images take turns
        images = torch.rand(1, 3, 160, 160, requires_grad=True)
        tokenizer(images)[0, 55].sum().backward()
        reached |= images.grad.abs().sum(dim=(0, 1, 2)) > 0
    assert reached.sum() == 61


def pool_by_torch(x):
    """Max-blur pool of torch's own operators."""
    kernel = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype) / 4
    kernel = torch.outer(kernel, kernel).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.max_pool2d(x, 2, stride=1), kernel, stride=2, padding=1, groups=x.shape[1])


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("compiled", [False, True])
def test_pool_and_its_gradient_are_torchs(batch, compiled):
    x = torch.randint(5, (batch, 3, 12, 16), dtype=torch.float64)  # few values, so that many are equal
    theirs, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    pool = torch.compile(MaxBlurPool(dtype=torch.float64), backend="aot_eager") if compiled else MaxBlurPool()
    expected, found = pool_by_torch(theirs), pool(ours)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (torch.ones(2, 15, dtype=torch.bool), r"\[2, 15\]"),
        (torch.ones(1, 16, dtype=torch.bool), r"\[1, 16\]"),
        (torch.ones(2, 16), "torch.float32"),
    ],
)
def test_wrong_masks_are_named(tokenizer, mask, found):
    with pytest.raises(ValueError, match=r"torch.bool.*\[2, 16\].*" + found):
        tokenizer(torch.zeros(2, 3, 64, 64), mask)


def test_wrong_image_sizes_are_named(tokenizer):
    with pytest.raises(ValueError, match="takes 64 x 64.*got 80 x 64"):
        tokenizer(torch.zeros(1, 3, 80, 64))
    free = type(tokenizer)(img_size=64, embed_dim=32, strict_img_size=False)
    assert free(torch.zeros(1, 3, 80, 64)).shape == (1, 20, 32)
    for height, width in ((8, 8), (72, 64)):
        with pytest.raises(ValueError, match=f"multiples of 16.*got {height} x {width}"):
            free(torch.zeros(1, 3, height, width))


def test_sparse_stem_has_patches_of_16_only():
    with pytest.raises(ValueError, match="expected 16, got 8"):
        SparseConvTokenizer(patch_size=8)

import json
from pathlib import Path

import pytest
import timm
import torch

from scott_models import SCOTT
from scott_models.errors import WeightsError
from scott_models.models.scott import MODELS, checkpoint_filter_fn, find_places

PARAMETERS = {
    "scott_3_16": 6_522_432,
    "scott_7_16": 13_600_320,
    "scott_9_16": 17_139_264,
    "scott_12_16": 22_447_680,
    "scott_vit_7_16": 12_681_984,
    "scott_vit_12_16": 21_529_344,
}


def count(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_exactly(name):
    assert count(timm.create_model(name, use_mask_token=True)) == PARAMETERS[name]
    assert count(timm.create_model(name)) == PARAMETERS[name] - 384


def test_registered_with_timm():
    assert set(timm.list_models("scott*")) == set(PARAMETERS)
    assert set(timm.list_models(module="scott")) == set(PARAMETERS) == set(MODELS)


@pytest.mark.parametrize("name", ["scott_3_16", "scott_vit_7_16"])
def test_features_and_logits(name):
    images = torch.randn(2, 3, 96, 96)
    model = timm.create_model(name, img_size=96).eval()
    assert model(images).shape == (2, 384)
    assert model.forward_features(images).shape == (2, 36, 384)
    assert timm.create_model(name, img_size=96, num_classes=5)(images).shape == (2, 5)


def test_features_are_the_average_of_normed_tokens(tiny):
    images = torch.randn(2, 3, 64, 64)
    normed = torch.nn.functional.layer_norm(tiny.forward_tokens(images), (32,))
    torch.testing.assert_close(tiny.forward_features(images), normed)
    torch.testing.assert_close(tiny(images), normed.mean(dim=1))


def test_mask_token_stands_for_hidden_patches(tiny, visible):
    images = torch.randn(2, 3, 64, 64)
    other = torch.where(
        visible.view(2, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3), images, torch.randn_like(images)
    )
    assert torch.equal(tiny.forward_tokens(images, visible), tiny.forward_tokens(other, visible))
    before = tiny.forward_tokens(images, visible)
    torch.nn.init.ones_(tiny.mask_token)
    assert not torch.allclose(before, tiny.forward_tokens(images, visible))
    assert torch.equal(tiny.forward_tokens(images), tiny.forward_tokens(images, torch.ones_like(visible)))


def test_by_default_it_is_the_papers_largest():
    model = SCOTT(device="meta")
    assert (len(model.blocks), model.embed_dim, model.blocks[0].attn.num_heads) == (12, 384, 6)
    assert model.patch_embed.img_size == (224, 224)


@pytest.mark.slow
def test_masked_tokens_compile_whole(tiny, visible):
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(tiny.forward_tokens, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, visible), tiny.forward_tokens(images, visible))


def test_mask_needs_a_mask_token(visible):
    model = SCOTT(img_size=64, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="use_mask_token=True"):
        model.forward_tokens(torch.zeros(2, 3, 64, 64), visible)


def test_visible_tokens_alone(tiny, visible):
    images = torch.randn(2, 3, 64, 64)
    assert tiny.forward_visible(images, visible).shape == (2, 7, 32)
    everything = tiny.forward_visible(images, torch.ones_like(visible))
    torch.testing.assert_close(everything, tiny.forward_tokens(images))
    uneven = visible.clone()
    uneven[0] = True
    with pytest.raises(ValueError, match=r"equally many visible.*got \[7, 16\]"):
        tiny.forward_visible(images, uneven.flip(0))
    with pytest.raises(ValueError, match=r"equally many visible.*got \[16, 7\]"):
        tiny.forward_visible(images, uneven)


KINDS = {
    "features": {"num_classes": 0},
    "classes": {"num_classes": 3, "fc_norm": True},
    "plain": {"tokenizer": "patch"},
    "attentive": {"global_pool": "attentive"},
    "map": {"global_pool": "map"},
    "tokens": {"global_pool": ""},
}


@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers_are_torchs_own(kind):
    """Tools ask for exactly this type, such as quantisers."""
    model = SCOTT(img_size=64, **{"num_classes": 3, "depth": 1, **KINDS[kind]}, device="meta")
    assert {type(module) for module in model.modules() if isinstance(module, torch.nn.Linear)} == {torch.nn.Linear}


def empty(height=64, width=64):
    return torch.zeros(0, 3, height, width, requires_grad=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_no_images(kind, training):
    """An empty batch has results and gradients of the right shapes, as with timm's models."""
    rates = {"pos_drop_rate": 0.2, "attn_drop_rate": 0.1, "drop_path_rate": 0.1, "patch_drop_rate": 0.1}
    settings = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3, **rates, **KINDS[kind]}
    model = SCOTT(**settings).train(training)
    expected = model(torch.zeros(2, 3, 64, 64)).shape[1:]
    found = model(images := empty())
    assert found.shape == (0, *expected)
    found.sum().backward()
    assert images.grad.shape == images.shape
    gradients = [p.grad for p in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert model(empty(48, 112)).shape[0] == 0


def test_no_images_and_masks(tiny):
    visible = torch.zeros(0, 16, dtype=torch.bool)
    for found in (tiny.forward_tokens(empty(), visible), tiny.forward_intermediates(empty(), output_fmt="NLC")[1][0]):
        assert found.shape == (0, 16, 32)
        found.sum().backward()
    assert find_places(visible).shape == (0, 0)
    tiny.forward_visible(empty(), visible).sum().backward()
    places = torch.zeros(0, 7, dtype=torch.int64)
    assert tiny.forward_visible(empty(), visible, places).shape == (0, 7, 32)
    assert tiny.get_attention(empty())[0].shape == (0, 2, 16, 16)


def test_attention_maps_in_the_order_asked(tiny):
    images = torch.randn(2, 3, 64, 64)
    last, first = tiny.get_attention(images, blocks=(-1, 0))
    assert last.shape == (2, 2, 16, 16)
    torch.testing.assert_close(last.sum(dim=-1), torch.ones(2, 2, 16))
    assert torch.equal(last, tiny.get_attention(images)[0])
    assert torch.equal(first, tiny.get_attention(images, blocks=(0,))[0])
    assert not torch.allclose(first, last)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (48, 112)])
def test_any_size_gives_what_a_model_of_that_size_gives(tiny, size):
    images = torch.randn(2, 3, *size)
    settings = {"embed_dim": 32, "depth": 2, "num_heads": 2, "use_mask_token": True}
    fixed = SCOTT(img_size=size, dynamic_img_size=False, **settings).eval()
    dynamic = SCOTT(img_size=64, **settings).eval()
    for model in (fixed, dynamic):
        model.load_state_dict(tiny.state_dict())
    assert torch.equal(dynamic(images), fixed(images))
    tiny.set_input_size(size)
    assert torch.equal(tiny(images), fixed(images))
    assert torch.equal(tiny.pos_embed, fixed.pos_embed)


def test_a_refused_size_leaves_the_model_as_it_was(tiny):
    images = torch.randn(1, 3, 64, 64)
    before = tiny(images)
    with pytest.raises(ValueError, match="multiples of 16.*got 72 x 72"):
        tiny.set_input_size((72, 72))
    assert torch.equal(tiny(images), before)


def test_what_the_readme_says_of_timm():
    images = torch.randn(1, 3, 160, 224)
    model = timm.create_model("scott_3_16", img_size=(160, 224), features_only=True).eval()
    assert [feature.shape for feature in model(images)] == [(1, 384, 10, 14)] * 3
    model = timm.create_model("scott_3_16", img_size=(160, 224), in_chans=1, num_classes=10).eval()
    features, maps = model.forward_intermediates(images[:, :1])
    assert features.shape == (1, 140, 384)
    assert maps[0].shape == (1, 384, 10, 14)
    assert model(images[:, :1]).shape == (1, 10)


def test_images_of_another_size_are_named(tiny):
    strict = SCOTT(img_size=64, embed_dim=32, depth=1, num_heads=2, dynamic_img_size=False)
    with pytest.raises(ValueError, match="takes 64 x 64.*got 32 x 32.*img_size=.*dynamic_img_size=True"):
        strict(torch.zeros(1, 3, 32, 32))
    for size in (8, 72):
        with pytest.raises(ValueError, match=f"multiples of 16.*got {size} x {size}"):
            SCOTT(img_size=size, embed_dim=32, depth=1, num_heads=2)


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match=r"tokenizer.*\['patch', 'sparse_conv'\].*got 'conv'"):
        SCOTT(tokenizer="conv")
    with pytest.raises(TypeError, match="qkv_bias"):
        timm.create_model("scott_3_16", qkv_bias=True)


# The original's name of each weight -> ours, for its measured spreads.
SPREADS = json.loads((Path(__file__).parents[1] / "reference" / "init_std.json").read_text())
NAMES = {
    "tokenizer.tokenizer.0.weight": "patch_embed.conv1.weight",
    "tokenizer.tokenizer.3.weight": "patch_embed.conv2.weight",
    "transformer.msk_embed": "mask_token",
    "transformer.pos_embed": "pos_embed",
    "self_attn": "attn",
    "ffn_layer.w12": "mlp.fc1",
    "ffn_layer.last_linear": "mlp.fc2",
    "transformer.blocks": "blocks",
}


@pytest.mark.parametrize("name", ["scott_3_16", "scott_7_16", "scott_9_16", "scott_12_16"])
def test_initial_spreads_are_the_originals(name):
    model = timm.create_model(name, use_mask_token=True, img_size=224)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    checked = set()
    for theirs, spread in SPREADS[name].items():
        ours = theirs
        for original, renamed in NAMES.items():
            ours = ours.replace(original, renamed)
        tolerance = 0.2 if ours == "mask_token" else 0.03
        assert tensors[ours].std().item() == pytest.approx(spread, rel=tolerance), ours
        checked.add(ours)
    assert checked >= {parameter for parameter, _ in model.named_parameters()}


def test_fresh_weights_after_a_meta_device(tiny):
    model = SCOTT(img_size=64, embed_dim=32, depth=2, num_heads=2, device="meta").to_empty(device="cpu")
    model.init_weights()
    assert torch.equal(model.pos_embed, tiny.pos_embed)
    assert torch.equal(model.patch_embed.pool1.blur, tiny.patch_embed.pool1.blur)
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_checkpoint_loads_whole_or_raises_by_name(tiny):
    without_token = SCOTT(img_size=64, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    fitted = checkpoint_filter_fn(tiny.state_dict(), without_token)
    assert tiny.state_dict().keys() - fitted.keys() == {"mask_token"}
    foreign = {f"model.{name}": tensor for name, tensor in tiny.state_dict().items()}
    with pytest.raises(WeightsError, match=r"missing \['blocks.0.*unknown \['model.blocks.0"):
        checkpoint_filter_fn(foreign, without_token)
    with pytest.raises(WeightsError, match=r"missing \['mask_token'\]"):
        checkpoint_filter_fn(fitted, tiny)


def test_a_pool_loads_whole_or_is_another_kinds():
    settings = {"img_size": 64, "embed_dim": 32, "depth": 1, "num_heads": 2}
    attentive, by_timm, average = (SCOTT(**settings, global_pool=pool) for pool in ("attentive", "map", "avg"))
    for of, into in ((attentive, by_timm), (by_timm, attentive), (attentive, average), (average, attentive)):
        fitted = checkpoint_filter_fn(of.state_dict(), into)
        assert fitted.keys() == into.state_dict().keys()
        assert torch.equal(fitted["blocks.0.attn.qkv.weight"], of.blocks[0].attn.qkv.weight)
        for name, tensor in into.state_dict().items():
            assert torch.equal(fitted[name], tensor) or not name.startswith("attn_pool.")
    for lost in ("query", "norm3.weight", "kv.weight"):
        damaged = attentive.state_dict()
        del damaged[f"attn_pool.{lost}"]
        with pytest.raises(WeightsError, match=rf"missing \['attn_pool.{lost}'\]"):
            checkpoint_filter_fn(damaged, attentive)

"""What a user of timm does, item by item: README.md beside this names the test of each."""

import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import set_fused_attn
from timm.models import group_parameters, save_for_hf
from timm.optim import create_optimizer_v2
from timm.utils import freeze

from scott_models.errors import WeightsError
from scott_models.models.scott import MODELS
from scott_models.weights import manifest

TAG = "scott_3_16.mimjepa_flowers102_cpu"


def run(code, **environment):
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment or None, check=False)


def test_registration():
    assert sorted(timm.list_models("scott*")) == sorted(timm.list_models(module="scott")) == sorted(MODELS)
    assert timm.list_models("scott*", pretrained=True) == timm.list_pretrained("scott*")
    assert set(timm.list_pretrained("scott*")) == set(manifest()) >= {TAG}
    for name in MODELS:
        assert timm.is_model(name)
        entrypoint = timm.model_entrypoint(name)
        assert entrypoint.__name__ == name
        assert inspect.signature(entrypoint).parameters["pretrained"].default is False
        assert timm.get_pretrained_cfg(name).architecture == name
    assert timm.get_pretrained_cfg("scott_3_16").tag == "mimjepa_flowers102_cpu"  # the first with weights
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        timm.create_model("scott_3_16.nothing")


@pytest.mark.slow
def test_importing_prints_nothing_and_warns_of_nothing():
    done = run("import timm.models, scott_models")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", MODELS)
def test_configs(name):
    cfg = timm.get_pretrained_cfg(name)
    assert not cfg.fixed_input_size
    assert (cfg.num_classes, cfg.classifier, cfg.crop_pct, cfg.interpolation) == (0, "head", 0.875, "bilinear")
    assert (cfg.license, cfg.paper_ids) == ("apache-2.0", "arXiv:2502.18056")
    assert cfg.origin_url == "https://arxiv.org/abs/2502.18056"
    model = timm.create_model(name)
    assert model.get_submodule(cfg.first_conv).weight.shape[1] == 3
    assert model.get_submodule(cfg.classifier) is model.head


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_default_size_is_the_papers_whatever_the_weights(pretrained):
    """A tag's configuration goes on saying the size of its training images, and evaluation follows that."""
    model = timm.create_model("scott_3_16", pretrained=pretrained).eval()
    assert model.patch_embed.img_size == (224, 224)
    assert model.pretrained_cfg["input_size"] == (3, 112, 112)
    assert resolve_model_data_config(model)["input_size"] == (3, 112, 112)
    for side in (112, 224):
        assert model(torch.zeros(1, 3, side, side)).shape == (1, 384)


def test_a_hook_fires_once_a_batch_on_every_module():
    """Also where a CPU takes shortcuts, and where no gradients are wanted."""
    model = timm.create_model("scott_3_16", img_size=64, num_classes=5, global_pool="attentive").eval()
    calls = Counter()
    leaves = {name: module for name, module in model.named_modules() if not isinstance(module, torch.nn.Identity)}
    for name, module in leaves.items():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    with torch.inference_mode():
        model(torch.zeros(40, 3, 64, 64))
    unused = {name for name in leaves if ".kv" in name or "drop" in name or name.endswith("norm1")}
    unused |= {name for name in leaves if name.endswith(".norm")}  # which a block uses twice
    assert {name: calls[name] for name in leaves if name not in unused} == dict.fromkeys(leaves.keys() - unused, 1)


def test_attributes_and_heads():
    model = timm.create_model("scott_3_16", img_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    assert (model.num_classes, model.in_chans) == (0, 3)
    assert model.num_features == model.head_hidden_size == model.embed_dim == 384
    assert [info["reduction"] for info in model.feature_info] == [16] * 3
    features = model.forward_features(images)
    assert torch.equal(model.forward_head(features, pre_logits=True), model(images))
    for pool in ("attentive", "avg", "attentive"):
        model.reset_classifier(5, pool)
        assert model.global_pool == pool
        assert (model.attn_pool is not None) == (pool == "attentive")
        assert pool == "avg" or not model.attn_pool.training  # or its dropout would go on
        assert model(images).shape == (2, 5)
        assert model.forward_head(features, pre_logits=True).shape == (2, 384)
    model.reset_classifier(0, "")
    assert torch.equal(model(images), features)


@pytest.mark.parametrize("pool", ["", "avg", "map", "attentive"])
def test_pools_saved_and_loaded_as_one_model(pool, tmp_path):
    model = timm.create_model("scott_3_16", img_size=64, global_pool=pool, num_classes=5 if pool else 0).eval()
    save_for_hf(model, tmp_path, safe_serialization=True, model_args={"img_size": 64, "global_pool": pool})
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("name", ["scott_3_16", "scott_vit_7_16"])
@pytest.mark.parametrize("size", [(160, 224), (256, 256), (384, 384), (448, 448)])
def test_any_image_size(name, size):
    fixed, dynamic = (
        timm.create_model(name, **options) for options in ({"img_size": size, "dynamic_img_size": False}, {})
    )
    dynamic.load_state_dict(fixed.state_dict())
    images = torch.randn(1, 3, *size)
    with torch.inference_mode():
        assert torch.equal(dynamic.eval()(images), fixed.eval()(images))
        assert fixed.forward_features(images).shape == (1, size[0] * size[1] // 256, 384)


def test_sizes_that_are_no_multiples():
    model = timm.create_model("scott_3_16").eval()
    with pytest.raises(ValueError, match="got 100 x 120.*96 x 112 and 112 x 128"):
        model(torch.zeros(1, 3, 100, 120))
    with pytest.raises(ValueError, match="got 8 x 32.*16 x 32 and 16 x 32"):
        model(torch.zeros(1, 3, 8, 32))
    with pytest.raises(ValueError, match="got 100 x 100.*96 x 96 and 112 x 112"):
        timm.create_model("scott_3_16", img_size=100)


@pytest.mark.parametrize("name", ["scott_3_16", "scott_vit_7_16"])
def test_timms_ways_to_write_a_patch_size(name, tmp_path):
    model = timm.create_model(name, img_size=64, patch_size=(16, 16))
    model.set_input_size((64, 96), patch_size=(16, 16))
    args = {"img_size": (64, 96), "patch_size": (16, 16)}
    save_for_hf(model, tmp_path, safe_serialization=True, model_args=args)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).patch_embed.grid_size == (4, 6)
    with pytest.raises(ValueError, match="patch_size: expected square patches, got"):
        timm.create_model(name, patch_size=(16, 32))


@pytest.mark.parametrize("name", ["scott_3_16", "scott_vit_7_16"])
def test_padding_is_zeros_at_the_right_and_the_bottom(name):
    model = timm.create_model(name, dynamic_img_pad=True).eval()
    images = torch.randn(2, 3, 100, 120)
    padded = torch.zeros(2, 3, 112, 128)
    padded[:, :, :100, :120] = images
    assert torch.equal(model(images), model(padded))
    assert model.patch_embed.dynamic_feat_size((100, 120)) == (7, 8)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_other_channels_with_pretrained_weights(channels):
    weight = timm.create_model("scott_3_16", pretrained=True).patch_embed.conv1.weight
    model = timm.create_model("scott_3_16", pretrained=True, in_chans=channels)
    found = model.patch_embed.conv1.weight
    if channels == 1:
        torch.testing.assert_close(found, weight.sum(dim=1, keepdim=True))
    else:  # the colours again and again, as bright in all as before
        expected = weight.repeat(1, 5, 1, 1)[:, :channels] * 3 / channels
        torch.testing.assert_close(found, expected)
    assert model.eval()(torch.zeros(1, channels, 112, 112)).shape == (1, 384)


def test_wrong_names_raise_where_timm_would_load_nothing(tmp_path):
    model = timm.create_model("scott_3_16", img_size=64)
    model.blocks[1].attn.query = model.blocks[1].attn.qkv
    del model.blocks[1].attn.qkv
    save_for_hf(model, tmp_path, safe_serialization=True, model_args={"img_size": 64})
    with pytest.raises(WeightsError, match=r"missing \['blocks.1.attn.qkv.*unknown \['blocks.1.attn.query"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=10)


@pytest.mark.parametrize("pool", ["map", "attentive"])
@pytest.mark.parametrize("classes", [0, 10])
def test_a_pool_that_the_weights_know_nothing_of_starts_fresh(pool, classes, tmp_path):
    model = timm.create_model("scott_3_16", pretrained=True, global_pool=pool, num_classes=classes)
    assert all(p.isfinite().all() for p in model.attn_pool.parameters())
    args = {"img_size": 112, "global_pool": pool}
    save_for_hf(model, tmp_path, safe_serialization=True, model_args=args)
    average = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, global_pool="avg")
    assert average.attn_pool is None
    assert torch.equal(average.blocks[2].mlp.fc2.weight, model.blocks[2].mlp.fc2.weight)


def test_every_rate_is_an_argument():
    rates = {"drop_rate": 0.1, "pos_drop_rate": 0.2, "patch_drop_rate": 0.3, "proj_drop_rate": 0.2}
    rates |= {"attn_drop_rate": 0.1, "drop_path_rate": 0.1}
    model = timm.create_model("scott_3_16", img_size=64, num_classes=5, **rates)
    assert model.train()(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    assert (model.head_drop.p, model.pos_drop.p, model.patch_drop.prob) == (0.1, 0.2, 0.3)
    assert [block.attn.proj_drop.p for block in model.blocks] == [0.2] * 3
    with pytest.raises(TypeError, match="no_such_rate"):
        timm.create_model("scott_3_16", no_such_rate=0.1)


def test_layer_groups():
    """The tokenizer and the mask token first, a group for each block, the head last."""
    model = timm.create_model("scott_3_16", num_classes=5, global_pool="attentive", use_mask_token=True)
    groups = group_parameters(model, model.group_matcher())
    names = [sorted(group) for _, group in sorted(groups.items())]
    assert names[0] == ["mask_token", "patch_embed.conv1.weight", "patch_embed.conv2.weight"]
    assert [{name.split(".")[1] for name in group} for group in names[1:4]] == [{"0"}, {"1"}, {"2"}]
    assert {name.split(".")[0] for name in names[4]} == {"attn_pool", "head"}
    assert len(names) == 5
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scales[id(model.head.weight)] == 1
    assert scales[id(model.blocks[1].mlp.fc1.weight)] == 0.25
    assert scales[id(model.patch_embed.conv1.weight)] == 0.0625


def test_checkpointed_gradients_are_the_same():
    model = timm.create_model("scott_3_16", img_size=64)
    images = torch.randn(2, 3, 64, 64)
    expected = torch.autograd.grad(model(images).square().sum(), model.patch_embed.conv1.weight)
    model.set_grad_checkpointing()
    found = torch.autograd.grad(model(images).square().sum(), model.patch_embed.conv1.weight)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pool", ["avg", "map", "attentive"])
def test_created_where_and_as_asked(pool):
    model = timm.create_model("scott_3_16", global_pool=pool, num_classes=2, device="meta", dtype=torch.bfloat16)
    tensors = [*model.parameters(), *model.buffers()]
    assert all(tensor.is_meta and tensor.dtype == torch.bfloat16 for tensor in tensors)
    model = model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(torch.nan)
    model.init_weights()
    assert all(tensor.isfinite().all() for tensor in (*model.parameters(), *model.buffers()))


def test_gradients_of_each_image():
    """By torch.func: vmap of a gradient, and vmap of the model."""
    model = timm.create_model("scott_3_16", img_size=64, num_classes=3).eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    images = torch.randn(2, 3, 64, 64)

    def score(parameters, image):
        return torch.func.functional_call(model, parameters, image[None]).square().sum()

    each = torch.func.vmap(torch.func.grad(score), in_dims=(None, 0))(parameters, images)
    for i, image in enumerate(images):
        expected = torch.func.grad(score)(parameters, image)
        for name, gradient in expected.items():
            torch.testing.assert_close(each[name][i], gradient, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(lambda image: model(image[None])[0])(images), model(images))


def test_frozen_stays_frozen():
    model = timm.create_model("scott_3_16", img_size=64, num_classes=5)
    freeze(model, ["patch_embed", "blocks"])
    model.reset_classifier(3)
    model.set_input_size((64, 96))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"head.weight", "head.bias"}
    model(torch.randn(1, 3, 64, 96)).sum().backward()
    assert model.patch_embed.conv1.weight.grad is None


def test_bf16_after_an_fp32_forward():
    model = timm.create_model("scott_3_16", img_size=64).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        found = model.bfloat16()(images.bfloat16())
    assert (found.float() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("options", [{}, {"dynamic_img_size": False}])
def test_dense_features_are_what_hooks_see(options):
    """On a grid that is not square: 4 rows, 6 columns."""
    model = timm.create_model("scott_3_16", img_size=(64, 96), **options).eval()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        model(images)
        final, maps = model.forward_intermediates(images)
        tokens = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True, indices=[1])
        getter = timm.create_model("scott_3_16", img_size=(64, 96), features_only=True, out_indices=[0, 2], **options)
        getter.eval().load_state_dict({f"model.{name}": t for name, t in model.state_dict().items()})
        getter_maps = getter(images)
    expected = [features.transpose(1, 2).reshape(2, 384, 4, 6) for features in seen[:3]]
    for found, wanted in zip(maps, expected, strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(tokens[0], seen[1])
    assert torch.equal(final, model.norm(seen[2]))
    assert all(torch.equal(found, wanted) for found, wanted in zip(getter_maps, expected[::2], strict=True))


def test_attention_is_what_hooks_see():
    set_fused_attn(False)
    try:
        model = timm.create_model("scott_3_16", img_size=(64, 96)).eval()
    finally:
        set_fused_attn(True)
    seen = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        model(images)
        expected = [*seen]
        for found, wanted in zip(model.get_attention(images, blocks=(0, 1, 2)), expected, strict=True):
            torch.testing.assert_close(found, wanted)
    assert seen[0].shape == (2, 4, 24, 24)


def test_pruned_to_the_first_blocks():
    model = timm.create_model("scott_3_16", img_size=64).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = model.forward_intermediates(images, indices=[1], intermediates_only=True)
    model.prune_intermediate_layers([1])
    assert len(model.blocks) == 2
    assert torch.equal(model.forward_intermediates(images, indices=[1], intermediates_only=True)[0], expected[0])


@pytest.mark.slow
def test_offline_what_is_here_loads(tmp_path):
    """Without a way to the Hub, and without a home where a cache could be."""
    code = "import scott_models, timm; print(timm.create_model('scott_3_16', pretrained=True).num_features)"
    done = run(code, HF_HUB_OFFLINE="1", HOME=str(tmp_path), PATH="", PYTHONPATH=":".join(sys.path))
    assert (done.returncode, done.stdout) == (0, "384\n"), done.stderr


def test_the_page_names_tests_that_exist():
    tests = Path(__file__).parents[1]
    named = set(re.findall(r"`(test_\w+)`", (tests / "README.md").read_text()))
    written = set(re.findall(r"^def (test_\w+)", "".join(path.read_text() for path in tests.rglob("*.py")), re.M))
    assert len(named) > 20
    assert named <= written

"""Test models in other places: graphs of torch's four kinds, ONNX, other number formats, other libraries."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

from scott_models import SCOTT, weights

pytestmark = pytest.mark.deploy

CHECKOUT = Path(__file__).parents[2]
BATCH = torch.export.Dim("batch")
ANY_SIZE = {0: BATCH, 2: 16 * torch.export.Dim("rows", max=64), 3: 16 * torch.export.Dim("columns", max=64)}
KINDS = {
    "features": {},
    "plain": {"tokenizer": "patch"},
    "classes": {"num_classes": 4, "fc_norm": True},
    "attentive": {"global_pool": "attentive", "num_classes": 4},
    "map": {"global_pool": "map", "num_classes": 4},
    "token": {"use_mask_token": True},
}


def small(**options):
    return SCOTT(img_size=(96, 64), embed_dim=32, depth=2, num_heads=2, **options).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 96, 64)


@pytest.fixture
def others():
    """Make images of another number and size."""
    return torch.randn(3, 3, 48, 112)


@pytest.fixture(autouse=True)
def deprecated():
    """torch warns that script and trace will go; timm supports them as long as they are there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("record", [torch.jit.script, torch.fx.symbolic_trace], ids=["script", "fx"])
def test_script_and_fx(options, record, images, others):
    model = small(**options, dynamic_img_size=False)
    graph = record(model)
    assert torch.equal(graph(images), model(images))
    with pytest.raises((ValueError, torch.jit.Error), match="takes 96 x 64.*got 48 x 112"):
        graph(others)
    dynamic = small(**options)
    assert torch.equal(record(dynamic)(others), dynamic(others))


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_trace(options, images):
    model = small(**options)
    graph = torch.jit.trace(model, images)
    torch.testing.assert_close(graph(images.flip(0)), model(images.flip(0)))


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_export_of_any_batch_and_size(options, pad, images, others):
    model = small(**options, dynamic_img_pad=pad)
    exported = torch.export.export(model, (images,), dynamic_shapes=(ANY_SIZE,)).module()
    for some in (images, others):
        torch.testing.assert_close(exported(some), model(some))


def test_an_exported_graph_has_no_operator_of_ours_nor_convolutions_for_products(images):
    """Check that exported graphs hold none of this machine's shortcuts."""
    rates = {"pos_drop_rate": 0.2, "proj_drop_rate": 0.2, "attn_drop_rate": 0.1}
    exported = torch.export.export(small(**rates).train(), (images,))
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert not [name for name in called if "scott" in name]
    assert sum("conv2d" in name for name in called) == 4  # two convolutions, two blurs
    assert sum("linear" in name for name in called) == 8


def test_exported_programs_can_be_saved(images, tmp_path):
    model = small()
    torch.export.save(torch.export.export(model, (images,), dynamic_shapes=({0: BATCH},)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(loaded(images[:1].repeat(3, 1, 1, 1)), model(images[:1]).repeat(3, 1))


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_compiled_whole(options, images):
    model = small(**options)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(images), model(images))


@pytest.mark.needs("onnxruntime", "onnxscript")
@pytest.mark.parametrize("options", [KINDS["features"], KINDS["plain"], KINDS["attentive"]])
def test_onnx_of_any_batch_and_size(options, images, others, tmp_path):
    import onnxruntime

    model = small(**options)
    program = torch.onnx.export(model, (images,), dynamo=True, dynamic_shapes=(ANY_SIZE,), verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for some in (images, others, torch.randn(1, 3, 224, 160)):
        (found,) = session.run(None, {session.get_inputs()[0].name: some.numpy()})
        np.testing.assert_allclose(found, model(some).detach().numpy(), atol=1e-4)


@pytest.mark.needs("onnx", "onnxruntime")
def test_onnx_by_the_exporter_that_timm_prefers(images, tmp_path):
    """TorchScript's, of any batch."""
    import onnxruntime

    model, axes = small(), {"images": {0: "batch"}}
    arguments = {"dynamo": False, "input_names": ["images"], "dynamic_axes": axes}
    torch.onnx.export(model, (images,), tmp_path / "model.onnx", **arguments)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    some = torch.randn(3, 3, 96, 64)
    np.testing.assert_allclose(session.run(None, {"images": some.numpy()})[0], model(some).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_half_precision(dtype, tolerance):
    images = torch.randn(2, 3, 112, 112)
    model = timm.create_model("scott_3_16", pretrained=True).eval()
    with torch.no_grad():
        expected = model(images)
        found = model.to(dtype)(images.to(dtype))
    assert found.dtype == dtype
    assert (found.float() - expected).norm() < tolerance * expected.norm()


@pytest.mark.needs("torchao")
@pytest.mark.parametrize("options", [{}, {"global_pool": "attentive", "num_classes": 5}])
def test_int8_weights_of_torchao(options):
    from torchao import quantization

    images = torch.randn(2, 3, 112, 112)
    model = timm.create_model("scott_3_16", pretrained=True, **options).eval()
    with torch.no_grad():
        expected = model(images)
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        found = model(images)
    assert type(model.blocks[0].mlp.fc1.weight) is not torch.nn.Parameter
    assert (found - expected).norm() < 2e-2 * expected.norm()


@pytest.mark.parametrize("options", [{}, {"global_pool": "attentive", "num_classes": 5}])
def test_int8_of_torch(options):
    """Dynamic quantisation replaces the layers that are exactly nn.Linear: all of ours."""
    images = torch.randn(2, 3, 112, 112)
    model = timm.create_model("scott_3_16", pretrained=True, **options).eval()
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    found = {name: type(module).__module__ for name, module in quantised.named_modules()}
    assert {name for name in layers if "quantized.dynamic" in found[name]} == {*layers}
    with torch.no_grad():
        expected = model(images)
        assert (quantised(images) - expected).norm() < 5e-2 * expected.norm()


def test_what_timm_saves_loads_bit_equal(tmp_path, images):
    model = timm.create_model("scott_3_16", img_size=(96, 64), num_classes=4, global_pool="attentive").eval()
    args = {"img_size": (96, 64), "global_pool": "attentive"}  # timm before 1.0.31 does not note them by itself
    save_for_hf(model, tmp_path, safe_serialization=True, model_args=args)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(loaded(images), model(images))


@pytest.mark.needs("transformers")
def test_transformers_load_what_we_export(tmp_path, images):
    """Positions and blur are no part of a checkpoint, and transformers creates models without computing anything."""
    import transformers

    model = timm.create_model("scott_3_16", img_size=(96, 64), num_classes=2, use_mask_token=True).eval()
    folder = weights.export(model, tmp_path / "export", dtype=torch.float32, label_names=["daisy", "poppy"])
    classifier = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    assert torch.equal(classifier(pixel_values=images).logits, model(images))
    assert classifier.config.id2label == {0: "daisy", 1: "poppy"}
    features = transformers.AutoModel.from_pretrained(folder).eval()(pixel_values=images)
    assert torch.equal(features.last_hidden_state, model.forward_features(images))


@pytest.mark.needs("transformers")
def test_transformers_load_the_released_weights():
    import transformers

    images = torch.randn(2, 3, 112, 112)
    folder = weights.resolve("scott_3_16.mimjepa_flowers102_cpu").parent
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    expected = timm.create_model("scott_3_16", pretrained=True).eval()(images)
    torch.testing.assert_close(model(pixel_values=images).pooler_output, expected)


def test_torch_hub_has_every_model():
    checkout = str(CHECKOUT)
    model = torch.hub.load(checkout, "scott_3_16", source="local", pretrained=True)
    expected = timm.create_model("scott_3_16", pretrained=True)
    assert torch.equal(model.blocks[0].attn.qkv.weight, expected.blocks[0].attn.qkv.weight)
    for name in timm.list_models(module="scott"):
        assert torch.hub.load(checkout, name, source="local", device="meta").num_features == 384


def test_an_archive_without_links(tmp_path):
    """As torch.hub and "Download ZIP" unpack it: the manifest's link is a file with the link's text."""
    unlinked = shutil.ignore_patterns("__pycache__", "bundled")
    shutil.copytree(CHECKOUT / "scott_models", tmp_path / "scott_models", ignore=unlinked)
    link = tmp_path / "scott_models" / "weights_manifest.json"
    link.unlink()
    link.write_text("../weights_manifest.json")
    for name in ("weights_manifest.json", "weights_manifest.schema.json", "pyproject.toml", "hubconf.py"):
        shutil.copy(CHECKOUT / name, tmp_path)
    (tmp_path / "weights").symlink_to(CHECKOUT / "weights")
    code = f"import torch; torch.hub.load({str(tmp_path)!r}, 'scott_3_16', source='local', pretrained=True)"
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.needs("peft")
def test_lora():
    import peft

    model = timm.create_model("scott_3_16", img_size=64, num_classes=4)
    config = peft.LoraConfig(r=4, target_modules=["qkv", "proj", "fc1", "fc2"], modules_to_save=["head"])
    adapted = peft.get_peft_model(model, config)
    images = torch.randn(2, 3, 64, 64)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    before = adapted(images)
    before.square().sum().backward()
    optimizer.step()
    assert not [name for name, p in adapted.named_parameters() if p.grad is not None and "base_layer" in name]
    after = adapted.eval()(images)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(adapted.merge_and_unload()(images), after, rtol=1e-4, atol=1e-4)


@pytest.mark.needs("captum")
def test_attributions_of_captum():
    from captum.attr import IntegratedGradients

    model = small(num_classes=4)
    images = torch.randn(2, 3, 96, 64)
    method = IntegratedGradients(model)
    attributions, error = method.attribute(images, target=1, n_steps=64, return_convergence_delta=True)
    assert attributions.shape == images.shape
    change = (model(images) - model(torch.zeros_like(images)))[:, 1].abs()
    assert (error.abs() < 0.05 * change.max()).all()  # they add up to what the model says of the images

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from scott_models import weights
from scott_models.data.files import find_images
from scott_models.data.images import load_image
from scott_models.errors import DataError, WeightsError
from scott_models.probes.features import embed, extract, load_model


@pytest.fixture
def model():
    return timm.create_model("scott_3_16", img_size=32, num_classes=0).eval()


def test_features_do_not_depend_on_the_batch(model, photos):
    paths = find_images([photos])
    features, patches = extract(model, paths, img_size=32, batch_size=5, tokens=True)
    assert features.shape == (12, 384)
    assert patches.shape == (12, 4, 384)
    np.testing.assert_allclose(features, patches.mean(axis=1), atol=1e-5)
    one_by_one, none = extract(model, paths, img_size=32, batch_size=1)
    assert none is None
    np.testing.assert_allclose(features, one_by_one, atol=1e-5)


def test_features_go_through_the_evaluation_transform(model, photos):
    path = find_images([photos])[0]
    config = timm.data.resolve_model_data_config(model, {"img_size": 32})
    assert (config["crop_pct"], config["interpolation"]) == (0.875, "bilinear")
    with torch.inference_mode():
        expected = model(timm.data.create_transform(**config)(load_image(path))[None])
    features, _ = extract(model, [path], img_size=32)
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)


def test_prefix_tokens_are_no_patches(photos):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0).eval()
    assert extract(model, find_images([photos])[:2], img_size=32, tokens=True)[1].shape == (2, 4, 192)


def test_embed_writes_names_beside_features(photos, tmp_path):
    out = tmp_path / "features.npz"
    assert embed([photos], out, "scott_3_16", tokens=True) == (12, 384)
    written = np.load(out)
    assert [str(path) for path in find_images([photos])] == written["names"].tolist()
    assert written["features"].dtype == np.float32
    np.testing.assert_allclose(written["tokens"].mean(axis=1), written["features"], atol=1e-5)
    similarity = np.corrcoef(written["features"])
    assert similarity[:6, :6].mean() > similarity[:6, 6:].mean()  # blue images are like each other


def test_embed_leaves_nothing_half_written(photos, tmp_path, monkeypatch):
    (photos / "blue" / "broken.png").write_bytes(b"\x89PNG")
    before = set(tmp_path.iterdir())
    with pytest.raises(DataError, match="broken.png: expected an image"):
        embed([photos], tmp_path / "features.npz", "scott_3_16")
    assert set(tmp_path.iterdir()) == before
    (photos / "blue" / "broken.png").unlink()
    monkeypatch.setattr(np, "savez", lambda file, **arrays: (file.write_bytes(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        embed([photos], tmp_path / "features.npz", "scott_3_16")
    assert set(tmp_path.iterdir()) == before
    with pytest.raises(DataError, match="batch_size: expected at least 1, got 0"):
        embed([photos], tmp_path / "features.npz", "scott_3_16", batch_size=0)
    for out in (tmp_path / "features.csv", tmp_path / "nowhere" / "features.npz"):
        with pytest.raises(DataError, match=".npz file.*folder that exists"):
            embed([photos], out, "scott_3_16")


def test_models_that_cannot_be_had(tmp_path):
    with pytest.raises(WeightsError, match="scot_3_16.*timm.*Unknown model"):
        load_model("scot_3_16")
    with pytest.raises(WeightsError, match="scott_vit_7_16: no such weights are released"):
        load_model("scott_vit_7_16")
    with pytest.raises(WeightsError, match="local-dir:.*cannot be created"):
        load_model(f"local-dir:{tmp_path}")
    with pytest.raises(WeightsError, match="foo:bar: cannot be created"):
        load_model("foo:bar")
    with pytest.raises(WeightsError, match="multiples of 16.*got 100 x 100"):
        load_model("scott_3_16", pretrained=False, img_size=100)


def test_local_folders_that_do_not_fit(model, tmp_path):
    folder = weights.export(model, tmp_path / "export")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(WeightsError, match="checkpoint does not fit SCOTT: missing"):
        load_model(f"local-dir:{folder}")
    file.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="cannot be created by timm"):
        load_model(f"local-dir:{folder}")


def test_networks_without_patch_tokens(photos):
    model = load_model("resnet18", pretrained=False, img_size=64)
    paths = find_images([photos])[:2]
    assert extract(model, paths, img_size=64)[0].shape == (2, 512)
    with pytest.raises(DataError, match="patch tokens.*ResNet"):
        extract(model, paths, img_size=64, tokens=True)


def test_a_run_under_way_is_its_target_encoder(tmp_path):
    (tmp_path / "recipe.toml").write_text('[model]\nname = "scott_3_16"\nimg_size = 32\n')
    with pytest.raises(WeightsError, match="checkpoint or an export.*neither yet"):
        load_model(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    target = timm.create_model("scott_3_16", img_size=32, use_mask_token=True).eval()
    for step, parts in ((1, {"target_encoder": {}}), (2, {"target_encoder": target.state_dict()})):
        torch.save({"objective": parts}, tmp_path / "checkpoints" / f"step_{step:09d}.pt")
    model, images = load_model(str(tmp_path)), torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model(images), target(images))
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    torch.save({"objective": {"model": {}}}, tmp_path / "checkpoints" / "step_000000003.pt")
    with pytest.raises(WeightsError, match="run of pretraining.*export"):
        load_model(str(tmp_path))

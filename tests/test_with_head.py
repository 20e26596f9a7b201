import pytest
import timm
import torch
from torch import nn

from scott_models.errors import DataError
from scott_models.features import load_model
from scott_models.heads import AttentiveHead, LinearHead
from scott_models.layers import PlainLayerNorm
from scott_models.with_head import export_classifier

NAMES = ["daisy", "poppy", "rose"]


def loaded(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64)


@pytest.fixture(params=["attentive", "linear"])
def head(request):
    head = AttentiveHead(384, 3) if request.param == "attentive" else LinearHead(384, 3)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    return head.eval()


@pytest.mark.parametrize("normed", [False, True])
def test_one_timm_model_classifies_as_backbone_and_head_did(head, normed, images, tmp_path):
    backbone = load_model("scott_3_16", img_size=64)
    backbone.fc_norm = PlainLayerNorm(384) if normed else nn.Identity()  # as an exported linear classifier has it
    model = loaded(export_classifier(backbone, head, NAMES, tmp_path / "classifier", (3, 64, 64)))
    features = backbone.forward_features(images)
    expected = head(features if head.takes_patches else backbone.forward_head(features, pre_logits=True))
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-4)
    assert model.pretrained_cfg["label_names"] == NAMES
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 64, 64)
    assert backbone.num_classes == 0


def test_it_can_be_had_without_its_head_or_with_another(head, images, tmp_path):
    backbone = load_model("scott_3_16", img_size=64)
    folder = export_classifier(backbone, head, NAMES, tmp_path / "classifier", (3, 64, 64))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    torch.testing.assert_close(model.forward_features(images), backbone.forward_features(images))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)
    assert model(images).shape == (2, 7)


def test_another_familys_model_takes_a_linear_layer_without_norm(images, tmp_path):
    backbone, head = load_model("resnet10t", pretrained=False), LinearHead(512, 3, norm=False)
    model = loaded(export_classifier(backbone, head, NAMES, tmp_path / "classifier", (3, 64, 64)))
    torch.testing.assert_close(model(images), head(backbone(images)), atol=1e-5, rtol=1e-5)
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 64, 64)
    assert model.pretrained_cfg["label_names"] == NAMES


def test_a_head_without_a_place_is_told(tmp_path):
    model = load_model("resnet10t", pretrained=False)
    with pytest.raises(DataError, match="export: expected a place for the head, found that ResNet has none"):
        export_classifier(model, LinearHead(512, 3), NAMES, tmp_path / "classifier", (3, 64, 64))
    assert not (tmp_path / "classifier").exists()

"""Entry points of torch.hub: torch.hub.load(CHECKOUT, "scott_3_16", source="local", pretrained=True)."""

from scott_models.models.scott import scott_3_16, scott_7_16, scott_9_16, scott_12_16, scott_vit_7_16, scott_vit_12_16

__all__ = ["scott_3_16", "scott_7_16", "scott_9_16", "scott_12_16", "scott_vit_7_16", "scott_vit_12_16"]

dependencies = ["torch", "torchvision", "timm"]

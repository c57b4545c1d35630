"""LPIPS: a trunk trained on ImageNet, and weights for its layers fitted to people's judgements."""

from __future__ import annotations

from imageprompt.core.errors import EncoderError
from imageprompt.evaluation.extractors.contract import Backbone


class LpipsRole:
    """AlexNet, VGG-16 or SqueezeNet 1.1; which one is told by the files."""

    name = "lpips"
    summary = (
        "a folder, or two files with a comma between: torchvision's alexnet-owt-7be5be79.pth (or "
        "vgg16, squeezenet1_1) and LPIPS' alex.pth (or vgg, squeeze); no default"
    )

    def open(self, source: str | None, *, device: str | None = None) -> Backbone:
        if source is None:
            raise EncoderError(
                "LPIPS",
                reason="it needs weights that are not part of this package",
                hint="Give them: --extractor lpips=alexnet-owt-7be5be79.pth,alex.pth; the metrics "
                "ssim and ms-ssim need none.",
            )
        from imageprompt.evaluation.extractors._lpips import Lpips

        return Lpips(source, device)


EXTRACTOR = LpipsRole()

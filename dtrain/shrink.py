"""A network that only shrinks: predictions at 1/8 of the input's size. Knows nothing of data, losses or devices."""

from torch import Tensor, nn

from dtrain.model import DecoderBlock, DenseEncoder, Prediction, scaled


class ShrinkNet(DenseEncoder):
    """The encoder of `DepthMaskNet` and a light head, to be compared with ground truth of the reduced size.

    Input (B, 6, H, W): cat(bg, fgbg) in [0, 1], H and W divisible by 8; prediction (B, 1, H/8, W/8). `width` scales
    all inner channel counts; 1.0 is 23,068,706 parameters, of which the head has 16,802.
    """

    def __init__(self, width: float = 1.0) -> None:
        """Raises ValueError if `width` leaves a layer without channels."""
        c32, c512 = scaled(32, width), scaled(512, width)
        super().__init__(width)
        self.reduce = DecoderBlock(c512, c32, 1)
        self.depth_head = nn.Conv2d(c32, 1, 1)
        self.mask_head = nn.Conv2d(c32, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Prediction:
        """Raises ValueError if height or width is not divisible by 8."""
        x = self.reduce(self.encode(images)[-1])
        return Prediction(self.depth_head(x), self.mask_head(x))

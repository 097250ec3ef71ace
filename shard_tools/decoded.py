"""The images of a tuple as pixels. One that cannot be decoded is named by shard, sample and component."""

from shard_tools.components import GRAY_COMPONENTS
from shard_tools.errors import UserError
from shard_tools.pixels import Pixels, decode_gray, decode_rgb


def decode_component(data: bytes, component: str, *, path: str, key: str) -> Pixels:
    """Decode depth and mask to uint8 (H, W), the others to uint8 (H, W, 3).

    `path` of the shard and `key` of the sample are for the message of the UserError that is raised for bad data.
    """
    try:
        return decode_gray(data) if component in GRAY_COMPONENTS else decode_rgb(data)
    except ValueError as error:
        raise UserError(
            f"{path}: sample {key!r}: its {component} cannot be decoded: {error}; "
            "copy the shard again, or mend the source and build again"
        ) from None

"""What a person sets of a camera: type `embodied`."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.cameras.configs import CameraConfig


@CameraConfig.register_subclass("embodied")
@dataclass(kw_only=True)
class EmbodiedCameraConfig(CameraConfig):
    """A camera of `embodied watch source=…`.

    Attributes:
        source: rtsp://…, http://… (MJPEG, video or single pictures), /dev/video0, a video file, a folder of images.
        crop: x, y, width, height of what is kept, pixels of the camera's own picture; None: all.
        flip: "h" mirrors left and right, "v" up and down, "hv" both.
        rotate: degrees clockwise: 0, 90, 180 or 270.
        trust_stamps: whether the stream's own times say how old a picture is; false for cameras whose clocks run wrong.
        fps: LeRobot's; of a live camera at most so many pictures a second are kept.
        width: LeRobot's; pixels of what comes out, with `height`; None: the camera's own.
        height: LeRobot's; as `width`.

    Raises:
        ValueError: no source, or one of width and height without the other.
    """

    source: str
    crop: list[int] | None = None
    flip: str = ""
    rotate: int = 0
    trust_stamps: bool = True

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError('EmbodiedCameraConfig: source must say which camera, such as "rtsp://host/stream".')
        if (self.width is None) != (self.height is None):
            raise ValueError(
                f"EmbodiedCameraConfig: width and height must be given together; got {self.width} and {self.height}."
            )

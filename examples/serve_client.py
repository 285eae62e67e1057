"""A client of `embodied serve`: frames go there, readings come back; one episode after another.

embodied serve goal="the drawer is open"          # in another terminal, or on another computer
python examples/serve_client.py http://127.0.0.1:8765
"""

import sys

import numpy as np

from embodied.serving.client import RemoteStream


def main(url: str) -> None:
    """Two episodes of three moments, then another goal for what was seen of the last."""
    camera = np.random.default_rng(0)
    stream = RemoteStream(url, views=["front"], timeout_s=30.0)
    try:
        for _ in range(2):
            for _ in range(3):
                frame = camera.integers(0, 256, (96, 96, 3), dtype=np.uint8)  # (H, W, 3) RGB; yours comes from a camera
                reading = stream.push({"front": frame})
                print(f"episode {reading.episode} row {reading.row}: potential {reading.combined:.4f}")
            stream.restart()
        stream.push({"front": camera.integers(0, 256, (96, 96, 3), dtype=np.uint8)})
        for head, past in stream.set_goal("the drawer is closed").items():
            print(f"with another goal, {head} says of the past: {np.round(past, 4)}")
    finally:
        stream.close()


if __name__ == "__main__":
    main(sys.argv[1])

"""A question with pictures to a chat endpoint, and an answer's form."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, Field

from rewards.chat.asking import ChatEndpoint, Message

RNG = np.random.default_rng(0)
FRAMES = [RNG.integers(0, 256, (6, 9, 3), np.uint8), RNG.integers(0, 256, (5, 4, 3), np.uint8)]
ASKED = [Message("system", "Be brief."), Message("user", "First <image>, then <image>?", FRAMES)]


class Choice(BaseModel):
    index: int = Field(ge=0, le=4)
    why: str


def endpoint(served, **options) -> ChatEndpoint:
    return ChatEndpoint(served.url, "tiny", **options)

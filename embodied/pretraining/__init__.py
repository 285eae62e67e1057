"""An encoder taught and judged on renders of worlds: one verb, `embodied pretrain`."""

"""Layers whose rows are the video's tokens, of blocks that many families have: what `ModelAdapter.frame_orders` is made of."""

from __future__ import annotations

from vditc.correction import FrameOrder

CROSS = r"attn2\.to_(q|out\.0)"  # keys and values are of the text


def frames_first(*layers: str) -> dict[str, FrameOrder]:
    """These regular expressions, clip by clip and frame by frame."""
    return dict.fromkeys(layers, FrameOrder.FRAMES_FIRST)


def block_frames(blocks: str = "transformer_blocks", *, feed_forward: str = "ff", cross: str = CROSS) -> dict[str, FrameOrder]:
    """Self-attention, the video's side of cross-attention and feed-forward of one list of blocks, in diffusers' usual names."""
    return frames_first(
        rf"{blocks}\.\d+\.attn1\.to_(q|k|v|out\.0)",
        rf"{blocks}\.\d+\.{cross}",
        rf"{blocks}\.\d+\.{feed_forward}\.net\.(0\.proj|2)",
    )

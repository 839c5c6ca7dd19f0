"""A very small CLIP architecture."""

from robustbench_vlm.models.open_clip import Architecture

NARROW = Architecture(
    config={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)

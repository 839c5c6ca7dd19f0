"""The architecture of the mini track: a CLIP that is small enough for a laptop. docs/mini.md explains the design."""

from robustbench_vlm.models.open_clip import Architecture

MINI = Architecture(
    config={
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    },
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)

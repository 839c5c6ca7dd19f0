"""A model with its card and weights next to this file."""

from pathlib import Path

from robustbench_vlm.models.card import read_card

SAMPLE_CLIP = read_card(Path(__file__).parent / "sample-clip.json")

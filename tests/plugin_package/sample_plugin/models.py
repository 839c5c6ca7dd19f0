"""A model whose card and weights lie beside this file."""

from pathlib import Path

from robustbench_vlm.models.card import read_card

SAMPLE_CLIP = read_card(Path(__file__).parent / "sample-clip.json")

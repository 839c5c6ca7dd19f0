"""The protocol of --images, for models on a user's own images."""

from robustbench_vlm.protocols.base import Protocol

IMAGES = Protocol(
    name="images",
    version=1,
    samples=1000,
    eps=("1/255", "2/255", "4/255"),
    small_eps=("5/255",),
    description="your own images (--images): all images, or 1000 if there are more; each model is attacked at its input"
    " size, at 1/255, 2/255 and 4/255; models with an input of less than 100 pixels are attacked at 5/255, as in mini;"
    " float32; a sample counts as robust if no stage of the attack breaks it",
)

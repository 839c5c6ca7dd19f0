"""The protocol for a user's own images, which the option --images names."""

from robustbench_vlm.protocols.base import Protocol

IMAGES = Protocol(
    name="images",
    version=1,
    samples=1000,
    eps=("1/255", "2/255", "4/255"),
    small_eps=("5/255",),
    description="This protocol is for your own images (--images). It uses all images, or 1000 if there are more. Each"
    " model is attacked at its input size, at 1/255, 2/255 and 4/255. A model with an input of less than 100 pixels is"
    " attacked at 5/255, as in mini. The precision is float32. A sample counts as robust if no stage of the attack"
    " breaks it",
)

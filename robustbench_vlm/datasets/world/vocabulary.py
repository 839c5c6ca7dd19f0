"""The attributes of a scene and the words for their values. The first of several words for a value is its name."""

SHAPES = (
    ("circle", "disc"),
    ("ring", "loop"),
    ("square", "block"),
    ("frame", "hollow square"),
    ("triangle", "pyramid"),
    ("diamond", "rhombus"),
    ("hexagon",),
    ("star",),
    ("cross", "plus sign"),
    ("heart",),
    ("moon", "crescent"),
    ("drop", "droplet"),
    ("arrow", "pointer"),
    ("bolt", "lightning bolt"),
    ("house", "home"),
    ("tree", "fir"),
    ("fish",),
    ("mushroom", "toadstool"),
    ("hourglass", "sand timer"),
    ("ladder",),
    ("flower", "blossom"),
    ("key",),
    ("cloud",),
    ("bottle", "flask"),
)
COLOURS = (
    ("red", "scarlet"),
    ("orange",),
    ("yellow", "golden"),
    ("green",),
    ("turquoise", "cyan"),
    ("blue",),
    ("purple", "violet"),
    ("pink", "rosy"),
    ("brown",),
    ("white",),
    ("black",),
    ("grey", "gray"),
)
COLOUR_VALUES = (
    (0.86, 0.10, 0.10),
    (1.00, 0.55, 0.05),
    (0.96, 0.90, 0.12),
    (0.10, 0.65, 0.15),
    (0.10, 0.82, 0.80),
    (0.10, 0.22, 0.92),
    (0.52, 0.10, 0.68),
    (1.00, 0.58, 0.78),
    (0.46, 0.26, 0.08),
    (0.97, 0.97, 0.97),
    (0.04, 0.04, 0.04),
    (0.50, 0.50, 0.50),
)
TEXTURES = (
    ("plain", "smooth"),
    ("striped", "banded"),
    ("barred", "upright-striped"),
    ("hatched", "diagonally striped"),
    ("checkered", "chequered"),
    ("dotted", "spotted"),
    ("gridded", "meshed"),
    ("speckled", "grainy"),
)
BACKGROUNDS = (
    ("plain", "empty"),
    ("fading", "gradient"),
    ("brick", "brick wall"),
    ("starry", "star-filled"),
    ("tiled", "tile"),
    ("cloudy", "misty"),
    ("horizon", "two-part"),
    ("sandy", "noisy"),
)
SIZES = (("small", "little", "tiny"), ("large", "big", "huge"))
POSITIONS = (
    ("top left", "upper left"),
    ("top", "top middle"),
    ("top right", "upper right"),
    ("left", "left side"),
    ("centre", "middle"),
    ("right", "right side"),
    ("bottom left", "lower left"),
    ("bottom", "bottom middle"),
    ("bottom right", "lower right"),
)
NUMBERS = (
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
)
RELATIONS = (("left of", "right of"), ("above", "below"))
"""Pairs of a relation and its converse, such as "left of" and "right of"."""
LIGHTS = (("night", "dark"), ("day", "daylight"))

ATTRIBUTES = (
    "shape",
    "colour",
    "texture",
    "background",
    "size",
    "position",
    "count",
    "digit",
    "relation",
    "second_shape",
    "second_colour",
    "outline",
    "faint",
    "light",
)
"""The columns of `Scenes.attributes`. The value -1 means that a scene does not have the attribute."""


def column(attribute: str) -> int:
    """Return the index of an attribute's column in `Scenes.attributes`."""
    return ATTRIBUTES.index(attribute)

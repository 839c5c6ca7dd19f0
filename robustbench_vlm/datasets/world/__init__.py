"""A small visual world, drawn by code: scenes as plain attributes, their pictures, their captions."""

"""Pickles in the format of Python 2, as in the CIFAR files: texts and pixels are byte strings."""

import struct

import numpy


def python2_pickle(value: object) -> bytes:
    """Return the protocol 2 pickle of a value: dicts, lists, texts, integers and uint8 arrays (N, M)."""
    return b"\x80\x02" + _pickled(value) + b"."


def _pickled(value: object) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_pickled(key) + _pickled(item) for key, item in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_pickled, value)) + b"e"
    if isinstance(value, str | bytes):
        text = value.encode() if isinstance(value, str) else value
        return b"T" + struct.pack("<i", len(text)) + text
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    assert isinstance(value, numpy.ndarray) and value.dtype == numpy.uint8
    height, width = value.shape
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    kind = b"(cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + _pickled(height) + _pickled(width) + b"t"
    return empty + b"(K\x01" + shape + kind[1:] + b"\x89" + _pickled(value.tobytes()) + b"tb"

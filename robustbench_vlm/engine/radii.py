"""The norm and the radii of a request, from the request, its protocol or its track. torch is not imported."""

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.engine.request import Request
from robustbench_vlm.protocols.base import SMALL_INPUT, Protocol
from robustbench_vlm.tracks import Track


def norm_of(request: Request, track: Track, protocol: Protocol) -> str:
    """Return the norm of a request: "Linf" or "L2".

    The eps comes from the request, the protocol or the track. Raises UserError if none of them has an eps in this norm,
    or if an eps is not for pixels in [0, 1].
    """
    norm = request.norm or track.norm
    if not request.eps and norm != ("Linf" if protocol.eps else track.norm):
        source = f"protocol {protocol.name!r}" if protocol.eps else f"track {track.name!r}"
        raise UserError(f"the {source} has no standard eps in {norm}: give one with --eps, such as 1/2")
    threats_of(request, track, protocol, norm, SMALL_INPUT)
    return norm


def threats_of(request: Request, track: Track, protocol: Protocol, norm: str, input_size: int) -> list[Threat]:
    """Return the norm with each requested eps, for a model with an input of `input_size` pixels.

    Raises UserError if an eps is not for pixels in [0, 1], or if the norm is unknown.
    """
    given = [parse_eps(eps) if isinstance(eps, str) else eps for eps in request.eps]
    radii = given or protocol.radii(input_size) or [track.standard_eps]
    return [Threat(norm, eps) for eps in dict.fromkeys(radii)]

"""Several small cells share the passes through one encoder, so that batches are full where each cell alone is small.

Each cell's attack runs in a thread of its own and asks its seat for embeddings. A thread that asks waits until every
thread that still runs has asked too; then all that was asked is answered in one pass of each kind. The threads go in
step, so that which pictures share a pass depends on the cells alone and never on time.

For the CPU only: on a GPU all backward passes run in one thread, where waiting for another one would never end.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")


@dataclass(eq=False)
class _Graph:
    """A pass whose gradient is still to come."""

    leaf: Tensor
    features: Tensor


@dataclass
class _Request:
    """What one thread asks for: embeddings of `tensor`, or the pull-back of the gradient `tensor` through `rows`."""

    kind: str
    tensor: Tensor
    rows: tuple[_Graph, slice] | None = None
    answer: Tensor | None = None
    error: BaseException | None = None


@dataclass(eq=False)
class _Meeting:
    encoder: nn.Module
    present: int
    waiting: dict[int, _Request] = field(default_factory=dict)
    bell: threading.Condition = field(default_factory=threading.Condition)

    def ask(self, seat: int, request: _Request) -> _Request:
        with self.bell:
            self.waiting[seat] = request
            self._serve_if_all_wait()
            while request.answer is None and request.error is None:
                self.bell.wait()
        if request.error is not None:
            raise request.error
        return request

    def leave(self) -> None:
        with self.bell:
            self.present -= 1
            self._serve_if_all_wait()

    def _serve_if_all_wait(self) -> None:
        if len(self.waiting) < self.present or not self.waiting:
            return
        requests = [self.waiting[seat] for seat in sorted(self.waiting)]
        self.waiting.clear()
        try:
            _answer(self.encoder, requests)
        except BaseException as error:  # each thread that waits has to hear of it
            for request in requests:
                request.error = error
        self.bell.notify_all()


class _Seat(nn.Module):
    """One thread's place: the shared encoder, as a module that takes pictures and gives embeddings."""

    def __init__(self, meeting: _Meeting, number: int) -> None:
        super().__init__()
        self._meeting, self._number = [meeting], number

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            embedded: Tensor = _Shared.apply(images, self)
            return embedded
        return self.ask(_Request("forward", images))

    def ask(self, request: _Request) -> Tensor:
        answer = self._meeting[0].ask(self._number, request).answer
        assert answer is not None
        return answer


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, seat: _Seat) -> Tensor:
        request = _Request("graph", images.detach())
        features = seat.ask(request)
        ctx.seat, ctx.rows = seat, request.rows
        return features

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.seat.ask(_Request("backward", gradient, ctx.rows)), None


def meet(encoder: nn.Module, tasks: Sequence[Callable[[nn.Module], Result]]) -> list[Result]:
    """Run tasks at the same time, each with a module in the encoder's place, and return what they return, in order.

    A task may call its module with pictures and take one gradient of each result. The first task's exception is
    raised when all have ended.
    """
    meeting = _Meeting(encoder, len(tasks))

    def attend(number: int) -> Result:
        try:
            return tasks[number](_Seat(meeting, number))
        finally:
            meeting.leave()

    with ThreadPoolExecutor(len(tasks)) as pool:
        answers = [pool.submit(attend, number) for number in range(len(tasks))]
    return [answer.result() for answer in answers]


def _answer(encoder: nn.Module, requests: Sequence[_Request]) -> None:
    _answer_forward(encoder, [request for request in requests if request.kind == "forward"])
    _answer_graph(encoder, [request for request in requests if request.kind == "graph"])
    graphs = dict.fromkeys(request.rows[0] for request in requests if request.kind == "backward" and request.rows)
    for graph in graphs:
        _answer_backward(graph, [request for request in requests if request.rows and request.rows[0] is graph])


def _answer_forward(encoder: nn.Module, requests: Sequence[_Request]) -> None:
    if requests:
        with torch.no_grad():
            features = encoder(torch.cat([request.tensor for request in requests]))
        for request, rows in zip(requests, _rows(requests), strict=True):
            request.answer = features[rows]


def _answer_graph(encoder: nn.Module, requests: Sequence[_Request]) -> None:
    if requests:
        with torch.enable_grad():
            leaf = torch.cat([request.tensor for request in requests]).requires_grad_()
            graph = _Graph(leaf, encoder(leaf))
        for request, rows in zip(requests, _rows(requests), strict=True):
            request.rows, request.answer = (graph, rows), graph.features.detach()[rows]


def _answer_backward(graph: _Graph, requests: Sequence[_Request]) -> None:
    requests = [request for request in requests if request.kind == "backward"]
    gradient = torch.zeros_like(graph.features)
    for request in requests:
        assert request.rows is not None
        gradient[request.rows[1]] = request.tensor
    (pulled,) = torch.autograd.grad(graph.features, graph.leaf, gradient)
    for request in requests:
        assert request.rows is not None
        request.answer = pulled[request.rows[1]]


def _rows(requests: Sequence[_Request]) -> list[slice]:
    stops = torch.tensor([len(request.tensor) for request in requests]).cumsum(0).tolist()
    return [slice(stop - len(request.tensor), stop) for stop, request in zip(stops, requests, strict=True)]

"""A stretch of updates, captured once and then replayed: without Python's, autograd's and the allocator's work in between.

An update as it is written is hundreds of small calls, and at two layers of 256 units what surrounds the arithmetic takes as long
as a third to a half of it. A graph is the same arithmetic in fixed memory: on a GPU a CUDA graph, on the CPU a list of torch's
own operations, recorded below autograd. Both are made from the update as it is written, so there is no second statement of it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mbaug.engine.process import tell_of_threads, warn_once

Call = Callable[[], object]


def captured(
    period: Callable[..., None],
    first: int,
    inputs: Sequence[Tensor],
    state: Sequence[Tensor],
    capture: Callable[[Call], Call] | None = None,
) -> Callable[..., None]:
    """Returns `period`, a function of a number and of tensors that changes `state` in place, as a graph that replays it.

    A graph reads fixed buffers, to which the tensors of each call are copied, and knows no other number than `first`; so
    `inputs` are like those to come, and `period` has no shape that depends on a value. A capture leaves `state` as it is. Its
    first replay is held to `period` itself. Where it differs, or where nothing can be captured, a warning says so, and `period`
    is returned: slower, but the same. `capture` makes a replay; None: that of the tensors' device in CAPTURES, if any.
    """
    tell_of_threads()
    device = inputs[0].device.type
    capture = capture or CAPTURES.get(device)
    if capture is None:
        return period
    fixed, before = ([tensor.detach().clone() for tensor in tensors] for tensors in (inputs, state))

    def reset() -> list[Tensor]:
        """Takes the state back to what it was, and returns what it had become."""
        after = [tensor.detach().clone() for tensor in state]
        for tensor, value in zip(state, before, strict=True):
            tensor.detach().copy_(value)
        return after

    try:
        period(first, *fixed)
        written = reset()
        replay = capture(partial(period, first, *fixed))
        reset()
        replay()
        pairs = zip(written, reset(), strict=True)
        # an agent that diverged has NaN, which equals NaN here
        equal = (np.array_equal(a.numpy(), b.numpy(), equal_nan=True) for a, b in pairs)
        if device == "cpu" and not all(equal):
            raise RuntimeError("its replay gives other numbers")
    except (RuntimeError, TypeError) as error:
        slower = "they run as they are written, which is slower"
        warn_once(f"the updates could not be captured as a graph ({error}): {slower}")
        return period
    finally:
        reset()

    def play(_: int, *given: Tensor) -> None:
        for buffer, tensor in zip(fixed, given, strict=True):
            buffer.copy_(tensor)
        replay()

    return play


def cuda_graph(call: Call) -> Call:
    """Returns the replay of `call` as a CUDA graph, after three calls that warm it up."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


class Operation(NamedTuple):
    """One of torch's operations (e.g. aten::bmm), as it was carried out."""

    function: torch._ops.OpOverload
    args: tuple
    kwargs: dict
    results: object  # one tensor, or several

    @property
    def name(self) -> str:
        """Without the variant: that of torch's function."""
        return self.function.overloadpacket.__name__


class _Recorder(TorchDispatchMode):
    """Keeps every operation that torch carries out, those of a backward pass included, and so every tensor alive."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # the signature is torch's
        results = function(*args, **(kwargs or {}))
        self.operations.append(Operation(function, args, kwargs or {}, results))
        return results


def cpu_graph(call: Call) -> Call:
    """Returns the replay of `call` on the CPU: its arithmetic alone, in the same order, so the same to the last bit.

    What only describes memory (a view, a transposition) or finds some is done here, once. Memory is used again as soon as no
    later operation reads it, the latest first: it is still in the processor's cache. While it is captured, every
    intermediate result of `call` is in memory at once. A number that is needed on the way is refused: it would be that of the
    capture for ever.
    """
    with _Recorder() as recorder:
        call()
    with torch.no_grad():
        calls = list(_compile(recorder.operations))

    def replay() -> None:
        with torch.inference_mode():
            for function in calls:
                function()

    return replay


def _compile(operations: Sequence[Operation]) -> Iterator[Call]:
    """Yields the calls that do the operations again, each after it has been done once."""
    last_read = {address: number for number, operation in enumerate(operations) for address in _memory(operation)}
    ours: dict[int, Tensor] = {}  # by the id of a recorded tensor: what stands for it in the graph
    held: dict[int, torch.UntypedStorage] = {}  # by the address of recorded memory
    free: dict[int, list[torch.UntypedStorage]] = defaultdict(list)  # by size

    def stand_in(tensor: Tensor) -> Tensor:
        return ours.get(id(tensor), tensor)

    for number, operation in enumerate(operations):
        function, results = operation.function, _tensors(operation.results)
        args, kwargs = tree_map_only(Tensor, stand_in, (operation.args, operation.kwargs))
        if function._schema.is_mutable:
            yield _first_that_works(_ways(operation, args, kwargs))
        elif not results:
            raise RuntimeError(f"{function} needs a number on the way")
        elif _memory(results) & _memory((operation.args, operation.kwargs)):  # a view
            ours |= {id(old): new for old, new in zip(results, _tensors(function(*args, **kwargs)), strict=True)}
        else:
            for tensor in results:
                storage = tensor.untyped_storage()
                held[storage.data_ptr()] = memory = (free[len(storage)] or [torch.UntypedStorage(len(storage))]).pop()
                ours[id(tensor)] = tensor.new_empty(0).set_(memory, 0, tensor.shape, tensor.stride())
            if not operation.name.startswith(("empty", "new_empty")):
                yield _first_that_works(_ways(operation, args, kwargs, [ours[id(tensor)] for tensor in results]))
        for address in _memory(operation) & held.keys():
            if last_read[address] == number:
                free[len(held[address])].append(held.pop(address))


def _ways(operation: Operation, args: tuple, kwargs: dict, results: Sequence[Tensor] = ()) -> Iterator[Call]:
    """Yields calls that do the operation again, the fastest first: in place or, given `results`, into their memory.

    A function of `torch` or of `Tensor` has half the overhead of the same one in torch.ops.
    """
    name, packet = operation.name, operation.function.overloadpacket
    if not results:
        owner = Tensor if name.endswith("_") and not name.startswith("_") else torch
        if hasattr(owner, name):
            yield partial(getattr(owner, name), *args, **kwargs)
        yield partial(operation.function, *args, **kwargs)
        return
    if name in ("_to_copy", "clone"):
        yield partial(results[0].copy_, args[0])
    if hasattr(torch, name) and len(results) == 1:
        yield partial(getattr(torch, name), *args, **kwargs, out=results[0])
    for variant in (getattr(packet, overload) for overload in packet.overloads()):
        written = [argument.name for argument in variant._schema.arguments if argument.is_out]
        if len(written) == len(results):
            yield partial(variant, *args, **kwargs, **dict(zip(written, results, strict=True)))

    def copied() -> None:
        for result, found in zip(results, _tensors(operation.function(*args, **kwargs)), strict=True):
            result.copy_(found)

    yield copied


def _first_that_works(calls: Iterator[Call]) -> Call:
    """Returns the first of some calls that torch accepts, after calling it."""
    for call in calls:
        try:
            call()
        except (TypeError, RuntimeError):  # no `out` there, or a variant of other arguments
            continue
        return call
    raise RuntimeError("torch refuses an operation that it has just done")


def _tensors(tree: object) -> list[Tensor]:
    """Returns the tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tree: object) -> set[int]:
    """Returns the addresses of the memory that the tensors in `tree` are views of."""
    return {tensor.untyped_storage().data_ptr() for tensor in _tensors(tree)} - {0}


CAPTURES = {"cpu": cpu_graph, "cuda": cuda_graph}

"""Captures a sequence of updates once and replays it without the overhead of Python, autograd and the memory allocator.

An update makes hundreds of small calls. With two layers of 256 units, the overhead around the arithmetic takes a third to a
half as long as the arithmetic itself. A graph is the same arithmetic in fixed memory: on a GPU a CUDA graph, on the CPU a list
of torch operations, recorded below autograd. Both are captured from the ordinary code of the update, which exists only once.
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

from mbaug.engine.process import warn_of_threads, warn_once

Call = Callable[[], object]
CONSTANT = "new_full", "ones_like"  # operations of an update whose results are the same in every replay


def captured(
    period: Callable[..., None],
    inputs: Sequence[Tensor],
    state: Sequence[Tensor],
) -> Callable[..., None]:
    """Returns a function that replays `period(*tensors)`, which changes `state` in place, as a graph.

    The graph copies the tensors of each call to fixed buffers. So later tensors must have the
    shapes, dtypes and device of `inputs`. No shape in `period` may depend on a value, and
    everything else that it reads must stay the same. Capturing leaves `state` unchanged.

    On the CPU we compare the first replay with `period` itself, bit for bit. If it differs, or if the capture fails, we warn
    and return `period`, which is slower but gives the same numbers. We also return it on a device that CAPTURES lacks.
    """
    warn_of_threads()
    device = inputs[0].device.type
    capture = CAPTURES.get(device)
    if capture is None:
        return period
    buffers, before = ([tensor.detach().clone() for tensor in tensors] for tensors in (inputs, state))

    def reset() -> list[Tensor]:
        """Restores the original state; returns the state before that."""
        after = [tensor.detach().clone() for tensor in state]
        for tensor, value in zip(state, before, strict=True):
            tensor.detach().copy_(value)
        return after

    try:
        period(*buffers)
        expected = reset()
        replay = capture(partial(period, *buffers))
        reset()
        replay()
        found = reset()
        if device == "cpu":  # an agent that diverged holds NaN, which must count as equal
            pairs = zip(expected, found, strict=True)
            if not all(np.array_equal(a.numpy(), b.numpy(), equal_nan=True) for a, b in pairs):
                raise RuntimeError("the replay gives different numbers")
    except (RuntimeError, TypeError) as error:
        slower = "they run without a graph, which is slower"
        warn_once(f"the updates could not be captured as a graph ({error}): {slower}")
        return period
    finally:
        reset()

    def play(*tensors: Tensor) -> None:
        for buffer, tensor in zip(buffers, tensors, strict=True):
            buffer.copy_(tensor)
        replay()

    return play


def cuda_graph(call: Call) -> Call:
    """Returns the replay of `call` as a CUDA graph, captured after three warm-up calls."""
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
    """One recorded call of a torch operation, e.g. aten::bmm."""

    function: torch._ops.OpOverload
    args: tuple
    kwargs: dict
    results: object  # one tensor, or several

    @property
    def name(self) -> str:
        """The operation's name without its overload."""
        return self.function.overloadpacket.__name__


class _Recorder(TorchDispatchMode):
    """Records every operation that torch carries out, backward passes included. This keeps every tensor alive."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # the signature is torch's
        results = function(*args, **(kwargs or {}))
        self.operations.append(Operation(function, args, kwargs or {}, results))
        return results


def cpu_graph(call: Call) -> Call:
    """Returns the replay of `call` on the CPU: only its arithmetic, in the same order, and so with the same bits.

    Operations that only describe memory (a view, a transposition), allocate it or make a constant run once, during the capture.
    The replay reuses memory as soon as no later operation reads it, the most recently used first, because that is still in the
    processor's cache. During the capture all intermediate results of `call` are in memory at once.

    Raises:
        RuntimeError: An operation returns a Python number, which every replay would repeat, or a shape depends on values.
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
    """Yields the calls that repeat the operations, each after carrying it out once."""
    last_read = {address: number for number, operation in enumerate(operations) for address in _memory(operation)}
    changed = set().union(*(_memory(operation) for operation in operations if operation.function._schema.is_mutable))
    stand_ins: dict[int, Tensor] = {}  # the graph's tensor for each recorded one, by id
    held: dict[int, torch.UntypedStorage] = {}  # the graph's memory in use, by the recorded memory's address
    free: dict[int, list[torch.UntypedStorage]] = defaultdict(list)  # the graph's memory to reuse, by size

    def stand_in(tensor: Tensor) -> Tensor:
        return stand_ins.get(id(tensor), tensor)

    for number, operation in enumerate(operations):
        function, results = operation.function, _tensors(operation.results)
        args, kwargs = tree_map_only(Tensor, stand_in, (operation.args, operation.kwargs))
        if _has_a_shape_of_values(operation):
            raise RuntimeError(f"the shape of what {function} returns depends on values")
        if function._schema.is_mutable:
            yield _first_that_works(_ways(operation, args, kwargs))
        elif not results:
            raise RuntimeError(f"{function} returns a Python number, which every replay would repeat")
        elif _memory(results) & _memory((operation.args, operation.kwargs)):  # a view
            stand_ins |= {id(old): new for old, new in zip(results, _tensors(function(*args, **kwargs)), strict=True)}
        elif operation.name in CONSTANT and not _memory(results) & changed:
            stand_ins |= {id(tensor): tensor.clone() for tensor in results}
        else:
            for tensor in results:
                storage = tensor.untyped_storage()
                size = len(storage)
                memory = free[size].pop() if free[size] else torch.UntypedStorage(size)
                held[storage.data_ptr()] = memory
                stand_ins[id(tensor)] = tensor.new_empty(0).set_(memory, 0, tensor.shape, tensor.stride())
            if not operation.name.startswith(("empty", "new_empty")):
                yield _first_that_works(_ways(operation, args, kwargs, [stand_ins[id(tensor)] for tensor in results]))
        for address in _memory(operation) & held.keys():
            if last_read[address] == number:
                free[len(held[address])].append(held.pop(address))


def _has_a_shape_of_values(operation: Operation) -> bool:
    """Returns whether a result's shape depends on values, as with nonzero or a boolean mask."""
    masks = operation.name != "index" or any(index.dtype in (torch.bool, torch.uint8) for index in _tensors(operation.args[1]))
    return torch.Tag.dynamic_output_shape in operation.function.tags and masks


def _ways(operation: Operation, args: tuple, kwargs: dict, results: Sequence[Tensor] = ()) -> Iterator[Call]:
    """Yields calls that repeat the operation, fastest first.

    They work in place or, given `results`, write their output into the memory of these. Functions
    of `torch` and methods of `Tensor` have half the overhead of the same operation in torch.ops.
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

    def compute_and_copy() -> None:
        for result, computed in zip(results, _tensors(operation.function(*args, **kwargs)), strict=True):
            result.copy_(computed)

    yield compute_and_copy


def _first_that_works(calls: Iterator[Call]) -> Call:
    """Returns the first call that torch accepts, after carrying it out."""
    for call in calls:
        try:
            call()
        except (TypeError, RuntimeError):  # no `out` argument, or an overload with other arguments
            continue
        return call
    raise RuntimeError("torch refuses to repeat an operation that it has just carried out")


def _tensors(tree: object) -> list[Tensor]:
    """Returns the tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tree: object) -> set[int]:
    """Returns the addresses of the storages of all tensors in `tree`."""
    return {tensor.untyped_storage().data_ptr() for tensor in _tensors(tree)} - {0}


CAPTURES = {"cpu": cpu_graph, "cuda": cuda_graph}

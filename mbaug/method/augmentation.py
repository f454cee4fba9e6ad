"""The paper's one idea: in each batch, replace a fraction of the next states by imagined ones, and nothing else.

The predictor is an argument, so the idea works with any model. It predicts only from the fixed rows
of a dataset. So we keep a table of K imagined next states per row and redraw it from time to time.
A single pick from it has the same distribution as one call of the model, at 1/26 of the cost:
10 tables x 10 samples x 10,000 rows instead of 200,000 updates x 128 next states. The K samples of a
row stay the same until the next table.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mbaug.checks import require
from mbaug.method import imagination, transitions
from mbaug.method.imagination import Fit
from mbaug.method.settings import Augmentation
from mbaug.method.transitions import Action, Batch, Dataset, Predict, State, gather


def replaced(rate: float, batch_size: int) -> int:
    """Returns round(rate * B), the number of next states that are replaced in a batch.

    Raises:
        ValueError: The rate is outside [0, 1].
    """
    require(0 <= rate <= 1, f"the augmentation rate is {rate}, but it must be in [0, 1]")
    return round(rate * batch_size)


def augment(batch: Batch, imagined: Float[Tensor, "*axes imagined state"], rate: float) -> Batch:
    """Returns the batch with its first n = round(rate * B) next states imagined.

    State, action, reward and terminal stay as recorded. The rows of a batch are drawn
    independently, so its first n rows are as random as any other n. The batch may have any leading
    axes, so that a block of batches is augmented at once. `imagined` holds at least n rows of each
    batch.
    Source: Macaluso et al. 2023; the first author's code for "reward and done stay as recorded".

    Raises:
        ValueError: The rate is outside [0, 1], or `imagined` holds fewer rows.
    """
    count = replaced(rate, batch.next_state.shape[-2])
    few = f"{imagined.shape[-2]} imagined rows were given, but a batch needs {count}"
    require(imagined.shape[-2] >= count, few)
    next_state = torch.cat([imagined[..., :count, :], batch.next_state[..., count:, :]], dim=-2)
    return batch._replace(next_state=next_state)


def imagined_table(
    predict: Predict,
    state: State,
    action: Action,
    next_state: State,
    samples: int,
    generator: torch.Generator,
) -> Float[Tensor, "rows samples state"]:
    """Returns K = `samples` independent predictions for each row of one agent's dataset.

    Raises:
        ValueError: A prediction does not have the shape of the next states.
    """
    draws = [predict(state, action, next_state, generator) for _ in range(samples)]
    given, wanted = tuple(draws[0].shape), tuple(next_state.shape)
    sentence = f"predict returned shape {given}, but the next states have {wanted}: they must agree"
    require(given == wanted, sentence)
    return torch.stack(draws, dim=1)


def pick(
    imagined: Float[Tensor, "population rows samples state"],
    index: Int[Tensor, "block population count"],
    generators: Sequence[torch.Generator],
) -> Float[Tensor, "block population count state"]:
    """Returns a random sample of the table for each row of `index`, each agent from its own table and generator."""
    samples, shape = imagined.shape[2], index[:, 0].shape
    drawn = [torch.randint(samples, shape, generator=each, device=index.device) for each in generators]
    return gather(imagined.flatten(1, 2), index * samples + torch.stack(drawn, dim=1))


def by_doubt(
    index: Int[Tensor, "block population batch"], doubt: Float[Tensor, "population rows"], picks: str
) -> Int[Tensor, "block population batch"]:
    """Returns each batch's rows in the order of their doubt: the least first if `picks` is "trusted", else the most.

    `augment` replaces the first n rows. A loss is a mean over the batch, so nothing else depends on their order.
    """
    doubted = doubt.expand(len(index), -1, -1).gather(-1, index)
    return index.gather(-1, doubted.argsort(dim=-1, descending=picks == "distrusted", stable=True))


def rollout(
    predict: Predict,
    action: Float[Tensor, "rows horizon action"],
    next_state: Float[Tensor, "rows horizon state"],
    length: Int[Tensor, " rows"],
) -> Predict:
    """Returns the prediction that follows each row's window of recorded actions and ends after `length` steps.

    Each imagined state is the input of the next step, so errors may compound. A source that
    perturbs the recorded next state receives that of the same step. With windows of one step this
    is `predict`.
    """

    def predict_window(state, _action, _next_state, generator):
        last = state
        for step in range(action.shape[1]):
            state = predict(state, action[:, step], next_state[:, step], generator)
            last = torch.where((length > step).unsqueeze(-1), state, last)
        return last

    return predict_window


def next_states(
    rule: Augmentation, fitted: Fit, drawn: Dataset, generator: torch.Generator, horizon: int = 1
) -> Float[Tensor, "rows samples state"]:
    """Returns K = `rule.table_samples` imagined next states for each row of one agent's dataset, in the environment's units.

    They come from the source that `rule` names. With a horizon above 1 they are the states at the end of each row's window,
    predicted step by step.

    Raises:
        ValueError: As `imagination.predictor`.
    """
    predict = imagination.predictor(rule.source, fitted, drawn)
    if horizon > 1:
        window = transitions.windows(drawn, horizon, 1.0)  # the discount changes only the rewards
        recorded = torch.from_numpy(drawn.action[window.row]), torch.from_numpy(drawn.next_state[window.row])
        predict = rollout(predict, *recorded, torch.from_numpy(window.length))
    state, action, next_state = map(torch.from_numpy, (drawn.state, drawn.action, drawn.next_state))
    return imagined_table(predict, state, action, next_state, rule.table_samples, generator)


def branches(
    step: Callable,
    act: Callable,
    state: Float[np.ndarray, "starts state"],
    steps: int,
    size: int,
) -> Dataset:
    """Returns `size` transitions of a policy's own actions: at most `steps` from each start.

    The paper's augmentation keeps the recorded actions. Branches show the most that a perfect model
    could contribute if it predicts the outcomes of the policy's own actions. A terminal transition
    ends its branch. The result is evenly spaced among all imagined transitions. Some repeat if
    there are fewer than `size`.
    Source: Janner et al. 2019, arXiv 1906.08253.

    Args:
        step: (state, action) -> next state, reward and terminal of each row.
        act: (state) -> the policy's action in each row.
        state: the first state of each branch, in the environment's units.
        steps: the largest number of steps in a branch.
        size: the number of transitions to return.
    """
    columns = []
    for _ in range(steps):
        if not len(state):  # all have ended
            break
        action = act(state)
        next_state, reward, terminal = step(state, action)
        columns.append((state, action, reward, next_state, terminal))
        state = next_state[~terminal]
    rows = np.linspace(0, sum(len(state) for state, *_ in columns) - 1, size).astype(int)
    met = [np.concatenate(column)[rows] for column in zip(*columns, strict=True)]
    none = np.zeros(size, dtype=int)
    return Dataset("branches", *met, truncated=none.astype(bool), episode=none, part=none)


def mix(batches: Batch, imagined: Batch) -> Batch:
    """Returns the batches with their first rows replaced by whole imagined transitions, n of each batch."""
    count = imagined.reward.shape[2]
    return Batch(*(torch.cat([new, old[:, :, count:]], dim=2) for new, old in zip(imagined, batches, strict=True)))


def recorded_only(loss: Callable, count: int) -> Callable:
    """Returns an actor's loss without the first `count` rows of a batch, which are imagined and for the critics alone."""

    def of_recorded(actor, critics, batch: Batch, settings):
        return loss(actor, critics, Batch(*(part[:, count:] for part in batch)), settings)

    return of_recorded


def outside(imagined: Float[Tensor, "rows samples state"], next_state: State) -> float:
    """Returns the fraction of imagined components outside the data's [min, max] of their dimension."""
    low, high = next_state.amin(dim=0), next_state.amax(dim=0)
    return ((imagined < low) | (imagined > high)).float().mean().item()

"""The paper's one idea: in each batch, replace a fraction of the next states by imagined ones, and nothing else.

`predict` is an argument, so the idea depends on no model. Its inputs are the fixed rows of a dataset; so a table of K imagined
next states a row, redrawn now and then, gives what calling the model on every batch gives, for a 26th of the cost.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mbaug.settings import require
from mbaug.transitions import Batch, Predict


def replaced(rate: float, batch_size: int) -> int:
    """Returns round(rate * batch_size): how many next states of a batch are replaced.

    Raises:
        ValueError: the rate is outside [0, 1].
    """
    require(0 <= rate <= 1, f"the augmentation rate is {rate}, but it must be in [0, 1]")
    return round(rate * batch_size)


def augment(batch: Batch, imagined: Float[Tensor, "population batch state"], rate: float) -> Batch:
    """Returns the batch with its first round(rate * B) next states imagined; state, action, reward, terminal stay.

    The rows of a batch are drawn independently, so its first n rows are as random as any other n.
    Source: Macaluso et al. 2023; the authors' code for "reward and done stay as recorded".
    """
    count = replaced(rate, batch.state.shape[1])
    next_state = torch.cat([imagined[:, :count], batch.next_state[:, count:]], dim=1)
    return batch._replace(next_state=next_state)


def imagined_table(
    predict: Predict, batch: Batch, samples: int, generators: Sequence[torch.Generator]
) -> Float[Tensor, "population rows samples state"]:
    """Returns K = `samples` independent predictions for each row of a dataset (a batch that holds all of its rows).

    Raises:
        ValueError: `predict` returned something else than a next state a row.
    """
    draws = [predict(batch.state, batch.action, batch.next_state, generators) for _ in range(samples)]
    given, wanted = tuple(draws[0].shape), tuple(batch.next_state.shape)
    require(given == wanted, f"predict returned shape {given}, but the next states have {wanted}: they must agree")
    return torch.stack(draws, dim=2)


def rollout(
    predict: Predict,
    action: Float[Tensor, "population rows horizon action"],
    next_state: Float[Tensor, "population rows horizon state"],
    length: Int[Tensor, "population rows"],
) -> Predict:
    """Returns the prediction that follows each row's window of recorded actions and ends after `length` steps.

    Each imagined state is the input of the next step, so errors may compound. With windows of one step this is `predict`.

    Args:
        predict: one step.
        action: recorded along the windows.
        next_state: recorded along the windows, for sources that start from it.
        length: steps of each window.
    """

    def predict_window(state, first_action, last_state, generators):
        imagined = last = predict(state, action[:, :, 0], next_state[:, :, 0], generators)
        for step in range(1, action.shape[2]):
            imagined = predict(imagined, action[:, :, step], next_state[:, :, step], generators)
            last = torch.where((length > step).unsqueeze(-1), imagined, last)
        return last

    return predict_window


def replace_(
    next_state: Float[Tensor, "block population batch state"],
    index: Int[Tensor, "block population batch"],
    imagined: Float[Tensor, "population rows samples state"],
    count: int,
    generators: Sequence[torch.Generator],
) -> None:
    """Replaces, in place, the first `count` next states of each batch of a block by a random sample of its row's table."""
    _, rows, samples, size = imagined.shape
    for k, generator in enumerate(generators):
        chosen = index[:, k, :count]
        sample = torch.randint(samples, chosen.shape, generator=generator, device=index.device)
        flat = imagined[k].reshape(rows * samples, size)
        next_state[:, k, :count] = flat.index_select(0, (chosen * samples + sample).reshape(-1)).view(*chosen.shape, size)


def outside(
    imagined: Float[Tensor, "population rows samples state"], next_state: Float[Tensor, "population rows state"]
) -> Float[Tensor, " population"]:
    """Returns the fraction of imagined components outside the data's [min, max] of their dimension."""
    low, high = next_state.amin(dim=1)[:, None, None], next_state.amax(dim=1)[:, None, None]
    return ((imagined < low) | (imagined > high)).float().mean(dim=(1, 2, 3))

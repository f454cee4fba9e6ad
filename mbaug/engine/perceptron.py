"""Forward and backward pass of a population of perceptrons, with as little work as possible between the matrix products.

The backward pass is derived by hand, so that it computes only the gradients that are needed. For example, an actor's step needs
no gradient of the critics' weights.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Layers = tuple[tuple[Tensor, Tensor], ...]
EPSILON = 1e-5  # added to the variance in LayerNorm, torch's default
WIDE = 64  # least width for a bfloat16 product: in narrower layers casting costs more than it saves


def _normalise(hidden: Tensor) -> Tensor:
    """Replaces u by LN(u) = s (u - mean u), s = 1 / sqrt(var u + 1e-5), in place; returns s.

    It takes half the time of torch's layer_norm.
    """
    units = hidden.shape[-1]
    hidden.sub_(hidden.sum(-1, keepdim=True), alpha=1 / units)
    length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
    scale = torch.addcmul(length.new_full((), EPSILON), length, length, value=1 / units).rsqrt_()
    hidden.mul_(scale)
    return scale


def _normalise_backward(gradient: Tensor, normalised: Tensor, scale: Tensor) -> None:
    """Replaces g = dL/dx, where x = LN(u), by dL/du = s (g - mean g - x mean(g x)), in place."""
    share, projection = 1 / gradient.shape[-1], (gradient * normalised).sum(-1, keepdim=True)
    gradient.sub_(gradient.sum(-1, keepdim=True), alpha=share).addcmul_(normalised, projection, value=-share).mul_(scale)


class _Perceptron(torch.autograd.Function):
    """h_l = relu(h_{l-1} W_l + b_l), optionally with LayerNorm before relu and a linear last layer. N networks of any depth."""

    @staticmethod
    def forward(ctx, inputs, flat, layers, product_dtype, normalised):
        hidden, activations, weights, norms = inputs, [], [], []
        for number, (weight, bias) in enumerate(layers, start=1):
            activations.append(hidden)
            if weight.shape[-1] == 1:  # a weighted sum: torch.bmm takes as long as for sixteen outputs
                hidden = (hidden * weight.transpose(1, 2)).sum(-1, keepdim=True).add_(bias)
            elif product_dtype is not None and min(weight.shape[1:]) >= WIDE:
                weight = weight.to(product_dtype)
                activations[-1] = (hidden, hidden.to(product_dtype))
                hidden = torch.bmm(activations[-1][1], weight).to(bias.dtype).add_(bias)
            else:
                hidden = torch.bmm(hidden, weight).add_(bias)
            weights.append(weight)
            if number < len(layers):
                if normalised:
                    norms.append((hidden, _normalise(hidden)))
                if normalised and any(ctx.needs_input_grad):
                    hidden = hidden.clamp_min(0)  # relu, which in a graph would need a copy
                else:
                    hidden.relu_()
        ctx.record = activations, weights, norms, layers, flat
        return hidden

    @staticmethod
    def backward(ctx, gradient):
        activations, weights, norms, layers, flat = ctx.record
        wants_inputs, wants_flat = ctx.needs_input_grad[:2]
        flat_gradient = torch.empty_like(flat if wants_flat else flat[:0])
        if wants_flat:
            last = layers[-1][1]
            flat_gradient[last.storage_offset() + last.numel() :] = 0  # the padding
        for number in reversed(range(len(weights))):
            hidden, weight = activations[number], weights[number]
            factor = gradient
            if isinstance(hidden, tuple):  # this layer's products ran in low precision
                hidden, low_hidden = hidden
                factor = gradient.to(low_hidden.dtype)
            if wants_flat:
                places = ((view.shape, view.stride(), view.storage_offset()) for view in layers[number])
                weight_gradient, bias_gradient = (flat_gradient.as_strided(*place) for place in places)
                torch.sum(gradient, 1, keepdim=True, out=bias_gradient)
                if weight.shape[-1] == 1:
                    torch.sum(hidden * gradient, 1, out=weight_gradient.squeeze(-1))
                elif factor is gradient:
                    torch.bmm(hidden.transpose(1, 2), gradient, out=weight_gradient)
                else:
                    weight_gradient.copy_(torch.bmm(low_hidden.transpose(1, 2), factor))
            if number == 0 and not wants_inputs:
                return None, flat_gradient if wants_flat else None, None, None, None
            if weight.shape[-1] == 1:
                gradient = gradient * weight.transpose(1, 2)
            else:
                gradient = torch.bmm(factor, weight.transpose(1, 2)).to(gradient.dtype)
            if number > 0:  # relu's gradient, in place: `gradient` is our own tensor by now
                torch.ops.aten.threshold_backward.grad_input(gradient, hidden, 0, grad_input=gradient)
                if norms:
                    _normalise_backward(gradient, *norms[number - 1])
        return gradient, flat_gradient if wants_flat else None, None, None, None


def forward(
    inputs: Float[Tensor, "networks batch features"],
    flat: Float[Tensor, " parameters"],
    layers: Layers,
    product_dtype: torch.dtype | None = None,
    normalised: bool = False,
) -> Float[Tensor, "networks batch outputs"]:
    """Returns the outputs of N perceptrons, those of `method.networks.plain_forward` up to rounding (tests compare the two).

    Products of wide layers use `product_dtype`, e.g. torch.bfloat16. Sums, narrow layers and gradients use the dtype of `flat`.
    """
    return _Perceptron.apply(inputs, flat, layers, product_dtype, normalised)

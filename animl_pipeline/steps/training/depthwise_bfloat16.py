"""Faster training of depthwise convolutions in bfloat16 on CPUs: two of their gradients are computed in float32.

In bfloat16, the gradient of the input of a strided depthwise convolution takes 4 to 80 times as long as in float32. The gradient of
the weights of a 5 x 5 kernel takes 4 to 6 times as long (torch 2.15, channels_last, a CPU with avx512_bf16). Everything else is as
fast or faster in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

LARGE_KERNEL = 5
"""From this kernel size on, gradients of weights are computed in float32."""

Pair = tuple[int, int]


class Float32DepthwiseGradients(TorchFunctionMode):
    """A context in which depthwise ``conv2d`` in bfloat16 on the CPU has the gradients of :class:`_Depthwise`."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Called by torch instead of each of its functions."""
        kwargs = dict(kwargs or {})
        if func is not torch.conv2d:
            return func(*args, **kwargs)
        return _conv2d(func, *args, **kwargs)


def _conv2d(
    original: Callable[..., Any],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """As ``torch.conv2d``, which is ``original``."""
    depthwise = groups > 1 and groups == input.shape[1] == weight.shape[0] and weight.shape[1] == 1
    slow = max(weight.shape[2:]) >= LARGE_KERNEL or max(_pair(stride)) > 1
    training = torch.is_grad_enabled() and input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if not (depthwise and slow and training) or isinstance(padding, str) or _pair(dilation) != (1, 1):
        result: Tensor = original(input, weight, bias, stride, padding, dilation, groups)
        return result
    dtype = torch.get_autocast_dtype("cpu")
    output: Tensor = _Depthwise.apply(input.to(dtype), weight.to(dtype), _pair(stride), _pair(padding))
    return output if bias is None else output + bias.to(output.dtype)[:, None, None]


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution; its gradients equal torch's up to rounding."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.geometry = (stride, padding)
        return functional.conv2d(inputs, weight, None, stride, padding, 1, inputs.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        inputs, weight = ctx.saved_tensors
        stride, padding = ctx.geometry
        tensors = (gradients[0].contiguous(memory_format=torch.channels_last), inputs, weight)

        def gradient_of(number: int, *, in_float32: bool) -> Tensor:
            """Torch's gradient of inputs (0) or weight (1)."""
            used = [t.float() for t in tensors] if in_float32 else tensors
            wanted = [i == number for i in range(3)]
            found = torch.ops.aten.convolution_backward(*used, None, stride, padding, (1, 1), False, (0, 0), inputs.shape[1], wanted)
            gradient: Tensor = found[number].to(inputs.dtype)
            return gradient

        of_inputs = gradient_of(0, in_float32=max(stride) > 1) if ctx.needs_input_grad[0] else None
        of_weight = gradient_of(1, in_float32=max(weight.shape[2:]) >= LARGE_KERNEL) if ctx.needs_input_grad[1] else None
        return of_inputs, of_weight, None, None


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])

"""What the tests of composite patterns share: calls against masked attention in float64."""

import torch

from tests.test_attention import gradients, tensors
from vidattn import attention
from vidattn.testing import reference_attention

__all__ = ["assert_exact", "gradients", "tensors"]


def assert_exact(
    pattern, layout, inputs, mask, keys_and_values=None, scale=None, backends=("torch", "dense")
):
    """Output, log-sum-exp and their gradients equal attention with the mask; so does the output on its own.

    ``keys_and_values`` stand in the reference for the inputs' own, and may depend on them.
    """
    inputs = [*inputs, scale] if isinstance(scale, torch.Tensor) else inputs
    expected = reference_attention(inputs[0], *(keys_and_values or inputs[1:3]), mask, scale)
    slopes = gradients(expected, inputs)
    for backend in backends:
        got = attention(*inputs[:3], pattern, layout, scale=scale, return_lse=True, backend=backend)
        alone = attention(*inputs[:3], pattern, layout, scale=scale, backend=backend)
        for one, other in zip((*got, alone), (*expected, expected[0]), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
        for one, other in zip(gradients(got, inputs), slopes, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)

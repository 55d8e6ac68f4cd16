"""The matrices of an LBDN as `verify_layers` takes them."""

import torch


def chain(network):
    """Return the matrices between the activations of an LBDN, first layer first, in float64."""
    with torch.no_grad():
        layers, scale = network.double().explicit()
        outs = [scale, *(layer.out_map() for layer in layers[:-1])]
        weights = [
            layer.in_map() @ out if out.ndim > 1 else layer.in_map() * out
            for layer, out in zip(layers, outs, strict=True)
        ]
        return [one.numpy() for one in (*weights[:-1], weights[-1] * scale)]

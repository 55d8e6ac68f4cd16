"""Policies for use elsewhere: ONNX, C99, one NumPy file, safetensors, each with the certificate of what it holds."""

from robust_policies.export.write import FORMATS, export_policy

__all__ = ["FORMATS", "export_policy"]

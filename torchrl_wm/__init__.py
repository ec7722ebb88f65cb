"""World models for TorchRL."""

__version__ = "0.1.0"

"""Train ResNet-50 from scratch on ImageNet-1k."""

__version__ = "0.1.0"

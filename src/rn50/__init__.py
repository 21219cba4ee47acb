"""Train ResNet-50 from scratch on ImageNet-1k."""

"""Augmentation: batched, on the device, from draws made on the host."""

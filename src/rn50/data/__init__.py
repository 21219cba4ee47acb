"""From images on a disk to batches on a device."""

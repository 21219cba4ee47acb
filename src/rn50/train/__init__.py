"""Training: state, step, schedule, checkpoints and the loop that ties them."""

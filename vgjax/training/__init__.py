"""Training: gradient descent and gradient flow, snapshots of every layer, which networks learn and where it ends."""

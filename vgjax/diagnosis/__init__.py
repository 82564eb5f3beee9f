"""What is wrong with a network: the gradient flow of any JAX model, as it is, and a verdict."""

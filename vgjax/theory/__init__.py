"""Infinite-width and finite-width predictions; imports nothing of the simulator, so that it can contradict it."""

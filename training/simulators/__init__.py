"""Vectorised simulators of the training environments, checked against them in the tests."""

"""Offline data: scripted behaviour in the training environments, one module for each domain."""

"""The simulated environments, one module for each domain."""

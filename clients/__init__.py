"""What talks to the service over the network: the SDK, simulator clients and examples."""

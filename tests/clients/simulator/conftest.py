"""The service of these tests."""

from tests.served import kitchen_like_bundle, maze_like_bundle, service_url

__all__ = ["kitchen_like_bundle", "maze_like_bundle", "service_url"]

"""A script on a connection of its own survives what redis-py's client survives."""

import pytest
from redis.exceptions import ConnectionError, ResponseError

from service.redis_script import RedisScript
from service.storage import connect

COUNT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


def test_a_script_is_loaded_when_redis_does_not_know_it_or_has_forgotten_it(redis_url: str) -> None:
    with connect(redis_url, 2.0) as redis:
        count = RedisScript(redis, COUNT)
        assert count(["n"], [2]) == 2
        redis.script_flush()
        assert count(["n"], [b"3"]) == 5


def test_a_connection_that_was_cut_is_made_again(redis_url: str) -> None:
    with connect(redis_url, 2.0) as redis, connect(redis_url, 2.0) as other:
        count = RedisScript(redis, COUNT)
        assert count(["n"], [1]) == 1
        other.client_kill_filter(_type="normal", skipme=True)
        assert count(["n"], [1]) == 2


def test_a_redis_that_is_gone_and_a_script_that_fails_raise_what_the_client_raises(redis_url: str) -> None:
    with connect("unix:///nowhere/redis.sock", 0.1) as redis, pytest.raises(ConnectionError):
        RedisScript(redis, COUNT)(["n"], [1])
    with connect(redis_url, 2.0) as redis:
        count = RedisScript(redis, COUNT)
        with pytest.raises(ResponseError, match="integer"):
            count(["n"], [b"x"])
        assert count(["n"], [1]) == 1

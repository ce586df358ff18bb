"""The learner container's health, by what Redis heard from it."""

import socket

import pytest

from deploy.learner_alive import SILENT_S, main, silence_s
from service.keys import JOBS, LEARNERS
from service.storage import connect


@pytest.fixture
def learner_asks(redis_url):
    """Lets a learner of this name ask for work once."""

    def ask(name):
        with connect(redis_url, 2.0) as redis:
            redis.xgroup_create(JOBS, LEARNERS, id="0", mkstream=True)
            redis.xgroup_createconsumer(JOBS, LEARNERS, name)
            redis.xreadgroup(LEARNERS, name, {JOBS: ">"}, count=1)

    return ask


def test_a_learner_that_asks_for_work_is_alive(redis_url, learner_asks, monkeypatch, capsys):
    learner_asks(f"{socket.gethostname()}-7")
    monkeypatch.setenv("SKILLET_REDIS_URL", redis_url)
    assert main() == 0
    assert "asked for work 0." in capsys.readouterr().out


def test_another_hosts_learner_does_not_count(redis_url, learner_asks, monkeypatch):
    learner_asks("elsewhere-7")
    assert silence_s(redis_url, "elsewhere", 2.0) < SILENT_S
    assert silence_s(redis_url, "here", 2.0) == float("inf")
    monkeypatch.setenv("SKILLET_REDIS_URL", redis_url)
    assert main() == 1


def test_a_redis_that_no_learner_ever_asked_and_one_that_is_gone_are_no_good_health(redis_url, monkeypatch, tmp_path):
    assert silence_s(redis_url, "here", 2.0) == float("inf")
    monkeypatch.setenv("SKILLET_REDIS_URL", f"unix://{tmp_path}/none.sock")
    assert main() == 1

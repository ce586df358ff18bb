"""Speaks openpi's protocol by hand, as tests want it."""

import json
from contextlib import contextmanager

import msgspec
import numpy as np


def packed(array):
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}


class Robot:
    """Speaks the protocol by hand."""

    def __init__(self, socket):
        self.socket = socket
        self.metadata = msgspec.msgpack.decode(socket.receive_bytes())

    def infer(self, observation=None, **more):
        state_of = {} if observation is None else {"state": packed(np.array(observation))}
        self.socket.send_bytes(msgspec.msgpack.encode({**state_of, **more}))
        return msgspec.msgpack.decode(self.socket.receive_bytes())

    def refused(self, data):
        self.socket.send_bytes(data if isinstance(data, bytes) else msgspec.msgpack.encode(data))
        return json.loads(self.socket.receive_text())


@contextmanager
def connected(api, query=""):
    with api.websocket_connect(f"/{query}") as socket:
        yield Robot(socket)


def report(observation, **more):
    return {"state": packed(np.array(observation)), **more}


def stored_of(api, robot):
    return api.app.state.parts.store.load(robot.metadata["session_id"]).session


def records_of(api, robot):
    store = api.app.state.parts.store
    return store.episodes(store.load(robot.metadata["session_id"]).keys)

"""The Python SDK: open a session, act, report what happened. Needs numpy and the standard library only."""

from clients.sdk.client import SkilletClient
from clients.sdk.control_loop import Command, ControlLoop, OutageLadder
from clients.sdk.edge import Decoder, OnnxDecoder
from clients.sdk.edge_session import EdgeSession
from clients.sdk.errors import ConnectionFailed, EpisodeState, InvalidObservation, ItemsRefused, ServiceError, SkilletError, UnexpectedReply
from clients.sdk.http_wire import Reply
from clients.sdk.models import (
    Action,
    Belief,
    BundleSummary,
    EpisodeStarted,
    FinetuningStatus,
    ItemResult,
    ModelSpec,
    Particle,
    PolicyEvent,
    PolicyVersions,
    RewardsPosted,
    SessionInfo,
    TaskPosterior,
    Transition,
    TransitionsPosted,
)
from clients.sdk.session import Session
from clients.sdk.session_group import SessionGroup
from clients.sdk.transport import HttpTransport, Transport

__all__ = [
    "Action",
    "Belief",
    "BundleSummary",
    "Command",
    "ConnectionFailed",
    "ControlLoop",
    "Decoder",
    "EdgeSession",
    "EpisodeStarted",
    "EpisodeState",
    "FinetuningStatus",
    "HttpTransport",
    "InvalidObservation",
    "ItemResult",
    "ItemsRefused",
    "ModelSpec",
    "OnnxDecoder",
    "OutageLadder",
    "Particle",
    "PolicyEvent",
    "PolicyVersions",
    "Reply",
    "RewardsPosted",
    "ServiceError",
    "Session",
    "SessionGroup",
    "SessionInfo",
    "SkilletClient",
    "SkilletError",
    "TaskPosterior",
    "Transition",
    "TransitionsPosted",
    "Transport",
    "UnexpectedReply",
]

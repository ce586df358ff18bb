"""The Python SDK: open a session, act, report what happened. Needs numpy and the standard library only."""

from clients.sdk.client import SkilletClient
from clients.sdk.errors import ConnectionFailed, EpisodeState, InvalidObservation, ServiceError, SkilletError, UnexpectedReply
from clients.sdk.models import (
    Action,
    BundleSummary,
    EpisodeStarted,
    FinetuningStatus,
    ModelSpec,
    PolicyVersions,
    SessionInfo,
    TaskPosterior,
    Transition,
    TransitionsPosted,
)
from clients.sdk.session import Session
from clients.sdk.transport import HttpTransport, Reply, Transport

__all__ = [
    "Action",
    "BundleSummary",
    "ConnectionFailed",
    "EpisodeStarted",
    "EpisodeState",
    "FinetuningStatus",
    "HttpTransport",
    "InvalidObservation",
    "ModelSpec",
    "PolicyVersions",
    "Reply",
    "ServiceError",
    "Session",
    "SessionInfo",
    "SkilletClient",
    "SkilletError",
    "TaskPosterior",
    "Transition",
    "TransitionsPosted",
    "Transport",
    "UnexpectedReply",
]

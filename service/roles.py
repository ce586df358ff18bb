"""Who may make which call: one line each. ``docs/security.md`` shows this table, and a test tries every cell of it over HTTP.

A call that is not in the table does not exist: the application refuses to start with a route that has no line here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_SESSIONS: Final = "/v1/sessions/"
_SESSION: Final = "/v1/sessions/{session_id}"


class Role(StrEnum):
    """What a token is for."""

    ROBOT = "robot"
    OPERATOR = "operator"
    ADMIN = "admin"


class Access(StrEnum):
    """What a caller may: nothing, this in the sessions of its own name, or this anywhere."""

    NO = "no"
    OWN = "own"
    YES = "yes"


@dataclass(frozen=True)
class Rule:
    """Who may make one call. ``method`` is HTTP's, or ``WS`` for a websocket."""

    method: str
    path: str
    stranger: Access
    robot: Access
    operator: Access
    admin: Access

    def access(self, role: Role | None) -> Access:
        """For this role; None is a stranger, who has no valid token."""
        found: Access = getattr(self, role or "stranger")
        return found

    @property
    def call(self) -> str:
        """Method and path."""
        return f"{self.method} {self.path}"


_TABLE: Final = """
GET     /livez                                     yes  yes  yes  yes
GET     /readyz                                    yes  yes  yes  yes
HEAD    /livez                                     yes  yes  yes  yes
HEAD    /readyz                                    yes  yes  yes  yes
GET     /docs                                      yes  yes  yes  yes
GET     /openapi.json                              yes  yes  yes  yes
GET     /metrics                                   no   no   yes  yes
GET     /v1/bundles                                no   yes  yes  yes
GET     /v1/bundles/{name}                         no   yes  yes  yes
GET     /v1/bundles/{name}/skill_decoder.onnx      no   yes  yes  yes
GET     /v1/bundles/{name}/{file}                  no   no   yes  yes
POST    /v1/sessions                               no   yes  yes  yes
GET     /v1/sessions                               no   own  yes  yes
GET     /v1/sessions/{session_id}                  no   own  yes  yes
PATCH   /v1/sessions/{session_id}                  no   own  yes  yes
DELETE  /v1/sessions/{session_id}                  no   own  own  yes
POST    /v1/sessions/{session_id}/episodes         no   own  own  yes
POST    /v1/sessions/{session_id}/episodes/end     no   own  own  yes
POST    /v1/sessions/{session_id}/act              no   own  own  yes
POST    /v1/sessions/{session_id}/step             no   own  own  yes
POST    /v1/sessions/{session_id}/steps            no   own  own  yes
POST    /v1/sessions/{session_id}/transitions      no   own  own  yes
POST    /v1/sessions/{session_id}/rewards          no   own  own  yes
GET     /v1/sessions/{session_id}/task             no   own  yes  yes
GET     /v1/sessions/{session_id}/policy           no   own  yes  yes
POST    /v1/sessions/{session_id}/policy/approve   no   no   yes  yes
POST    /v1/sessions/{session_id}/policy/rollback  no   no   yes  yes
GET     /v1/sessions/{session_id}/finetuning       no   own  yes  yes
PATCH   /v1/sessions/{session_id}/finetuning       no   own  yes  yes
POST    /v1/act                                    no   yes  yes  yes
POST    /v1/step                                   no   yes  yes  yes
WS      /v1/stream                                 no   yes  yes  yes
WS      /                                          no   yes  yes  yes
WS      /openpi                                    no   yes  yes  yes
GET     /v2/health/live                                    yes  yes  yes  yes
GET     /v2/health/ready                                   yes  yes  yes  yes
GET     /v2                                                no   yes  yes  yes
GET     /v2/models/{model}                                 no   yes  yes  yes
GET     /v2/models/{model}/ready                           no   yes  yes  yes
POST    /v2/models/{model}/infer                           no   yes  yes  yes
GET     /v2/models/{model}/versions/{version}              no   yes  yes  yes
GET     /v2/models/{model}/versions/{version}/ready        no   yes  yes  yes
POST    /v2/models/{model}/versions/{version}/infer        no   yes  yes  yes
GET     /v1/tokens                                 no   no   no   yes
POST    /v1/tokens                                 no   no   no   yes
DELETE  /v1/tokens/{token_id}                      no   no   no   yes
"""

RULES: Final = tuple(Rule(method, path, *map(Access, access)) for method, path, *access in map(str.split, _TABLE.strip().splitlines()))


class Rules:
    """Finds the rule of a request."""

    def __init__(self, rules: Iterable[Rule] = RULES) -> None:
        self._exact: dict[tuple[str, str], Rule] = {}
        self._in_session: dict[tuple[str, str], Rule] = {}
        self._patterns: list[tuple[re.Pattern[str], Rule]] = []
        for rule in rules:
            before, _, in_session = rule.path.partition(_SESSION)
            if in_session or rule.path == _SESSION:
                self._in_session[rule.method, in_session] = rule
            elif "{" in before:
                self._patterns.append((re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(before))), rule))
            else:
                self._exact[rule.method, before] = rule

    def find(self, method: str, path: str) -> tuple[Rule, str] | None:
        """The rule, and the session's id ("" where the path names none). None when no call is at this path with this method."""
        if path.startswith(_SESSIONS):
            session_id, slash, rest = path[len(_SESSIONS) :].partition("/")
            rule = self._in_session.get((method, slash + rest))
            return (rule, session_id) if rule and session_id else None
        found = self._exact.get((method, path)) or next(
            (rule for pattern, rule in self._patterns if rule.method == method and pattern.fullmatch(path)), None
        )
        return (found, "") if found else None

    def methods(self, path: str) -> list[str]:
        """The methods that a path has."""
        return [method for method in ("GET", "HEAD", "POST", "PATCH", "DELETE") if self.find(method, path)]


def as_markdown(rules: Iterable[Rule] = RULES) -> str:
    """The table as ``docs/security.md`` shows it."""
    lines = ["| call | stranger | robot | operator | admin |", "|---|---|---|---|---|"]
    lines += [f"| `{rule.call}` | {rule.stranger} | {rule.robot} | {rule.operator} | {rule.admin} |" for rule in rules]
    return "\n".join(lines) + "\n"

"""``python -m service tokens create|ls|revoke``: who may use a service. Works beside the service or without it, on its Redis."""

import argparse
import sys
import time

from redis.exceptions import RedisError

from service.errors import ServiceError
from service.open_redis import data_dir_option, redis_of, settings_of
from service.roles import Role
from service.tokens import TokenStore
from service.views import timestamp
from training.contract.errors import SkilletError


def main(arguments: list[str]) -> int:
    """Run one command. Returns the exit code: 2 for an error, which it says in one line."""
    redis = data_dir_option()
    parser = argparse.ArgumentParser("python -m service tokens", description=__doc__, parents=[redis])
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", parents=[redis], help="make a token and print it, this once")
    create.add_argument("--role", type=Role, choices=list(Role), required=True, help="docs/security.md says which may do what")
    create.add_argument("--name", required=True, help="of the robot or person; tokens of one name own the same sessions")
    create.add_argument("--days", type=float, help="how long it is valid, 36500 at most; default: until it is revoked")
    commands.add_parser("ls", parents=[redis], help="list the tokens, without their secrets")
    revoke = commands.add_parser("revoke", parents=[redis], help="let a token open nothing any more")
    revoke.add_argument("token_id", help="as ls shows it")
    options = parser.parse_args(arguments)
    try:
        with redis_of(settings_of(options), make=options.command == "create") as client:
            _COMMANDS[options.command](TokenStore(client), options)
    except (SkilletError, RedisError) as error:
        action = error.action if isinstance(error, ServiceError) and error.action else ""
        sys.stderr.write(f"skillet: {error}{'; ' if action else ''}{action}\n")
        return 2
    return 0


def _create(store: TokenStore, options: argparse.Namespace) -> None:
    token, text = store.create(options.role, options.name, None if options.days is None else 86400 * options.days)
    sys.stderr.write(f"token {token.token_id} of the role {token.role} for {token.name}; it is not shown again:\n")
    sys.stdout.write(f"{text}\n")


def _ls(store: TokenStore, options: argparse.Namespace) -> None:
    now = time.time()
    for token in store.all():
        until = f"until {timestamp(token.expires_at)}" if token.expires_at else "until revoked"
        state = token.why_invalid(now) or until
        sys.stdout.write(f"{token.token_id}  {token.role:8}  {token.name:24}  made {timestamp(token.created_at)}  {state}\n")


def _revoke(store: TokenStore, options: argparse.Namespace) -> None:
    token = store.revoke(options.token_id)
    sys.stdout.write(f"token {token.token_id} of {token.name} opens nothing any more\n")


_COMMANDS = {"create": _create, "ls": _ls, "revoke": _revoke}

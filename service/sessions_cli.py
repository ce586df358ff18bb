"""``python -m service sessions ls|show|export|replay|delete``: looking after the sessions of a Redis, beside the service or without it."""

import argparse
import functools
import os
import sys
import warnings
from pathlib import Path

import msgspec
import numpy as np
from redis.exceptions import RedisError

from service import views
from service.app import load_bundles
from service.errors import StartupError
from service.open_redis import data_dir_option, redis_of, settings_of
from service.policies import MetaPolicy, Networks
from service.replay import Policies, replay
from service.session_log import Acted, Began, Event, Reported, Rewarded, read_log
from service.session_state import Loaded, Session
from service.sessions import SessionStore
from service.settings import Settings
from service.versions import VersionStore
from training.contract.errors import SkilletError


def main(arguments: list[str]) -> int:
    """Run one command. Returns the exit code: 1 when a replay found differences, 2 for an error, which it says in one line."""
    redis = data_dir_option()
    parser = argparse.ArgumentParser("python -m service sessions", description=__doc__, parents=[redis])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ls", parents=[redis], help="list the sessions, newest first")
    for name, what in (("show", "print a session as JSON"), ("delete", "close a session and remove everything of it")):
        commands.add_parser(name, parents=[redis], help=what).add_argument("session_id")
    again = commands.add_parser("replay", parents=[redis], help="act again in every logged state, and tell where the actions differ")
    again.add_argument("session_id")
    again.add_argument("--bundle", type=Path, required=True, help="the session's bundle, or another one for the same robot")
    export = commands.add_parser("export", parents=[redis], help="write the completed episodes of a session's log as a Minari dataset")
    export.add_argument("session_id")
    export.add_argument(
        "--dataset", required=True, help="Minari id, such as robots/night-v0; lands in MINARI_DATASETS_PATH, without it in data/minari"
    )
    options = parser.parse_args(arguments)
    try:
        with redis_of(settings_of(options)) as client:
            return _COMMANDS[options.command](SessionStore(client), options)
    except (SkilletError, RedisError) as error:
        sys.stderr.write(f"skillet: {error}\n")
        return 2


def _ls(store: SessionStore, options: argparse.Namespace) -> int:
    cursor: str | None = None
    while True:
        page, cursor = store.page(100, cursor)
        for loaded in page:
            session = loaded.session
            sys.stdout.write(
                f"{session.session_id}  {session.bundle:12}  {session.episodes_completed:5} episodes  {session.rows:6} skill transitions  "
                f"version {loaded.current_version:3}  expires {views.timestamp(session.expires_at)}\n"
            )
        if cursor is None:
            return 0


def _show(store: SessionStore, options: argparse.Namespace) -> int:
    loaded = store.load(options.session_id)
    versions = VersionStore(store.redis)
    told = {
        "session": views.session_view(loaded, store.task_version(loaded.keys)),
        "policy": views.policy_view(loaded, versions.versions(loaded.keys), versions.history(loaded.keys)),
        "log_events": len(read_log(store.redis, loaded.keys)),
    }
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(told)).decode() + "\n")
    return 0


def _delete(store: SessionStore, options: argparse.Namespace) -> int:
    store.close(options.session_id)
    return 0


def _replay(store: SessionStore, options: argparse.Namespace) -> int:
    loaded = store.load(options.session_id)
    (networks,) = load_bundles(Settings(bundles=(options.bundle,))).values()
    found = replay(
        _blank(loaded.session), read_log(store.redis, loaded.keys), networks, _policies(store, loaded, networks), _context(store, loaded)
    )
    sys.stdout.write(f"{found.actions} actions replayed, {found.identical} identical, {len(found.differences)} differ; ")
    sys.stdout.write(f"{found.unknown} skills of versions whose weights are gone were taken from the log\n")
    for difference in found.differences[:20]:
        sys.stdout.write(f"episode {difference.episode} step {difference.step}: by up to {difference.largest:.3g}\n")
    return 1 if found.differences else 0


def _policies(store: SessionStore, loaded: Loaded, networks: Networks) -> Policies:
    versions, fits = VersionStore(store.redis), networks.digest == loaded.session.digest

    @functools.cache
    def policy(version: int) -> MetaPolicy | None:
        return versions.policy(loaded.keys, version, networks) if fits or version == 0 else None

    return policy


def _context(store: SessionStore, loaded: Loaded) -> np.ndarray:
    """All skill transitions [N, D], whatever their width."""
    rows = loaded.session.rows
    size = int(store.redis.strlen(loaded.keys.context))
    return store.context(loaded.keys, 0, rows, size // (4 * rows)) if rows else np.zeros((0, 1), np.float32)


def _blank(session: Session) -> Session:
    """A session with the same options that nothing has happened to."""
    names = ("session_id", "bundle", "digest", "seed", "conditioning_episodes", "exploration", "finetuning", "deterministic", "ttl_s")
    return Session(**{name: getattr(session, name) for name in names}, created_at=0.0, expires_at=0.0, forced_phase=session.forced_phase)


def _export(store: SessionStore, options: argparse.Namespace) -> int:
    loaded = store.load(options.session_id)
    episodes = whole_episodes(read_log(store.redis, loaded.keys))
    if not episodes:
        raise StartupError("the log holds no whole episode to export")
    try:
        import gymnasium
        import minari
        from minari.data_collector import EpisodeBuffer
        from minari.dataset.minari_dataset import DATASET_ID_RE
    except ImportError as error:
        raise StartupError("exporting needs Minari: pip install 'minari[hdf5]'") from error
    name = DATASET_ID_RE.fullmatch(options.dataset)
    if name is None or name["version"] is None:  # Minari would find out with its folder made
        raise StartupError(f"{options.dataset!r} is no Minari id: expected a name and a version, such as robots/night-v0")
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or "data/minari").resolve()  # where training looks
    if (root / options.dataset).exists():
        raise StartupError(f"{root / options.dataset} is there already: choose another name or version")
    os.environ["MINARI_DATASETS_PATH"] = str(root)  # the only way in which Minari takes a folder
    buffers = [EpisodeBuffer(**episode) for episode in episodes]
    box = [gymnasium.spaces.Box(-np.inf, np.inf, episodes[0][name].shape[1:], np.float32) for name in ("observations", "actions")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari warns of every optional field that is left out (author, e-mail, link)
        minari.create_dataset_from_buffers(
            options.dataset, buffers, observation_space=box[0], action_space=box[1], description=f"Skillet session {options.session_id}"
        )
    sys.stdout.write(f"{len(buffers)} episodes, {sum(len(episode['actions']) for episode in episodes)} steps in {root / options.dataset}\n")
    return 0


def whole_episodes(events: list[Event]) -> list[dict[str, np.ndarray]]:
    """Arrays of the episodes of which every acted step has its transition; an episode that was cut short counts as truncated."""
    found: list[dict[str, np.ndarray]] = []
    starts = [index for index, event in enumerate(events) if isinstance(event, Began)]
    for first, end in zip(starts, [*starts[1:], len(events)], strict=True):
        acted = {event.step: event for event in events[first:end] if isinstance(event, Acted)}
        reported = {event.step: event for event in events[first:end] if isinstance(event, Reported)}
        rewards = {event.step: event.reward for event in events[first:end] if isinstance(event, Rewarded)}
        steps = sorted(reported)
        if not steps or steps != list(range(len(steps))) or any(step not in acted for step in steps):
            continue
        states = [acted[step].state for step in steps] + [reported[steps[-1]].next_state]
        truncations = np.array([reported[step].truncated for step in steps])
        truncations[-1] |= not reported[steps[-1]].terminated
        found.append(
            {
                "observations": np.stack([np.frombuffer(state, "<f4") for state in states]).astype(np.float32),
                "actions": np.stack([np.frombuffer(acted[step].action, "<f4") for step in steps]).astype(np.float32),
                "rewards": np.array([rewards.get(step, reported[step].reward or 0.0) for step in steps], np.float32),
                "terminations": np.array([reported[step].terminated for step in steps]),
                "truncations": truncations,
            }
        )
    return found


_COMMANDS = {"ls": _ls, "show": _show, "delete": _delete, "replay": _replay, "export": _export}

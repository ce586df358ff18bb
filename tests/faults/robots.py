"""Robots that drive sessions through the SDK while things break, and remember what they were told."""

import threading
import time
from dataclasses import dataclass, field

import numpy as np

from clients.sdk import Session, SkilletClient

STEPS = 25


@dataclass
class Robot(threading.Thread):
    """One session. Where the robot is next depends on its action, so that one different bit shows in all that follows."""

    url: str
    seed: int
    episodes: int | None = None  # None: until `stop`
    pause_s: float = 0.0
    actions: list[np.ndarray] = field(default_factory=list)
    answers: list[tuple[float, float]] = field(default_factory=list)  # when each action was asked for, and when it came
    finetuning: bool = True
    stop: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None
    session: Session | None = None

    def __post_init__(self):
        super().__init__(daemon=True)

    def __hash__(self):
        return id(self)

    def run(self):
        try:
            with SkilletClient(self.url, timeout_s=5.0, retry_for_s=60.0) as client:
                client.bundles()
                self._drive(client)
        except BaseException as error:
            self.failure = error

    def _drive(self, client: SkilletClient) -> None:
        self.session = session = client.open_session(
            seed=self.seed, conditioning_episodes=2, exploration="switching", finetuning=self.finetuning
        )
        done = 0
        while done != self.episodes and not (self.episodes is None and self.stop.is_set()):
            self._episode(session)
            done += 1
            if done >= 2 and self.finetuning:
                self._await_learner(session)
        self.episodes = done
        info = session.info()
        self.counted = (info.episodes_completed, info.context_size, info.gaps, info.pending_rewards, info.policy_version)
        self.task = session.task()

    def _episode(self, session: Session) -> None:
        session.start_episode()
        where = np.array([0.1 * self.seed, 0.2, 0.3, 0.4], np.float32)
        action = self._told(lambda: session.act(where))
        for step in range(STEPS):
            where = np.clip(where + 0.1 * np.concatenate([action, -action]), -3, 3).astype(np.float32)
            last = step == STEPS - 1
            action = self._told(lambda where=where, last=last: session.step(float(where[0] > 0.2), where, last, False))
            time.sleep(self.pause_s)

    def _told(self, ask) -> np.ndarray:
        asked = time.monotonic()
        reply = ask()
        self.answers.append((asked, time.monotonic()))
        if reply.action is not None:
            self.actions.append(reply.action)
        return reply.action

    def _await_learner(self, session: Session) -> None:
        """A version comes in at the same episode whatever happens, so that two runs can be compared to the bit."""
        while True:
            status = session.finetuning(wait_s=5)
            if status.state == "failed":
                raise AssertionError(f"fine-tuning failed: {status.error}")
            if status.paused or status.episodes_learned >= status.episodes_completed:  # paused: it went back, as its twin will
                return


def run_all(robots: list[Robot], timeout_s: float = 240) -> None:
    """Start the robots, wait for their end, and raise what any of them met."""
    for robot in robots:
        robot.start()
    join(robots, timeout_s)


def join(robots: list[Robot], timeout_s: float = 240) -> None:
    for robot in robots:
        robot.join(timeout_s)
        assert not robot.is_alive(), "a robot hangs"
        if robot.failure is not None:
            raise robot.failure


def twins_of(robots: list[Robot], url: str) -> list[Robot]:
    """Undisturbed robots that do the same."""
    return [Robot(url, robot.seed, episodes=robot.episodes, finetuning=robot.finetuning) for robot in robots]


def identical(robot: Robot, twin: Robot) -> bool:
    """Every action, the posterior and what was counted, to the bit."""
    same = len(robot.actions) == len(twin.actions) and all(map(np.array_equal, robot.actions, twin.actions))
    return same and robot.counted == twin.counted and np.array_equal(robot.task.mean, twin.task.mean)


def await_answer(robots: list[Robot], killed_at: float) -> float:
    """When the first robot, which only acts, first had an action that it asked for after the kill."""
    deadline = time.monotonic() + 60
    while (found := next((asked for asked in robots[0].answers[-200:] if asked[0] > killed_at), None)) is None:
        assert time.monotonic() < deadline, "no action any more"
        for robot in robots:
            if robot.failure is not None:
                raise robot.failure
        time.sleep(0.002)
    return found[1]

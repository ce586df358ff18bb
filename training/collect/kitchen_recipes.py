"""How a scripted arm does each of the kitchen's subtasks, as generators of targets: one for every control period.

Offsets are in metres in the world: x to the right, y away from the robot, z up. ``yield`` hands a target to whoever drives the arm, and
returns when the scene has moved on by one control period.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from training.collect.kitchen_arm import CLOSED, OPEN, SITE, Pose, Posture, Vector, facing, turned

Targets = Iterator[Pose | Posture]
RIGHT_CLOSED = (1.0, -1.0)
STALLED = 8
"""A hand that has come no nearer for so many steps is as near as it gets: a joint's limit or an obstacle holds it."""
PREGRASP = {
    "knob2_site": (-1.03, -1.54, 1.46, -2.59, 0.11, 1.95, 1.39),
    "knob4_site": (-1.03, -1.27, 1.24, -2.48, 0.0, 1.95, 1.15),
    "light_site": (-0.96, -1.64, 1.32, -2.43, -0.12, 1.87, 1.61),
    "slide_site": (-1.46, -1.71, 0.82, -2.23, -1.03, 1.72, 2.59),
    "hinge_site2": (-1.19, -1.54, 1.07, -1.75, -0.55, 1.37, 1.9),
    "microhandle_site": (-0.58, -1.74, 1.83, -2.04, -0.22, 1.22, 2.04),
    "kettle_site": (-0.30, -1.70, 2.0, -1.98, 0.35, 0.51, 1.77),
}
"""Postures [7], rad, some centimetres short of the place to grasp."""


@dataclass
class Scene:
    """What a recipe sees of the world, and how this episode varies it.

    Attributes:
        data: MuJoCo's data of the simulation.
        state: the last observation [30].
        rng: of the episode.
        jitter_m: standard deviation of each waypoint along each axis.
        haste: factor on speeds, at most 1.
        patience: longest extra wait after the fingers have moved, in steps.
    """

    data: Any
    state: Vector
    rng: np.random.Generator
    jitter_m: float
    haste: float
    patience: int

    def site(self, name: str) -> Vector:
        """Position of a site in the world, m."""
        return self.data.site(name).xpos.copy()

    def near(self, point: Vector) -> Vector:
        """A point jittered."""
        return point + self.rng.normal(0.0, self.jitter_m, 3)


def reach(scene: Scene, pose: Pose, tolerance: float, steps: int = 45) -> Targets:
    """Go to a pose until the hand is within ``tolerance`` m of it."""
    pose = replace(pose, position=scene.near(pose.position), speed=pose.speed * scene.haste)
    nearest, waited = np.inf, 0
    for _ in range(steps):
        yield pose
        distance = float(np.linalg.norm(scene.site(SITE) - pose.position))
        nearest, waited = (distance, 0) if distance < nearest - 1e-3 else (nearest, waited + 1)
        if distance < tolerance or waited == STALLED:
            return


def hold(scene: Scene, pose: Pose, steps: int) -> Targets:
    """Stay where the hand is while the fingers move."""
    still = replace(pose, position=scene.site(SITE))
    for _ in range(steps + int(scene.rng.integers(scene.patience + 1))):
        yield still


def follow(scene: Scene, target: Callable[[], Pose], over: Callable[[], bool], steps: int = 40) -> Targets:
    """Chase a moving target until a condition holds."""
    for _ in range(steps):
        if over():
            return
        yield target()


def approach(scene: Scene, site: str, tolerance: float = 0.2, steps: int = 40) -> Targets:
    """Go to the posture before a grasp through joint space: straight lines of the hand across the robot fold its fourth joint."""
    posture = Posture(np.asarray(PREGRASP[site]) + scene.rng.normal(0.0, 3 * scene.jitter_m, 7))
    for _ in range(steps):
        yield posture
        if np.max(np.abs(scene.state[:7] - posture.joints)) < tolerance:
            return


def leave(scene: Scene, pose: Pose, offset: Sequence[float]) -> Targets:
    """Open the fingers wide and move away by an offset from where the hand is."""
    yield from reach(scene, replace(pose, position=scene.site(SITE) + offset, fingers=OPEN), 0.04, 15)


def knob(scene: Scene, site: str, entry: int) -> Targets:
    """Grasp a knob and turn it by turning the hand about its own axis."""

    def pose(y: float, turn: float = 0.0, **options: Any) -> Pose:
        rotation = turned(1, -float(scene.state[entry]) + turn, facing((0.06, 0.99, 0.12)))
        return Pose(scene.site(site) + (0.0, y, 0.0), rotation, **options)

    yield from approach(scene, site)
    yield from reach(scene, pose(-0.13), 0.035)
    yield from reach(scene, pose(-0.035, speed=0.4), 0.018)
    yield from hold(scene, pose(-0.035, fingers=CLOSED), 4)
    yield from follow(scene, lambda: pose(-0.035, 0.8, fingers=CLOSED), lambda: scene.state[entry] < -0.95, 25)
    yield from hold(scene, pose(-0.035, 0.35), 4)
    yield from reach(scene, pose(-0.13), 0.04, 15)


def light_switch(scene: Scene) -> Targets:
    """Straddle the switch and push it to the left."""
    site = np.array([-0.3685, 0.6157, 2.28])  # where it is when off

    def pose(x: float, y: float, **options: Any) -> Pose:
        return Pose(site + (x, y, 0.0), facing((-0.02, 0.98, 0.21)), **options)

    yield from approach(scene, "light_site")
    yield from reach(scene, pose(0.01, -0.13), 0.035)
    yield from reach(scene, pose(0.0, -0.035, speed=0.4), 0.015)
    push = pose(-0.10, -0.035, fingers=RIGHT_CLOSED, speed=0.5)
    yield from follow(scene, lambda: push, lambda: scene.state[17] < -0.6, 25)
    yield from leave(scene, pose(0.0, 0.0), (0.0, -0.14, 0.0))


def slide_cabinet(scene: Scene) -> Targets:
    """Push the handle of the slide cabinet to the right."""
    door_is_open = scene.state[21] > 0.5
    offset = np.array([-0.005, -0.005, -0.09 if door_is_open else -0.05])
    rotation = facing((0.0, 0.5, 0.87) if door_is_open else (0.38, 0.74, 0.55))
    back = (0.16 if door_is_open else 0.12) * rotation[:, 2]

    def pose(shift: Vector, **options: Any) -> Pose:
        return Pose(scene.site("slide_site") + offset + shift, rotation, **options)

    if not door_is_open:  # the arm would hit the door on its way through joint space
        yield from approach(scene, "slide_site")
    yield from reach(scene, pose(-back), 0.035)
    yield from reach(scene, pose(np.zeros(3), speed=0.4), 0.015)
    lead = np.array([0.12, 0.0, 0.0])
    yield from follow(scene, lambda: pose(lead, fingers=RIGHT_CLOSED, weight=0.05), lambda: scene.state[19] > 0.3)
    yield from leave(scene, pose(np.zeros(3)), (0.0, -0.14, -0.08))


def hinge_cabinet(scene: Scene) -> Targets:
    """Grasp the handle of the right door and pull it along its arc."""
    rotation, hinge, radius = facing((0.04, 0.85, 0.52)), np.array([-0.224, 0.71]), 0.328
    yield from approach(scene, "hinge_site2")

    def pose(back: float = 0.0, **options: Any) -> Pose:
        return Pose(scene.site("hinge_site2") + (0.005, 0.01, -0.055) - back * rotation[:, 2], rotation, **options)

    def ahead() -> Pose:
        handle = scene.site("hinge_site2")
        angle = np.arctan2(*(handle[:2] - hinge)[::-1]) + 0.25
        around = hinge + radius * np.array([np.cos(angle), np.sin(angle)])
        return Pose(np.array([*around, handle[2]]) + (0.008, 0.008, -0.05), rotation, CLOSED, 0.5)

    yield from reach(scene, pose(0.12), 0.035)
    yield from reach(scene, pose(speed=0.4), 0.015)
    yield from hold(scene, pose(fingers=CLOSED), 7)
    yield from follow(scene, ahead, lambda: scene.state[21] > 1.3)
    yield from hold(scene, pose(), 3)
    yield from leave(scene, pose(), (0.0, -0.12, -0.10))
    yield from reach(scene, replace(pose(), position=np.array([-0.25, 0.32, 2.27])), 0.06, 20)


def microwave(scene: Scene) -> Targets:
    """Grasp the handle of the microwave and pull its door along its arc."""
    facing_it, hinge, radius = facing((-0.24, 0.97, -0.05)), np.array([-1.128, 0.455]), 0.4875
    above = np.array([-0.005, 0.007, 0.076])
    yield from approach(scene, "microhandle_site")

    def pose(shift: Vector, **options: Any) -> Pose:
        return Pose(scene.site("microhandle_site") + above + shift, turned(2, 0.5 * float(scene.state[22]), facing_it), **options)

    def ahead() -> Pose:
        handle = scene.site("microhandle_site")
        angle = np.arctan2(*(handle[:2] - hinge)[::-1]) - 0.35
        around = hinge + radius * np.array([np.cos(angle), np.sin(angle)])
        return replace(pose(np.zeros(3), fingers=CLOSED), position=np.array([*around, handle[2]]) + above)

    yield from reach(scene, pose(-0.14 * facing_it[:, 2] + (0.0, 0.0, 0.02)), 0.035)
    yield from reach(scene, pose(np.zeros(3), speed=0.4), 0.015)
    yield from hold(scene, pose(np.zeros(3), fingers=CLOSED), 5)
    yield from follow(scene, ahead, lambda: scene.state[22] < -0.65)
    yield from hold(scene, pose(np.zeros(3)), 3)
    yield from leave(scene, pose(np.zeros(3)), (0.10, -0.12, 0.10))


def kettle(scene: Scene) -> Targets:
    """Grasp the left post of the kettle's handle and push the kettle to the burner behind."""
    rotation = facing((0.48, 0.86, -0.18))
    yield from approach(scene, "kettle_site")

    def pose(x: float, y: float, z: float, **options: Any) -> Pose:
        return Pose(scene.site("kettle_site") + (x, y, z), rotation, **options)

    def ahead() -> Pose:
        position = np.array([-0.32, min(0.76, float(scene.state[24]) + 0.12), 1.80])
        return Pose(position, facing((0.37, 0.93, 0.04)), CLOSED)

    yield from reach(scene, pose(-0.20, -0.20, -0.03), 0.04)
    yield from reach(scene, pose(-0.14, -0.07, -0.075), 0.03)
    yield from reach(scene, pose(-0.09, 0.01, -0.08, speed=0.4), 0.015)
    yield from hold(scene, pose(0.0, 0.0, 0.0, fingers=CLOSED), 6)
    yield from follow(scene, ahead, lambda: scene.state[24] > 0.62)
    yield from hold(scene, pose(0.0, 0.0, 0.0), 4)
    yield from leave(scene, pose(0.0, 0.0, 0.0), (-0.20, -0.18, 0.0))


RECIPES: dict[str, Callable[[Scene], Targets]] = {
    "bottom burner": lambda scene: knob(scene, "knob2_site", 11),
    "top burner": lambda scene: knob(scene, "knob4_site", 15),
    "light switch": light_switch,
    "slide cabinet": slide_cabinet,
    "hinge cabinet": hinge_cabinet,
    "microwave": microwave,
    "kettle": kettle,
}
"""Name of each subtask -> its recipe."""

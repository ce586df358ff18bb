"""``python -m benchmarks.demonstrations``: how deep the kitchen's scripted demonstrations press hand and fingers into what they touch.

Makes some of the episodes of ``python -m training collect --config kitchen`` again, looks at the contacts of every physics step, and
prints a table. ``--pictures`` draws the moment in which each subtask was finished, seen from close by, in a strip.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import mujoco
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.progress import track

from clients.simulator.envs.offscreen import OffscreenRenderer
from training.collect.kitchen import Demonstration, Demonstrator, KitchenCollectConfig, sequences
from training.collect.kitchen_arm import SITE
from training.config import load_config
from training.domains import open_domain

PARTS: Final = {"panda0_link7": "hand", "panda0_leftfinger": "fingers", "panda0_rightfinger": "fingers"}
"""MuJoCo bodies of the arm that may touch something."""
TOUCHED: Final = {
    "knob 2": "bottom burner", "knob 4": "top burner", "lightswitchroot": "light switch", "slidelink": "slide cabinet",
    "hingerightdoor": "hinge cabinet", "hingeleftdoor": "hinge cabinet", "microdoorroot": "microwave", "kettleroot": "kettle",
}  # fmt: skip
"""MuJoCo body -> its subtask; all else is surroundings."""
SURROUNDINGS = "surroundings"
VIEWS: Final = {"light switch": (90.0, -60.0), "microwave": (20.0, -20.0), "kettle": (90.0, -50.0)}
"""From where a subtask is seen: azimuth and elevation in degrees."""
USUAL_VIEW, DISTANCE_M, PICTURE_SIZE = (130.0, -15.0), 0.8, 480

Depths = dict[tuple[str, str], list[float]]
"""What is touched, with what -> depth in m of the deepest such contact of each physics step that has any; negative: only near."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the episodes, print the table, draw the strip."""
    options = _parser().parse_args(arguments)
    domain = open_domain(load_config("kitchen"))
    config = domain.demonstrator_options(KitchenCollectConfig)
    tasks = sequences(domain.train_tasks, domain.test_tasks)
    demonstrator = Demonstrator(config, domain.config.domain.env_id)
    chosen = np.linspace(0, config.episodes - 1, options.episodes).astype(int).tolist()
    with measured_contacts(demonstrator.env.get_wrapper_attr("model")) as depths:
        made = [demonstrator.demonstrate(tasks[i % len(tasks)], (config.seed, i)) for i in track(chosen, "demonstrations")]
    print(table(depths, len(made), sum(len(demo.episode.actions) for demo in made)))
    if options.pictures is not None:
        draw_strip(demonstrator.env, made, options.pictures)
    demonstrator.env.close()
    return 0


@contextmanager
def measured_contacts(model: Any) -> Iterator[Depths]:
    """Collects depths of contact while MuJoCo steps, of this model only."""
    bodies = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_BODY, body) for body in model.geom_bodyid]
    depths: Depths = defaultdict(list)

    def look(stepped: Any, data: Any) -> None:
        if stepped.ngeom != model.ngeom or not data.ncon:
            return
        deepest: dict[tuple[str, str], float] = {}
        for first, second, distance in zip(data.contact.geom1, data.contact.geom2, data.contact.dist, strict=True):
            for arm, other in ((bodies[first], bodies[second]), (bodies[second], bodies[first])):
                if arm in PARTS and not str(other).startswith("panda0"):
                    key = (TOUCHED.get(other, SURROUNDINGS), PARTS[arm])
                    deepest[key] = max(deepest.get(key, -np.inf), -distance)
        for key, depth in deepest.items():
            depths[key].append(depth)

    mujoco.set_mjcb_control(look)  # called in every physics step, after the contacts are found
    try:
        yield depths
    finally:
        mujoco.set_mjcb_control(None)


def table(depths: Depths, episodes: int, steps: int) -> str:
    """Markdown: for each thing and part of the arm, physics steps in touch and how deep, in mm."""
    lines = [f"{episodes} episodes, {steps} control steps. How deep, over the physics steps in touch:", ""]
    lines += ["| touched | with | physics steps in touch | median | 99 % | deepest |", "|---" * 6 + "|"]
    for touched in (*dict.fromkeys(TOUCHED.values()), SURROUNDINGS):
        for part in dict.fromkeys(PARTS.values()):
            inside = 1e3 * np.array([depth for depth in depths.get((touched, part), ()) if depth > 0])
            if inside.size:
                quantiles = " | ".join(f"{value:.1f} mm" for value in np.quantile(inside, (0.5, 0.99, 1.0)))
                lines.append(f"| {touched} | {part} | {inside.size} | {quantiles} |")
            else:
                lines.append(f"| {touched} | {part} | 0 | | | |")
    return "\n".join(lines)


def draw_strip(env: Any, made: Sequence[Demonstration], file: Path) -> None:
    """Each subtask in the state that finished it, of the first episode where it was not done at the start."""
    kitchen, model = env.get_wrapper_attr("kitchen"), env.get_wrapper_attr("model")
    camera, data = mujoco.MjvCamera(), mujoco.MjData(model)
    renderer = OffscreenRenderer(model, camera, width=PICTURE_SIZE, height=PICTURE_SIZE)
    figure = Figure(figsize=(2.0 * len(kitchen.subtasks), 2.3), layout="constrained")
    axes = figure.subplots(1, len(kitchen.subtasks))
    for rank, (ax, name) in enumerate(zip(axes, kitchen.subtasks, strict=True)):
        ax.set_axis_off()
        ax.set_title(name, fontsize=10)
        moment = _finishing(made, kitchen, rank)
        if moment is not None:
            data.qpos[:] = moment
            mujoco.mj_kinematics(model, data)
            camera.lookat[:], camera.distance = data.site(SITE).xpos, DISTANCE_M
            camera.azimuth, camera.elevation = VIEWS.get(name, USUAL_VIEW)
            ax.imshow(renderer.render(data))
    renderer.close()
    figure.savefig(file, dpi=100, bbox_inches="tight", pad_inches=0.05)


def _finishing(made: Sequence[Demonstration], kitchen: Any, rank: int) -> NDArray[np.float32] | None:
    for demo in made:
        done = kitchen.done(demo.episode.observations)[:, rank]
        if done.any():
            state: NDArray[np.float32] = demo.episode.observations[done.argmax()]
            return state
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.demonstrations", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--episodes", type=int, default=10, help="how many of the data set's episodes, evenly spread (default: 10)")
    parser.add_argument("--pictures", type=Path, metavar="OUT.png", help="draw the strip here")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Skillet with one thing taken away or changed at a time, all from its own meta-training: what in its sessions pays, and how much."""

from dataclasses import replace
from typing import Final

from training.contract.exploration import Exploration
from training.methods.catalogue import SKILLET
from training.methods.method import Method
from training.methods.simpl_learner import OneStepATransition


def _by(exploration: Exploration, about: str) -> Method:
    changes = {"evaluate": {"exploration": exploration}}
    return replace(SKILLET, name=f"by-{exploration.value}", label=f"exploring by {exploration.value}", about=about, changes=changes)


_ALL: Final = (
    replace(
        SKILLET,
        name="no-finetuning",
        label="no fine-tuning",
        about="after conditioning, the meta-policy under the task posterior",
        finetunes=False,
    ),
    replace(
        SKILLET,
        name="no-conditioning",
        label="conditioning not learned from",
        about="fine-tuning begins with an empty replay, as SiMPL's does",
        keeps_conditioning=False,
    ),
    replace(
        SKILLET,
        name="one-step",
        label="one gradient step a transition",
        about="SiMPL's pace: none before the replay holds a whole batch, then one for each skill transition",
        learner=OneStepATransition,
    ),
    replace(
        SKILLET,
        name="no-bound",
        label="no return bound",
        about="fine-tuning's target is not bounded by observed returns",
        changes={"finetuning": {"return_bound": False}},
    ),
    replace(
        SKILLET,
        name="no-best-share",
        label="no share of best episodes",
        about="every batch of fine-tuning is drawn from all of the session's episodes alike",
        changes={"finetuning": {"success_share": 0.0, "imitation": 0.0}},
    ),
    replace(
        SKILLET,
        name="no-imitation",
        label="no imitation",
        about="fine-tuning does not imitate the best episodes",
        changes={"finetuning": {"imitation": 0.0}},
    ),
    replace(
        SKILLET,
        name="no-beyond",
        label="never beyond what is known",
        about="once rewarded, a session does not go back along the way to a reward (by novelty), nor explore in an episode with nothing "
        "left to gain (where embeddings are drawn from the posterior)",
        goes_beyond=False,
    ),
    replace(
        SKILLET,
        name="no-reinference",
        label="nor re-inference",
        about="as no-beyond where embeddings are drawn from the posterior, and fine-tuning stays at the embedding that it began with",
        changes={"finetuning": {"infer_again": False, "detours": False}},
    ),
    replace(
        SKILLET,
        name="full-spread",
        label="skills with the policy's whole spread",
        about="skills are drawn at temperature 1, as SiMPL draws them",
        changes={"evaluate": {"skill_temperature": 1.0}},
    ),
    _by(Exploration.PRIOR, "embeddings from N(0, I), one an episode, as SiMPL explores; never beyond what is known"),
    _by(Exploration.SWITCHING, "embeddings from N(0, I), several an episode, and the skill prior in turn; never beyond what is known"),
    _by(
        Exploration.THOMPSON,
        "embeddings of training tasks, several an episode, until the first reward; then one from the posterior; never back along a way",
    ),
    _by(Exploration.BELIEF, "particles, ruled out by a learned reward decoder within the episode; never beyond what is known"),
)

ABLATIONS: Final = {method.name: method for method in _ALL}
"""By name, in the order of reports. Imitation goes with the share of best episodes, which it imitates."""

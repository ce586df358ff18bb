"""The methods of the comparison (Nam et al. 2022, figure of the main result), each as a difference from Skillet's.

All of them share networks and their sizes, critics with LayerNorm, features of the state, replay, rollouts, the task encoder and how its
contexts are drawn, offline data and skills. "The learner's improvements" are, in fine-tuning: a target bounded by observed returns, a share
of each batch from the best episodes, a fixed number of gradient steps an episode, in the kitchen imitation of the best episodes, and half
of the policy's spread. Skillet learns from its conditioning episodes on, once one was rewarded; SiMPL, aided or not, and PEARL-ft after
twenty; what does not infer its task (SPiRL, MTRL, SAC) from its first episode, or, where it explores as Skillet does, its first reward.
"""

from typing import Final

from training.methods.method import Method
from training.methods.multi_task import MultiTaskTrainer
from training.methods.simpl_learner import OneStepATransition

SKILLET: Final = Method("skillet", "Skillet", "this project's own method", meta="skillet")

_UNAIDED: Final = {
    "relabelled_episodes": 0,
    "demonstrations": 0,
    "replayed_demonstrations": False,
    "imitation": 0.0,
    "context_pool": 0,
    "blind_updates": 0,
    "prior_context": 4,
}
"""Without what Skillet adds to the data and contexts of meta-training."""

_OWN_LOSSES_ONLY: Final = {
    **_UNAIDED,
    "success_share": 0.0,
    "return_bound": False,
    "return_bound_updates": None,
    "learning_rate": 3e-4,
    "polyak": 0.005,
}
_TARGET: Final = {
    "success_share": 0.0,
    "return_bound": False,
    "infer_again": False,
    "detours": False,
    "imitation": 0.0,
    "learning_rate": 3e-4,
    "polyak": 0.005,
    "batch": 256,
    "buffer": 20_000,
}
_PROTOCOL: Final = {"conditioning_episodes": 20, "exploration": "prior"}
_WHOLE_SPREAD: Final = {"skill_temperature": 1.0}
"""Of methods that are as published, and of primitive actions, which find rewards by their noise alone. The others have Skillet's."""
_COEFFICIENTS: Final = {
    "maze": {
        "meta": {
            "kl_clip": 5.0,
            "encoder_prior_coefficient": 1e-5,
            "encoder_prior_target": 1.0,
            "encoder_posterior_coefficient": 3e-6,
            "encoder_posterior_target": 10.0,
            "policy_prior_coefficient": 3e-3,
            "policy_prior_target": 0.5,
            "policy_posterior_coefficient": 1e-3,
            "policy_posterior_target": 1.0,
        },
        "finetuning": {"kl_clip": 5.0, "kl_target": 1.0},
    },
    "kitchen": {
        "meta": {
            "kl_clip": 6.0,
            "encoder_prior_coefficient": 1e-3,
            "encoder_prior_target": 2.0,
            "encoder_posterior_coefficient": 1e-4,
            "encoder_posterior_target": 10.0,
            "policy_prior_coefficient": 0.05,
            "policy_prior_target": 0.1,
            "policy_posterior_coefficient": 0.03,
            "policy_posterior_target": 4.0,
        },
        "finetuning": {"kl_clip": 20.0, "kl_target": 5.0},
    },
}
"""KL coefficients and targets of SiMPL's released configurations, by domain."""

SIMPL: Final = Method(
    "simpl",
    "SiMPL",
    "SiMPL's losses and coefficients: no relabelling, return bound or share of best episodes; embeddings from N(0, I) for 20 episodes, "
    "which say what the task is and nothing else; fine-tuning from an empty replay, one gradient step a skill transition",
    meta="simpl",
    explores_until_rewarded=False,
    keeps_conditioning=False,
    learner=OneStepATransition,
    changes={"meta": _OWN_LOSSES_ONLY, "finetuning": _TARGET, "evaluate": _PROTOCOL | _WHOLE_SPREAD},
    domain_changes=_COEFFICIENTS,
)

SIMPL_AIDED: Final = Method(
    "simpl-aided",
    "SiMPL, aided",
    "as SiMPL; its meta-training is helped by the return bound, a third of each batch from the best episodes, and Skillet's learning rate "
    "and polyak; skills are drawn with Skillet's share of the policy's spread",
    meta="simpl-aided",
    explores_until_rewarded=False,
    keeps_conditioning=False,
    learner=OneStepATransition,
    changes={
        "meta": _OWN_LOSSES_ONLY | {"success_share": 1 / 3, "return_bound": True, "learning_rate": 1e-3, "polyak": 0.01},
        "finetuning": _TARGET,
        "evaluate": _PROTOCOL,
    },
    domain_changes=_COEFFICIENTS,
)

_FROM_UNTRAINED_CRITICS: Final = {
    "maze": {
        "meta": {"policy_posterior_coefficient": 0.05},
        "finetuning": {"kl_clip": 10.0, "kl_target": 1.0, "coefficient_may_fall": True},
    },
    "kitchen": {
        "meta": {"policy_posterior_coefficient": 1.0},
        "finetuning": {"kl_clip": 10.0, "kl_target": 5.0, "coefficient_learning_rate": 3e-3, "coefficient_may_fall": True},
    },
}
"""KL coefficients of SiMPL's SPiRL baseline, by domain: with those of a meta-trained policy, one that begins untrained leaves the prior.
They begin high and fall until the divergence is at its target."""

SPIRL: Final = Method(
    "spirl",
    "SPiRL",
    "skills and their prior, no meta-training: policy and critics begin untrained and learn from the first episode, with the learner's "
    "improvements",
    infers_task=False,
    domain_changes=_FROM_UNTRAINED_CRITICS,
)

SPIRL_NOVELTY: Final = Method(
    "spirl-novelty",
    "SPiRL, exploring as Skillet",
    "as SPiRL; explores as Skillet does until its first reward, and goes back to rewards as Skillet does: what is left of Skillet without "
    "a meta-trained policy and task inference",
    infers_task=False,
    explores_as_skillet=True,
    domain_changes=_FROM_UNTRAINED_CRITICS,
)

MTRL: Final = Method(
    "mtrl",
    "MTRL",
    "skills, one policy for all training tasks that is not told the task, trained without relabelling, with Skillet's return bound and "
    "share of best episodes; then fine-tuned from the first episode, with the learner's improvements",
    meta="mtrl",
    trainer=MultiTaskTrainer,
    infers_task=False,
    # Nothing reads the encoder, so that it may be as small as it gets.
    changes={"meta": _UNAIDED | {"posterior_context": 1, "prior_context": 1}},
)

PEARL: Final = Method(
    "pearl",
    "PEARL",
    "primitive actions: skills of one step under N(0, I), whose KL takes the place of entropy; meta-trained without relabelling, with "
    "Skillet's return bound and share of best episodes, on contexts of as many transitions, a tenth of the steps; 20 conditioning "
    "episodes, then the posterior's mean, and no fine-tuning",
    meta="pearl",
    primitive_actions=True,
    explores_until_rewarded=False,
    finetunes=False,
    changes={"meta": _UNAIDED, "evaluate": _PROTOCOL | _WHOLE_SPREAD},
)

PEARL_FT: Final = Method(
    "pearl-ft",
    "PEARL-ft",
    "as PEARL, and fine-tuned, with the learner's improvements and its conditioning episodes; a tenth of the others' gradient steps for "
    "each transition",
    meta="pearl",
    primitive_actions=True,
    explores_until_rewarded=False,
    changes={"meta": _UNAIDED, "evaluate": _PROTOCOL | _WHOLE_SPREAD},
)

SAC: Final = Method(
    "sac",
    "SAC",
    "primitive actions, no meta-training: learns from the first episode, with the learner's improvements; as many gradient steps an "
    "episode as with skills, so a tenth for each transition",
    primitive_actions=True,
    infers_task=False,
    changes={"evaluate": _WHOLE_SPREAD},
)

METHODS: Final = {method.name: method for method in (SKILLET, SIMPL, SIMPL_AIDED, SPIRL, MTRL, PEARL, PEARL_FT, SAC, SPIRL_NOVELTY)}
"""By name, in the order of reports."""

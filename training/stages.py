"""The stages in their order. Each reads what the former left in the run's folder and leaves its own checkpoint, log and plots there."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.belief import BeliefTrainer, TrainedBelief
from training.contract.context import ContextLayout, Floats
from training.contract.errors import ConfigError
from training.data import write_minari
from training.dataset_folder import check_id
from training.envelope import learn_envelope
from training.evaluate import TargetProtocol, write_results
from training.export import export_bundle
from training.finetuning import Finetuner, LearnerNetworks
from training.meta_learner import MetaNetworks, posterior_means
from training.networks.meta_policy import MetaPolicy
from training.plots import plot_learning_curve, plot_meta_training, plot_task_embeddings
from training.relabelling import weights_by_return
from training.rollout import Acting, rollout
from training.run import Run
from training.run_log import RunLog
from training.session_store import load_sessions, run_sessions
from training.skill_extraction import SkillWindows, extract_skills, multiplies_bfloat16, skill_share
from training.statistics import bootstrap_interval, task_means

PRIOR_EPISODES = 100
"""Episodes by the skill prior alone that the `skills` stage measures and draws."""

LEAST_SKILL_SHARE = 0.02
"""Of the variance of actions: with 0.013 meta-training in the kitchen learned hardly anything, with 0.05 it did; the maze has 0.47."""


def collect(run: Run) -> None:
    """make the offline data and write them as a Minari dataset"""
    config = run.config
    if config.data.minari:
        run.say("collect: nothing to make, data.minari names the offline data")
        run.offline_episodes()
        return
    try:
        check_id(config.collect.dataset)  # before the work, not after it
    except ValueError as error:
        raise ConfigError(f"collect.dataset: {error}") from error
    episodes = run.domain.collect(run.dir)
    steps = sum(len(episode) for episode in episodes)
    description = f"Reward-free {config.domain.name} trajectories by a scripted demonstrator."
    path = write_minari(episodes, config.collect.dataset, config.domain.env_id, description=description, overwrite=True)
    run.say(f"collect: {len(episodes)} episodes, {steps} steps in {path}")


def skills(run: Run) -> None:
    """extract skills from the offline data (SPiRL)"""
    config = run.config
    episodes, weights = run.offline_episodes(), None
    if config.skills.return_temperature is not None:
        simulator, discount = run.domain.training_simulator, config.meta.discount ** (1 / config.skills.horizon)
        weights = weights_by_return(
            simulator, run.domain.train_tasks, episodes, discount=discount, temperature=config.skills.return_temperature
        )
    if config.skills.precision == "bfloat16" and run.device == "cpu" and not multiplies_bfloat16():
        run.say("skills: this CPU only emulates products in bfloat16; skills.precision=float32 is likely ten times as fast here")
    model = extract_skills(config, episodes, *run.domain.action_limits, run.dir, run.device, weights)
    tasks = list(itertools.islice(itertools.cycle(run.domain.test_tasks), PRIOR_EPISODES))
    layout = ContextLayout(len(model.features.mean), config.skills.skill_dim)
    policy = MetaPolicy(model.prior, config.skills.skill_dim, config.networks)
    results, paths = rollout(
        run.domain.simulator, tasks, policy, model.decoder,
        Acting.by_prior(PRIOR_EPISODES, config.networks.task_embedding_dim),
        horizon=config.skills.horizon, layout=layout, rng=np.random.default_rng(config.seed), paths=True,
    )  # fmt: skip
    line = run.domain.show_skills(paths, run.dir / "skills.png")
    chance = float(np.mean([r.episode_return for r in results]))
    share = skill_share(model, SkillWindows(episodes, config.skills.horizon), torch.Generator().manual_seed(config.seed))
    run.say(f"skills: {line}; mean return {chance:.2f} by chance over the test tasks; see {run.dir}/skills.png")
    run.say(f"skills: {share:.1%} of the variance of actions is the skill's")
    if share < LEAST_SKILL_SHARE:
        run.say(
            f"skills: that is little for a policy to choose from: lower skills.beta, e.g. to {config.skills.beta / 5:.0e}, in a new folder "
            "(--run), before meta-training"
        )


def meta(run: Run) -> None:
    """meta-train task encoder, meta-policy and critics (SiMPL)"""
    trainer = run.trainer(run.offline_episodes() if run.config.meta.demonstrations else ())
    networks = trainer.run()
    if not trainer.contexts.size(0):
        trainer.collect()
        networks.to("cpu")
    plot_meta_training(run.dir / "meta.jsonl", run.dir / "meta.png")
    mean, _ = posterior_means(
        networks, trainer.contexts, range(len(trainer.tasks)), run.config.meta.posterior_context, trainer.learner.generator
    )
    plot_task_embeddings(mean.numpy(), run.domain.task_labels(trainer.tasks), run.dir / "embeddings.png")
    run.say(f"meta: done; see {run.dir}/meta.png and {run.dir}/embeddings.png")


def belief(run: Run) -> None:
    """learn what sessions explore with: particles of task embeddings, a reward decoder, a model of where skills lead"""
    if not run.config.belief.particles:
        run.say("belief: none is configured (belief.particles is 0)")
        return
    networks, _, _ = _trained(run)
    learned = BeliefTrainer(run.config, networks, run.domain.training_simulator, run.domain.train_tasks, run.dir).run()
    learned.save(run.dir / "belief.safetensors", run.config, networks)
    run.say(f"belief: {len(learned.particles)} particles and a reward decoder in {run.dir}/belief.safetensors")


def export(run: Run) -> None:
    """write the bundle: ONNX graphs checked against torch, weights, manifest with the safety envelope of the offline data"""
    networks, coefficient, metrics = _trained(run)
    spec = run.domain.spec()
    learned, evaluation = _belief(run, networks), run.dir / "evaluate.json"
    if evaluation.exists():
        found = json.loads(evaluation.read_text())
        if found.get("of") == _evaluated(run):
            metrics |= found["summary"]
        else:
            run.say(f"export: {evaluation} is of other networks or settings than these; the bundle will not name its returns")
    bundle = export_bundle(
        run.bundle_dir,
        config=run.config,
        networks=networks,
        coefficient=coefficient,
        spec=spec,
        metrics=metrics,
        command=run.command,
        envelope=learn_envelope(run.offline_episodes(), spec),
        belief=learned,
    )
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    run.say(f"export: {run.bundle_dir}, {size / 2**20:.1f} MiB, digest {bundle.manifest.digest[:12]}")


def evaluate(run: Run) -> None:
    """run the target-task protocol on the unseen tasks, in the simulator"""
    config = run.config
    networks, coefficient, _ = _trained(run)

    def new_learner(embedding: Floats, seed: int) -> Finetuner:
        return Finetuner(LearnerNetworks.from_meta(networks, config, coefficient), config.finetuning, embedding, seed)

    learned = _belief(run, networks)
    protocol = TargetProtocol(
        config, networks, run.domain.spec(), run.domain.simulator,
        new_learner if config.evaluate.finetuning else None, learned and learned.belief(),
    )  # fmt: skip
    folder = _evaluated_sessions(run)
    sessions = load_sessions(folder, protocol, run.domain.test_tasks, range(config.evaluate.seeds))
    if len(sessions[0].returns) > config.evaluate.episodes:  # of a longer evaluation
        sessions = protocol.begin(run.domain.test_tasks, range(config.evaluate.seeds))
    with RunLog(run.dir, "evaluate", config.evaluate.episodes, "episodes", resumed_at=len(sessions[0].returns)) as log:
        run_sessions(protocol, sessions, config.evaluate.episodes, folder, log)
    returns = write_results(sessions, run.dir / "evaluate-episodes.json")
    summary = _summary(task_means(returns, [tuple(s.task) for s in sessions]), config.evaluate.conditioning_episodes)
    for episodes in sessions[0].deterministic_returns:
        summary[f"deterministic_after_{episodes}"] = float(np.mean([s.deterministic_returns[episodes] for s in sessions]))
    content = {"summary": summary, "of": _evaluated(run), "command": run.command}
    (run.dir / "evaluate.json").write_text(json.dumps(content, indent=1) + "\n")
    plot_learning_curve(returns, config.evaluate.conditioning_episodes, run.dir / "evaluate.png")
    run.say("evaluate: " + ", ".join(f"{name} {value:.3f}" for name, value in summary.items()) + f"; see {run.dir}/evaluate.png")


def _evaluated_sessions(run: Run) -> Path:
    """Where the sessions of an evaluation are kept, so that it goes on after an interruption, or for more episodes.

    The folder's name says what they depend on; those of other networks and settings are deleted.
    """
    folder = run.dir / f"evaluate-{_evaluated(run)}"
    for other in run.dir.glob("evaluate-????????????*"):
        if other.is_dir() and other.stem != folder.name:
            shutil.rmtree(other)
    return folder


def _evaluated(run: Run) -> str:
    """A digest of the networks and settings that an evaluation depends on, however many episodes it has."""
    content = run.config.model_dump(mode="json", include={"seed", "domain", "finetuning", "evaluate"})
    content["evaluate"].pop("episodes")
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in ("meta", "belief") if run.config.belief.particles else ("meta",):
        digest.update(run.need(name).read_bytes())
    return digest.hexdigest()[:12]


def _trained(run: Run) -> tuple[MetaNetworks, float, dict[str, float]]:
    trainer = run.trainer()
    run.need("meta")
    updates = trainer.load_networks()
    if updates < run.config.meta.updates:
        raise ConfigError(f"meta-training stands at update {updates} of {run.config.meta.updates}: finish the stage 'meta' first")
    return trainer.networks.to("cpu"), float(trainer.learner.policy_posterior()), {"meta_updates": float(updates)}


def _belief(run: Run, networks: MetaNetworks) -> TrainedBelief | None:
    if not run.config.belief.particles:
        return None
    return TrainedBelief.load(run.need("belief"), run.config, networks)


def _summary(returns: NDArray[np.float64], conditioning: int) -> dict[str, float]:
    """Means and 95 % intervals over tasks of returns [tasks, episodes], by block."""
    rng = np.random.default_rng(0)
    blocks = {"conditioning": slice(0, conditioning), "five_after_conditioning": slice(conditioning, conditioning + 5)}
    blocks |= {f"episodes_{a}_{b}": slice(a, b) for a, b in ((45, 50), (50, 60), (90, 100)) if returns.shape[1] >= b}
    summary = {}
    for name, block in blocks.items():
        values = returns[:, block]
        if values.size:
            low, high = bootstrap_interval(values.mean(1), rng)
            summary |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    return summary


STAGES: dict[str, Callable[[Run], None]] = {
    "collect": collect,
    "skills": skills,
    "meta": meta,
    "belief": belief,
    "evaluate": evaluate,
    "export": export,
}

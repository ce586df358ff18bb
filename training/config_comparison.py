"""Whether what was made with one configuration may be used with another."""

from typing import Any, Final

from pydantic import BaseModel, ValidationError

from training.config import MetaConfig, TrainingConfig

_CAME_LATER: Final = {
    ("skills", "precision"): "float32",
    ("networks", "critic_layer_norm"): True,
    ("meta", "replayed_demonstrations"): False,
    ("meta", "imitation"): 0.0,
    ("meta", "imitation_updates"): 9600,
    ("finetuning", "detours"): False,
}
"""Settings that came after results were kept, with the value that all had before."""


def digested(config: TrainingConfig) -> dict[str, Any]:
    """A configuration as JSON for digests, which tell what was made with another one.

    Settings that came later are left out while they have the value that all had before (`_CAME_LATER`).
    """
    content = config.model_dump(mode="json")
    for (section, name), before in _CAME_LATER.items():
        if content[section][name] == before:
            del content[section][name]
    return content


def incompatible_sections(old: dict[str, Any], config: TrainingConfig) -> list[str]:
    """Sections in which a configuration must not differ from that of the checkpoints it goes on from, and does.

    ``old`` is a configuration as JSON, perhaps of an older version: settings that have come since had their defaults, and settings that are
    gone do not count.
    """
    sections = ("domain", "collect", "features", "skills", "networks", "seed")
    kept = {name: value for name, value in old.items() if name in (*sections, "data")}
    try:
        before = TrainingConfig.model_validate(_known(kept, TrainingConfig))
    except ValidationError as error:  # a value that this version no longer takes, or a section that is missing
        return sorted({str(item["loc"][0]) for item in error.errors()})
    changed = [name for name in sections if getattr(before, name) != getattr(config, name)]
    return changed if before.offline_data == config.offline_data else [*changed, "data"]


def changed_meta_settings(old: dict[str, Any], config: MetaConfig) -> list[str]:
    """Settings of meta-training, as ``meta.name``, in which a checkpoint's (``old``, as JSON) differ from a configuration's.

    How many updates there are, and how often they are kept, may differ. Settings count as in `incompatible_sections`.
    """
    try:
        before = MetaConfig.model_validate(_known(old, MetaConfig))
    except ValidationError as error:
        return sorted({f"meta.{item['loc'][0]}" for item in error.errors()})
    names = MetaConfig.model_fields.keys() - {"updates", "checkpoint_epochs"}
    return sorted(f"meta.{name}" for name in names if getattr(before, name) != getattr(config, name))


def _known(content: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    fields = {name: field.annotation for name, field in model.model_fields.items() if name in content}
    return {
        name: _known(content[name], kind) if isinstance(kind, type) and issubclass(kind, BaseModel) else content[name]
        for name, kind in fields.items()
    }

"""A bundle: one self-describing directory with everything that serving and fine-tuning need. No pickle.

``manifest.json`` names the format version, the model's spec, each file's SHA-256 and its own, golden input and output vectors of each
graph, the safety envelope, what fine-tuning starts from, and where the bundle came from.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, FiniteFloat, StringConstraints, ValidationError, model_validator

from training.contract.envelope import Envelope
from training.contract.errors import BundleCorrupt, BundleError, BundleFileMissing, BundleTooNew
from training.contract.exploration import Exploration
from training.contract.signature import PublicKey, check_signature
from training.contract.spec import (
    FORMAT_VERSION,
    LEARNER_WEIGHTS,
    MANIFEST,
    META_POLICY,
    MODEL_CARD,
    REWARD_DECODER,
    SKILL_DECODER,
    SKILL_DYNAMICS,
    TASK_ENCODER,
    Frozen,
    ModelSpec,
)

REQUIRED_FILES = (SKILL_DECODER, META_POLICY, TASK_ENCODER, LEARNER_WEIGHTS, MODEL_CARD)
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_FILE_BYTES = 512 * 2**20
MAX_BUNDLE_BYTES = 1024 * 2**20
MAX_FILES = 64
_SHOWN = 1000  # characters of what a library says about a file, which may quote all of it
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""A plain name: no folder, nothing hidden, nothing that leads elsewhere."""


class FileEntry(Frozen):
    """Size and digest of one file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0, le=MAX_FILE_BYTES)


class GoldenVectors(Frozen):
    """What one graph must answer to one input: arrays as nested lists, by input and output name."""

    inputs: dict[str, list[Any]]
    outputs: dict[str, list[Any]]
    tolerance: float = Field(default=1e-4, gt=0, description="largest absolute difference that passes")


class Provenance(Frozen):
    """Where a bundle came from."""

    created_at: str
    config: dict[str, Any]
    config_sha256: str
    seed: int
    commit: str
    command: str
    metrics: dict[str, float]


class Manifest(Frozen):
    """The content of ``manifest.json``."""

    format_version: int
    name: str = Field(pattern="^[a-z0-9][a-z0-9._-]{0,62}$")
    spec: ModelSpec
    files: dict[FileName, FileEntry] = Field(max_length=MAX_FILES)
    golden: dict[str, GoldenVectors]
    networks: dict[str, Any] = Field(description="sizes from which the learner rebuilds its networks")
    finetuning: dict[str, Any] = Field(description="configuration of fine-tuning, as training.config.FinetuningConfig")
    exploration: Exploration = Field(default=Exploration.SWITCHING, description="how sessions explore unless they say otherwise")
    conditioning_episodes: int = Field(default=20, ge=0, description="episodes that sessions explore for unless they say otherwise")
    skill_temperature: float = Field(
        default=1.0, gt=0, le=10, description="what the meta-policy's standard deviations are multiplied by when it chooses a skill"
    )
    particles: tuple[tuple[FiniteFloat, ...], ...] | None = Field(
        default=None, min_length=1, description="task embeddings [P, E] that a belief weighs, with the reward decoder; without it no belief"
    )
    places: tuple[tuple[FiniteFloat, ...], ...] | None = Field(
        default=None,
        min_length=1,
        description="coordinates [R, S] in which states within 1 of each other are one place, for exploring by novelty",
    )
    provenance: Provenance
    envelope: Envelope | None = Field(default=None, description="limits of actions and observations; without it those of the spec hold")

    @model_validator(mode="after")
    def _envelope_fits(self) -> Self:
        if self.envelope is not None:
            self.envelope.check(self.spec)
        return self

    @model_validator(mode="after")
    def _is_not_too_large(self) -> Self:
        if (total := sum(entry.bytes for entry in self.files.values())) > MAX_BUNDLE_BYTES:
            raise ValueError(f"the files have {total} bytes together, more than the {MAX_BUNDLE_BYTES} that a bundle may have")
        return self

    @model_validator(mode="after")
    def _belief_is_whole(self) -> Self:
        dim = self.spec.task_embedding_dim
        if any(len(particle) != dim for particle in self.particles or ()):
            raise ValueError(f"particles must have {dim} entries each, as a task embedding has")
        if (self.particles is None) != (REWARD_DECODER not in self.files):
            raise ValueError(f"a belief needs both particles and {REWARD_DECODER}")
        if any(len(axis) != self.spec.state_dim for axis in self.places or ()) or len(self.places or ()) > self.spec.state_dim:
            raise ValueError(f"places must have {self.spec.state_dim} entries each, as a state has, and be no more than these")
        if (self.places is None) != (SKILL_DYNAMICS not in self.files) or (self.places is not None and self.particles is None):
            raise ValueError(f"exploring by novelty needs places and {SKILL_DYNAMICS}, and a belief")
        if self.exploration not in self.explorations:
            needed = f"particles and {REWARD_DECODER}" if self.exploration is Exploration.BELIEF else f"places and {SKILL_DYNAMICS}"
            raise ValueError(f"exploration {self.exploration.value!r} needs {needed}")
        return self

    @property
    def explorations(self) -> tuple[Exploration, ...]:
        """The explorations that sessions can have."""
        needs = {Exploration.BELIEF: self.particles, Exploration.NOVELTY: self.places}
        return tuple(each for each in Exploration if each not in needs or needs[each] is not None)

    @property
    def digest(self) -> str:
        """One SHA-256 over all files and all that acting and fine-tuning are told: the bundle's version."""
        parts = {"files", "spec", "networks", "finetuning"}
        parts |= {name for name in ("envelope", "particles", "places") if getattr(self, name) is not None}
        if self.skill_temperature != 1.0:  # bundles of earlier releases, which have none, keep their digests
            parts.add("skill_temperature")
        return _digest_of(self.model_dump(mode="json", include=parts))

    @property
    def limits(self) -> Envelope:
        """The envelope that holds: the bundle's own, else the spec's limits."""
        return self.envelope or Envelope.of_spec(self.spec)


@dataclass(frozen=True)
class Bundle:
    """A checked bundle on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: Path | str, keys: Sequence[PublicKey] = ()) -> "Bundle":
        """Read and check a bundle: format version, every file there, every size and SHA-256 as the manifest says.

        With ``keys``, one of them must have signed it. Raises BundleFileMissing, BundleCorrupt, BundleTooNew or BundleUnsigned, each
        saying which file, what was expected and what came.
        """
        path = Path(path)
        manifest = _read_manifest(path, keys)
        for name in sorted({*REQUIRED_FILES, *manifest.files}):
            _check_file(path, name, manifest.files.get(name))
        return cls(path, manifest)

    def read(self, name: str) -> bytes:
        """The bytes of one of the bundle's files, checked again. Raises KeyError for a name that the manifest does not list."""
        entry = self.manifest.files[name]
        return _check_file(self.path, name, entry)


def write_bundle(path: Path | str, files: Mapping[str, bytes], **manifest_fields: Any) -> Bundle:
    """Write a bundle as a whole: into a temporary directory beside ``path``, checked there, then renamed over it.

    ``manifest_fields`` are Manifest's fields without ``format_version`` and ``files``. A bundle that stands there is replaced; anything
    else raises BundleError and is left alone.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise BundleError(f"expected a bundle or nothing at {path}, found something else, which a bundle would replace; name another place")
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)) for name, data in files.items()}
    manifest = Manifest(format_version=FORMAT_VERSION, files=entries, **manifest_fields)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir(mode=0o755)
        for name, data in files.items():
            (new / name).write_bytes(data)
        content = manifest.model_dump(mode="json")
        (new / MANIFEST).write_text(json.dumps(content | {"sha256": _digest_of(content)}, indent=1) + "\n")
        Bundle.load(new)
        _exchange(new, path, old)
    return Bundle(path, manifest)


def _exchange(new: Path, path: Path, old: Path) -> None:
    """Move ``path``, if it is there, to ``old`` and ``new`` to ``path``; when the latter fails, put things back."""
    try:
        if path.exists():
            os.rename(path, old)
        os.rename(new, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.rename(old, path)
        raise


def _digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content without its own digest, whatever its white space and order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_manifest(path: Path, keys: Sequence[PublicKey]) -> Manifest:
    file = path / MANIFEST
    if not path.is_dir():
        raise BundleFileMissing(f"expected a bundle directory at {path}, found none; train one with 'python -m training' or name another")
    if file.is_symlink():
        raise BundleCorrupt(f"{file} leads outside the bundle; a bundle holds plain files only")
    if not file.is_file():
        raise BundleFileMissing(f"expected {MANIFEST} in {path}, found none; it is not a bundle, or was copied in part")
    if (size := file.stat().st_size) > MAX_MANIFEST_BYTES:
        raise BundleCorrupt(f"{file} has {size} bytes, more than the {MAX_MANIFEST_BYTES} that a manifest may have")
    data = file.read_bytes()
    if keys:
        check_signature(path, data, keys)
    try:
        content = json.loads(data)
        version = content["format_version"]
        json.dumps(content, ensure_ascii=False).encode()  # halves of characters, which JSON can hold, go no further
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        found = f"{type(error).__name__}: {error}"[:_SHOWN]
        raise BundleCorrupt(f"{file}: expected a JSON object with a format_version, got {found}; copy the bundle again") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise BundleTooNew(f"{path} has format version {version!r}; this program reads up to {FORMAT_VERSION}: update it, or export again")
    stated = content.pop("sha256", None)
    if (digest := _digest_of(content)) != stated:
        raise BundleCorrupt(
            f"{file}: it states SHA-256 {stated}, its content has {digest}; it was altered or damaged: copy the bundle again"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise BundleCorrupt(f"{file} does not fit the bundle format: {str(error)[:_SHOWN]}") from error


def _check_file(path: Path, name: str, entry: FileEntry | None) -> bytes:
    if entry is None:
        raise BundleFileMissing(f"the manifest in {path} does not list {name}, which a bundle of format {FORMAT_VERSION} needs")
    file = path / name
    if Path(name).name != name or file.is_symlink():
        raise BundleCorrupt(f"{name!r} in {path} leads outside the bundle; a bundle holds plain files only")
    if not file.is_file():
        raise BundleFileMissing(f"expected {name} in {path}, found none; copy the bundle again")
    if (size := file.stat().st_size) != entry.bytes:
        raise BundleCorrupt(f"{file}: expected {entry.bytes} bytes, found {size}; copy the bundle again")
    with file.open("rb") as content:
        data = content.read(entry.bytes + 1)  # and no more, should it grow meanwhile
    if (digest := hashlib.sha256(data).hexdigest()) != entry.sha256:
        raise BundleCorrupt(f"{file}: expected SHA-256 {entry.sha256}, found {digest}; it was altered or damaged: copy the bundle again")
    return data

import hashlib
import json
import os

import pytest

from tests.training.tiny import TINY_SPEC
from training.contract.bundle import MAX_FILE_BYTES, MAX_FILES, MAX_MANIFEST_BYTES, Bundle, GoldenVectors, write_bundle
from training.contract.errors import BundleCorrupt, BundleError, BundleFileMissing, BundleTooNew
from training.contract.spec import FORMAT_VERSION, MANIFEST, REWARD_DECODER, SKILL_DECODER, SKILL_DYNAMICS

FILES = {
    "skill_decoder.onnx": b"decoder",
    "meta_policy.onnx": b"policy",
    "task_encoder.onnx": b"encoder",
    "learner.safetensors": b"weights",
    "README.md": b"# card",
}
PROVENANCE = {
    "created_at": "2026-01-01T00:00:00+00:00",
    "config": {},
    "config_sha256": "0" * 64,
    "seed": 0,
    "commit": "0" * 40,
    "command": "c",
    "metrics": {},
}


def write(path, files=None, leave_out=None, envelope=None):
    files = {name: data for name, data in (FILES | (files or {})).items() if name != leave_out}
    golden = {SKILL_DECODER: GoldenVectors(inputs={"state": [[0.1, -2.5]]}, outputs={"action": [[0.3]]})}
    return write_bundle(
        path, files, name="tiny", spec=TINY_SPEC, golden=golden, networks={}, finetuning={}, provenance=PROVENANCE, envelope=envelope
    )


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "tiny").path


def edit_manifest(path, **changed):
    """Change entries of the manifest with its digest made to fit, as a program of another version would write them."""
    content = json.loads((path / MANIFEST).read_text()) | changed
    content.pop("sha256")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    (path / MANIFEST).write_text(json.dumps(content | {"sha256": hashlib.sha256(canonical.encode()).hexdigest()}))


def test_what_is_written_is_loaded(path):
    bundle = Bundle.load(str(path))
    assert bundle.manifest.spec == TINY_SPEC
    assert bundle.manifest.format_version == FORMAT_VERSION
    assert {name: bundle.read(name) for name in bundle.manifest.files} == FILES
    with pytest.raises(KeyError):
        bundle.read("other.onnx")


def test_the_digest_is_of_the_files_and_nothing_else(tmp_path):
    once, again, other = write(tmp_path / "a"), write(tmp_path / "b"), write(tmp_path / "c", files={"README.md": b"# Card"})
    assert once.manifest.digest == again.manifest.digest != other.manifest.digest


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_any_file_is_found(path, name):
    data = bytearray((path / name).read_bytes())
    data[3] ^= 1
    (path / name).write_bytes(data)
    expected = hashlib.sha256(FILES[name]).hexdigest()
    with pytest.raises(BundleCorrupt, match=rf"{name}: expected SHA-256 {expected}, found {hashlib.sha256(data).hexdigest()}"):
        Bundle.load(path)


def test_no_flipped_byte_in_the_manifest_changes_what_is_loaded(path):
    manifest, whole = Bundle.load(path).manifest, (path / MANIFEST).read_bytes()
    refused = 0
    for at in range(len(whole)):
        (path / MANIFEST).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            assert Bundle.load(path).manifest == manifest
        except BundleError:
            refused += 1
    assert refused > 0.7 * len(whole)  # the rest is white space


def test_a_longer_file_is_found_by_its_size(path):
    with (path / "README.md").open("ab") as file:
        file.write(b"!")
    with pytest.raises(BundleCorrupt, match=r"README\.md: expected 6 bytes, found 7"):
        Bundle.load(path)


def test_a_file_that_changes_after_loading_is_not_read(path):
    bundle = Bundle.load(path)
    (path / "meta_policy.onnx").write_bytes(b"pol1cy")
    with pytest.raises(BundleCorrupt, match="expected SHA-256"):
        bundle.read("meta_policy.onnx")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(path, name):
    (path / name).unlink()
    with pytest.raises(BundleFileMissing, match=rf"expected {name} in .*tiny, found none"):
        Bundle.load(path)


def test_a_missing_manifest_or_directory_is_named(path, tmp_path):
    (path / MANIFEST).unlink()
    with pytest.raises(BundleFileMissing, match=r"expected manifest\.json in .*tiny, found none"):
        Bundle.load(path)
    with pytest.raises(BundleFileMissing, match=r"expected a bundle directory at .*nowhere, found none"):
        Bundle.load(tmp_path / "nowhere")


def test_a_manifest_that_leaves_out_a_needed_file_is_refused(path):
    files = json.loads((path / MANIFEST).read_text())["files"]
    del files["task_encoder.onnx"]
    edit_manifest(path, files=files)
    with pytest.raises(BundleFileMissing, match=r"does not list task_encoder\.onnx, which a bundle of format 4 needs"):
        Bundle.load(path)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, "2", 1.5, None])
def test_another_format_version_is_refused_before_anything_else_is_read(path, version):
    edit_manifest(path, format_version=version, shape_of_things_to_come={})
    with pytest.raises(BundleTooNew, match=rf"format version {version!r}; this program reads up to {FORMAT_VERSION}: update it"):
        Bundle.load(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_manifest_is_refused(path, share):
    whole = (path / MANIFEST).read_bytes()
    (path / MANIFEST).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BundleCorrupt, match="expected a JSON object with a format_version"):
        Bundle.load(path)


@pytest.mark.parametrize("text", ["[]", "{}", '"manifest"', "[" * 100_000, '{"format_version": 1}', "\xff"])
def test_other_json_is_no_manifest(path, text):
    (path / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleCorrupt, match=r"manifest\.json"):
        Bundle.load(path)


def test_an_unknown_entry_in_the_manifest_is_refused_by_name(path):
    edit_manifest(path, pickle="yes")
    with pytest.raises(BundleCorrupt, match=r"does not fit the bundle format[\s\S]*pickle"):
        Bundle.load(path)


def test_a_huge_manifest_is_not_read(path):
    (path / MANIFEST).write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(BundleCorrupt, match=f"has {MAX_MANIFEST_BYTES + 1} bytes, more than the {MAX_MANIFEST_BYTES}"):
        Bundle.load(path)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "inner/file", "..", ".", "", "a\\\\b", "a\0b", ".hidden", "a" * 101, "a\n", "~root", "é"]
)
def test_a_manifest_cannot_lead_outside_the_bundle(path, name):
    (path.parent / "secret").write_bytes(b"secret")
    files = json.loads((path / MANIFEST).read_text())["files"]
    files[name] = {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}
    edit_manifest(path, files=files)
    with pytest.raises(BundleCorrupt, match="does not fit the bundle format"):
        Bundle.load(path)


def test_what_is_no_plain_file_is_no_file_of_a_bundle(path):
    (path / "README.md").unlink()
    os.mkfifo(path / "README.md")  # reading it would wait for ever
    with pytest.raises(BundleFileMissing):
        Bundle.load(path)


def test_more_bytes_or_files_than_a_bundle_may_have_are_refused_before_any_file_is_read(path):
    files = json.loads((path / MANIFEST).read_text())["files"]
    large = {f"large{number}": {"sha256": "0" * 64, "bytes": MAX_FILE_BYTES} for number in range(3)}
    edit_manifest(path, files=files | large)
    with pytest.raises(BundleCorrupt, match="more than the"):
        Bundle.load(path)
    many = {f"small{number}": {"sha256": "0" * 64, "bytes": 0} for number in range(MAX_FILES)}
    edit_manifest(path, files=files | many)
    with pytest.raises(BundleCorrupt, match="files"):
        Bundle.load(path)


@pytest.mark.parametrize("field", ["skill_dim", "task_embedding_dim", "max_context"])
def test_sizes_for_which_no_memory_would_do_are_refused(path, field):
    spec = json.loads((path / MANIFEST).read_text())["spec"]
    edit_manifest(path, spec=spec | {field: 2**40})
    with pytest.raises(BundleCorrupt, match=field):
        Bundle.load(path)


@pytest.mark.parametrize("name", ["README.md", MANIFEST])
def test_a_symbolic_link_is_no_file_of_a_bundle(path, name):
    (path / name).rename(path.parent / "elsewhere")
    (path / name).symlink_to(path.parent / "elsewhere")
    with pytest.raises(BundleCorrupt, match="leads outside the bundle; a bundle holds plain files only"):
        Bundle.load(path)


def test_a_bundle_replaces_a_bundle_and_leaves_nothing_else_behind(tmp_path):
    old = write(tmp_path / "tiny")
    new = write(tmp_path / "tiny", files={"README.md": b"# new"})
    assert Bundle.load(tmp_path / "tiny").manifest == new.manifest != old.manifest
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("failing_rename", [0, 1])
def test_an_interrupted_write_leaves_the_old_bundle(tmp_path, monkeypatch, failing_rename):
    old = write(tmp_path / "tiny")
    renames, rename = [], os.rename

    def interrupt(source, target):
        renames.append(target)
        if len(renames) == failing_rename + 1:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("os.rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "tiny", files={"README.md": b"# new"})
    monkeypatch.undo()
    assert Bundle.load(tmp_path / "tiny").manifest == old.manifest
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny"]


def test_a_bundle_that_would_not_load_is_not_written(tmp_path):
    with pytest.raises(BundleFileMissing, match=r"does not list README\.md"):
        write(tmp_path / "tiny", leave_out="README.md")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_no_bundle_is_not_replaced(tmp_path):
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "precious.txt").write_text("years of work")
    for place in (tmp_path / "bundles", tmp_path / "bundles" / "precious.txt"):
        with pytest.raises(BundleError, match=r"expected a bundle or nothing at .*, found something else"):
            write(place)
    assert (tmp_path / "bundles" / "precious.txt").read_text() == "years of work"


def test_an_empty_directory_is_filled(tmp_path):
    assert write(tmp_path).path == tmp_path
    assert Bundle.load(tmp_path).manifest.name == "tiny"


def believing(path, files=None, **changed):
    files = files or FILES | {REWARD_DECODER: b"rewards"}
    fields = {"particles": ((0.5, -1.0), (1.5, 2.0)), "exploration": "belief", "conditioning_episodes": 7} | changed
    return write_bundle(path, files, name="tiny", spec=TINY_SPEC, golden={}, networks={}, finetuning={}, provenance=PROVENANCE, **fields)


def test_a_bundle_with_particles_and_a_reward_decoder_offers_a_belief(tmp_path):
    bundle, plain = believing(tmp_path / "a"), write(tmp_path / "b")
    manifest = Bundle.load(bundle.path).manifest
    assert (manifest.particles, manifest.conditioning_episodes) == (((0.5, -1.0), (1.5, 2.0)), 7)
    assert set(manifest.explorations) - set(plain.manifest.explorations) == {"belief"}
    assert believing(tmp_path / "c", particles=((0.5, -1.0), (1.5, 2.1))).manifest.digest != bundle.manifest.digest


def test_a_bundle_with_places_and_skill_dynamics_offers_novelty(tmp_path):
    offering = {"files": FILES | {REWARD_DECODER: b"rewards", SKILL_DYNAMICS: b"dynamics"}, "exploration": "novelty"}
    bundle, plain = believing(tmp_path / "a", places=((0.5, 0, 0, 1),), **offering), believing(tmp_path / "b")
    manifest = Bundle.load(bundle.path).manifest
    assert (manifest.places, manifest.exploration) == (((0.5, 0.0, 0.0, 1.0),), "novelty")
    assert set(manifest.explorations) - set(plain.manifest.explorations) == {"novelty"}
    assert believing(tmp_path / "c", places=((0.5, 0, 0, 2),), **offering).manifest.digest != manifest.digest


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"places": ((0.5, -1.0, 3.0),)}, "places must have 4 entries each"),
        ({"places": ()}, "places"),
        ({"places": ((0.5, 0, float("nan"), 1),)}, "finite"),
        ({"places": ((0.5, 0, 0, 1),) * 5}, "no more than these"),
        ({"places": None}, r"needs places and skill_dynamics\.onnx, and a belief"),
        ({"files": FILES | {REWARD_DECODER: b"rewards"}}, r"needs places and skill_dynamics\.onnx, and a belief"),
        ({"files": FILES | {SKILL_DYNAMICS: b"dynamics"}, "particles": None}, "and a belief"),
        ({"files": FILES | {REWARD_DECODER: b"rewards"}, "places": None, "exploration": "novelty"}, "'novelty' needs places and skill_dyn"),
    ],
)
def test_novelty_that_is_not_whole_is_refused(tmp_path, changed, said):
    whole = {"files": FILES | {REWARD_DECODER: b"rewards", SKILL_DYNAMICS: b"dynamics"}, "places": ((0.5, 0, 0, 1),)}
    with pytest.raises(ValueError, match=said):
        believing(tmp_path / "a", **whole | changed)


def test_a_bundle_that_acts_with_another_temperature_is_another_version(tmp_path):
    plain, same, cooler = (believing(tmp_path / name, skill_temperature=value) for name, value in (("a", 1.0), ("b", 1.0), ("c", 0.5)))
    assert Bundle.load(cooler.path).manifest.skill_temperature == 0.5
    assert plain.manifest.digest == same.manifest.digest != cooler.manifest.digest
    assert believing(tmp_path / "d").manifest.digest == plain.manifest.digest
    with pytest.raises(ValueError, match="skill_temperature"):
        believing(tmp_path / "e", skill_temperature=0.0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"particles": ((0.5, -1.0, 3.0),)}, "particles must have 2 entries"),
        ({"particles": None, "exploration": "prior"}, "both particles and reward_decoder.onnx"),
        ({"particles": ()}, "particles"),
    ],
)
def test_a_belief_that_is_not_whole_is_refused(tmp_path, changed, said):
    with pytest.raises(ValueError, match=said):
        believing(tmp_path / "a", **changed)


def test_a_bundle_without_a_belief_cannot_explore_by_one(path):
    edit_manifest(path, exploration="belief")
    with pytest.raises(BundleCorrupt, match="'belief' needs particles"):
        Bundle.load(path)


def test_a_bundle_of_the_former_format_is_read_and_keeps_its_digest(path):
    before = Bundle.load(path).manifest
    content = json.loads((path / MANIFEST).read_text())
    for name in ("sha256", "particles", "conditioning_episodes"):
        content.pop(name)
    content["format_version"] = 2
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    (path / MANIFEST).write_text(json.dumps(content | {"sha256": hashlib.sha256(canonical.encode()).hexdigest()}))
    manifest = Bundle.load(path).manifest
    assert (manifest.digest, manifest.particles, manifest.conditioning_episodes) == (before.digest, None, 20)


@pytest.mark.parametrize("changed", [{"name": "\ud800"}, {"finetuning": {"\ud800": 1}}, {"\ud800": 1}])
def test_half_a_character_in_a_manifest_is_refused(path, changed):
    edit_manifest(path, **changed)
    with pytest.raises(BundleCorrupt, match="surrogates not allowed"):
        Bundle.load(path)


def test_what_is_told_of_a_damaged_manifest_does_not_quote_all_of_it(path):
    (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes() + b" " * 100_000 + b"\xff")
    with pytest.raises(BundleCorrupt, match="UnicodeDecodeError") as refused:
        Bundle.load(path)
    assert len(str(refused.value)) < 2000

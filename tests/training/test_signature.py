import base64
import json
import shutil
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.key_files import write_pair
from tests.training.test_bundle import edit_manifest, write
from training.__main__ import main
from training.contract.bundle import Bundle
from training.contract.errors import BundleCorrupt, BundleUnsigned, KeyFileError
from training.contract.signature import SIGNATURE, PublicKey
from training.contract.spec import MANIFEST


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two pairs, and one of another kind."""
    folder = tmp_path_factory.mktemp("keys")
    write_pair(folder, "ours", Ed25519PrivateKey.generate())
    write_pair(folder, "theirs", Ed25519PrivateKey.generate())
    write_pair(folder, "rsa", rsa.generate_private_key(65537, 2048))
    return folder


@pytest.fixture
def signed(tmp_path, keys, capsys):
    path = write(tmp_path / "tiny").path
    assert main(["sign", "--bundle", str(path), "--key", str(keys / "ours.pem")]) == 0
    assert PublicKey.read(keys / "ours.pub.pem").fingerprint in capsys.readouterr().out
    return path


def trusted(keys, *names):
    return [PublicKey.read(keys / f"{name}.pub.pem") for name in names]


def test_a_bundle_that_a_trusted_key_signed_is_loaded(signed, keys):
    assert Bundle.load(signed, trusted(keys, "theirs", "ours")).manifest.name == "tiny"
    assert Bundle.load(signed).manifest.name == "tiny"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")
def test_keys_made_and_signatures_checked_by_openssl_fit(tmp_path):
    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    private, public, path = tmp_path / "key.pem", tmp_path / "key.pub.pem", write(tmp_path / "tiny").path
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    assert main(["sign", "--bundle", str(path), "--key", str(private)]) == 0
    Bundle.load(path, [PublicKey.read(public)])
    (tmp_path / "message").write_bytes(b"skillet bundle manifest\n" + (path / MANIFEST).read_bytes())
    (tmp_path / "signature").write_bytes(base64.b64decode((path / SIGNATURE).read_bytes()))
    openssl("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", tmp_path / "message", "-sigfile", tmp_path / "signature")


def test_a_bundle_of_somebody_else_is_refused(signed, keys):
    theirs = trusted(keys, "theirs")
    with pytest.raises(BundleUnsigned, match=f"none of the keys that are trusted.*theirs.pub.pem \\({theirs[0].fingerprint}\\)"):
        Bundle.load(signed, theirs)


def test_an_altered_manifest_is_refused_though_its_digest_fits(signed, keys):
    edit_manifest(signed, name="other")
    assert Bundle.load(signed).manifest.name == "other"
    with pytest.raises(BundleUnsigned, match="for another manifest"):
        Bundle.load(signed, trusted(keys, "ours"))


def test_an_altered_file_is_refused(signed, keys):
    (signed / "README.md").write_bytes(b"# Card")
    with pytest.raises(BundleCorrupt, match="SHA-256"):
        Bundle.load(signed, trusted(keys, "ours"))


def test_a_bundle_without_a_signature_is_refused_and_told_how_to_get_one(tmp_path, keys):
    path = write(tmp_path / "tiny").path
    with pytest.raises(BundleUnsigned, match=r"found none; sign it with 'python -m training sign --bundle .*tiny --key KEY.pem'"):
        Bundle.load(path, trusted(keys, "ours"))
    (tmp_path / "elsewhere").write_bytes(b"")
    (path / SIGNATURE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleUnsigned, match="found none"):
        Bundle.load(path, trusted(keys, "ours"))


@pytest.mark.parametrize("content", [b"", b"not base64 !", b"AAAA\n", bytes(range(256)) * 100])
def test_a_damaged_signature_is_refused(signed, keys, content):
    (signed / SIGNATURE).write_bytes(content)
    with pytest.raises(BundleUnsigned, match="expected 64 bytes in base64"):
        Bundle.load(signed, trusted(keys, "ours"))


def test_one_changed_bit_of_the_signature_is_refused(signed, keys):
    data = bytearray(base64.b64decode((signed / SIGNATURE).read_bytes()))
    data[7] ^= 1
    (signed / SIGNATURE).write_bytes(base64.b64encode(data))
    with pytest.raises(BundleUnsigned, match="none of the keys"):
        Bundle.load(signed, trusted(keys, "ours"))


def test_a_bundle_that_is_written_again_has_lost_its_signature(signed, keys):
    write(signed)
    with pytest.raises(BundleUnsigned, match="found none"):
        Bundle.load(signed, trusted(keys, "ours"))


def test_what_is_no_key_is_told_apart(tmp_path, keys):
    (tmp_path / "large.pem").write_bytes(b"-" * 70_000)
    for file, said in {
        "none.pem": "cannot read the key",
        keys / "rsa.pub.pem": "expected an Ed25519 public key, got RSAPublicKey",
        "large.pem": "more than 65536 bytes",
        keys / "ours.pem": "expected a public key in PEM",
    }.items():
        with pytest.raises(KeyFileError, match=said):
            PublicKey.read(tmp_path / file)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("rsa.pem", "expected an Ed25519 private key, got RSAPrivateKey"),
        ("ours.pub.pem", "expected a private key in PEM"),
        ("none.pem", "cannot read the key"),
    ],
)
def test_signing_without_a_private_key_leaves_the_bundle_alone(signed, keys, capsys, key, said):
    before = (signed / SIGNATURE).read_bytes()
    assert main(["sign", "--bundle", str(signed), "--key", str(keys / key)]) == 2
    assert said in capsys.readouterr().err
    assert (signed / SIGNATURE).read_bytes() == before


def test_a_damaged_bundle_is_not_signed(tmp_path, keys, capsys):
    path = write(tmp_path / "tiny").path
    content = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(content | {"name": "other"}))
    assert main(["sign", "--bundle", str(path), "--key", str(keys / "ours.pem")]) == 2
    assert "altered or damaged" in capsys.readouterr().err
    assert not (path / SIGNATURE).exists()


@pytest.mark.parametrize("command", ["serve", "sign"])
def test_without_the_library_both_sides_say_which_extra_is_missing(signed, keys, monkeypatch, capsys, command):
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    if command == "serve":
        with pytest.raises(KeyFileError, match="need the extra `signatures`"):
            PublicKey.read(keys / "ours.pub.pem")
    else:
        assert main(["sign", "--bundle", str(signed), "--key", str(keys / "ours.pem")]) == 2
        assert "need the extra `signatures`" in capsys.readouterr().err

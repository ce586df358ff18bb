"""``python -m training sign --bundle DIR --key KEY.pem``: say who made a bundle."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from training.contract.bundle import Bundle
from training.contract.errors import BundleError
from training.contract.signature import SIGNATURE, sign
from training.contract.spec import MANIFEST

EPILOG = """\
A key pair, of which the first file is secret and the second goes to whoever serves the bundle:
  openssl genpkey -algorithm ed25519 -out bundle-key.pem
  openssl pkey -in bundle-key.pem -pubout -out bundle-key.pub.pem

Then the service refuses bundles that are not signed:
  python -m service --bundle DIR --bundle-key bundle-key.pub.pem
"""


def sign_bundle(arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit code. Raises SkilletError for a bundle or a key that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m training sign",
        description="Sign a bundle with an Ed25519 key. A bundle that is exported again has to be signed again.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle's folder")
    parser.add_argument("--key", type=Path, required=True, help="private key (Ed25519, PEM, without a password)")
    options = parser.parse_args(arguments)
    bundle = Bundle.load(options.bundle)
    manifest = (bundle.path / MANIFEST).read_bytes()
    signature, fingerprint = sign(manifest, options.key)
    scratch, file = bundle.path / f".{SIGNATURE}.partial", bundle.path / SIGNATURE
    try:
        scratch.write_bytes(signature)
        os.replace(scratch, file)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise BundleError(f"cannot write {file}: {error.strerror or error}") from error
    print(f"{file}: bundle {bundle.manifest.name} ({bundle.manifest.digest[:12]}), public key {fingerprint}")  # noqa: T201
    return 0

"""Errors of the contract.

SkilletError
├── BundleError              a bundle cannot be used
│   ├── BundleFileMissing    a file named by the format is not there
│   ├── BundleCorrupt        a file differs from what the manifest says, or cannot be read
│   ├── BundleTooNew         written by a newer format version
│   └── BundleUnsigned       made by nobody whose key is trusted
├── KeyFileError             a file is not the key that it should be
├── CheckpointCorrupt        a checkpoint of training is cut or damaged
├── TrainingDiverged         a metric of training is no longer a finite number
└── ConfigError              a configuration names something unknown or out of range
"""


class SkilletError(Exception):
    """Base class of this project's own errors."""


class BundleError(SkilletError):
    """A bundle cannot be used."""


class BundleFileMissing(BundleError):
    """A file that the format or the manifest names is not there."""


class BundleCorrupt(BundleError):
    """A file's content differs from what the manifest says, or it cannot be read."""


class BundleTooNew(BundleError):
    """The bundle was written by a newer format version than this program reads."""


class BundleUnsigned(BundleError):
    """No key that is trusted signed the bundle."""


class KeyFileError(SkilletError):
    """A file is not the key that it should be, or cannot be read."""


class CheckpointCorrupt(SkilletError):
    """A checkpoint of training is cut or damaged, or holds other networks than it should."""


class TrainingDiverged(SkilletError):
    """A metric of training is no longer a finite number: what comes after would be worthless."""


class ConfigError(SkilletError):
    """A configuration names something unknown or holds a value out of range."""

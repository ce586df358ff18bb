"""The folder of local Minari datasets: what is there, downloads into it, and writes that appear in it only when they are whole."""

import difflib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DEFAULT_ROOT = Path("data/minari")
"""Where datasets lie unless ``MINARI_DATASETS_PATH`` says otherwise."""


def dataset_root(root: Path | None = None) -> Path:
    """The folder that is given, or else ``MINARI_DATASETS_PATH``, or else ``data/minari``."""
    return Path(root or os.environ.get("MINARI_DATASETS_PATH") or DEFAULT_ROOT).resolve()


def check_id(dataset_id: str) -> None:
    """Raises ValueError when this is no dataset's full id; Minari itself knows ids without a version too, which name no dataset."""
    from minari.dataset.minari_dataset import DATASET_ID_RE

    match = DATASET_ID_RE.fullmatch(dataset_id)
    if not match or match["version"] is None:
        raise ValueError(f"expected a Minari id such as 'namespace/name-v0', got {dataset_id!r}")


def is_there(dataset_id: str, root: Path) -> bool:
    """Whether a dataset is in the folder."""
    return (root / dataset_id / "data").is_dir()


def what_is_there(dataset_id: str, root: Path) -> str:
    """For a dataset that is missing: the ids that are there, and which of them is the nearest."""
    ids = sorted(str(path.parent.relative_to(root)) for path in root.glob("**/data") if path.is_dir())
    return (", ".join(ids) or "none") + nearest(dataset_id, ids)


def nearest(wrong: str, right: list[str]) -> str:
    """The end of a message on a wrong name, empty when nothing is like it."""
    match = difflib.get_close_matches(wrong, right, 1)
    return f" (the nearest is {match[0]!r})" if match else ""


def download_dataset(dataset_id: str, say: Callable[[str], None], *, root: Path | None = None) -> None:
    """Fetch a dataset from Minari's server, unless it is there. ``say`` gets a line before that begins.

    Raises:
        ValueError: this is no Minari id.
        ConnectionError: it cannot be had, for whatever reason; the message says what to do without a network.
    """
    from minari.storage import hosting

    check_id(dataset_id)
    root = dataset_root(root)
    if is_there(dataset_id, root):
        return
    say(f"{dataset_id} is not in {root}: downloading it from Minari's server, which may take minutes")
    try:
        with appearing_whole(dataset_id, root):
            hosting.download_dataset(dataset_id)
    except Exception as error:  # Minari's own, its storage client's, or the network's
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ConnectionError(
            f"expected the dataset in {root}, found {what_is_there(dataset_id, root)}; it cannot be downloaded either ({reason}). "
            f"Without a network: run 'minari download {dataset_id}' where there is one and copy the dataset's folder to {root / dataset_id}"
        ) from error


@contextmanager
def appearing_whole(dataset_id: str, root: Path) -> Iterator[None]:
    """Let Minari write a dataset into a scratch folder, and move it to its place when that has succeeded, replacing what is there."""
    root.mkdir(parents=True, exist_ok=True)
    target = root / dataset_id
    with tempfile.TemporaryDirectory(dir=root, prefix=".writing-") as scratch:
        with datasets_in(Path(scratch)):
            yield
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        (Path(scratch) / dataset_id).rename(target)


@contextmanager
def datasets_in(root: Path) -> Iterator[None]:
    """Point Minari at a folder of datasets; the environment variable is the only way that it takes one."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before

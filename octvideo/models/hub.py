"""Networks on the Hugging Face hub, by name: `hf:USER/NAME`, `hf:USER/NAME@REVISION`. They are downloaded once.

huggingface_hub does it (`pip install 'octvideo[hub]'`): its cache, its login and its settings hold, HF_ENDPOINT,
HF_TOKEN and HF_HUB_OFFLINE among them.
"""

from __future__ import annotations

from pathlib import Path

from octvideo._version import __version__
from octvideo.errors import UserError
from octvideo.files import one_line

HUB = "hf:"
_FORM = f"{HUB}USER/NAME or {HUB}USER/NAME@REVISION"
_LOGIN = "log in (hf auth login), or set HF_TOKEN"


def is_hub_name(name: str) -> bool:
    """Whether a name means a repository of the hub."""
    return name.startswith(HUB)


def download_repository(name: str, files: tuple[str, ...], *, revision: str | None = None) -> Path:
    """The folder in huggingface_hub's cache with some files of a repository, all of one commit.

    Args:
        name: hf:USER/NAME, or hf:USER/NAME@REVISION.
        files: of the repository. No other is downloaded.
        revision: a branch, a tag or a commit; None is that of the name, else "main".

    Raises:
        UserError: no such repository, revision or file; one that needs a login; no network; no huggingface_hub.
    """
    repository, _, named = name.removeprefix(HUB).partition("@")
    if named and revision not in (None, named):
        raise UserError(f"{name} with revision {revision}: both name a revision; leave one of them out")
    wanted = revision or named or None
    if repository.count("/") != 1:
        raise UserError(f"{name}: got no repository of the hub, expected {_FORM}")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UserError(f"{name} needs huggingface_hub: pip install 'octvideo[hub]'") from error
    commit, path = wanted, Path()
    for file in files:
        try:
            path = Path(
                hf_hub_download(repository, file, revision=commit, library_name="octvideo", library_version=__version__)
            )
        except Exception as error:  # of the hub, of connections, of the disk: no common type
            raise UserError(_reason(error, f"{HUB}{repository}", wanted, file)) from error
        commit = path.parent.name  # a branch may move between two files
    return path.parent


def name_of_cached(folder: str | Path) -> str:
    """What a folder of the cache is called for people, hf:USER/NAME@COMMIT; other folders by their paths."""
    parts = Path(folder).parts[-3:]
    if len(parts) == 3 and parts[0].startswith("models--") and parts[1] == "snapshots":
        return f"{HUB}{'/'.join(parts[0].split('--')[1:])}@{parts[2][:12]}"
    return str(folder)


def _reason(error: Exception, name: str, revision: str | None, file: str) -> str:
    """Why a file can't be had, and what to do."""
    from huggingface_hub import errors

    at = f" at {revision}" if revision else ""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return f"{name}{at}: got no name that the hub takes, expected {_FORM}"
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is for those who were given access (status {status}): ask for it on its page, then {_LOGIN}"
    if status == 401 or isinstance(error, errors.RepositoryNotFoundError):
        return f"no repository {name} (status {status}), or a private one: check the name; for a private one {_LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision}: give a branch, a tag or a whole commit that it has"
    if isinstance(error, errors.LocalEntryNotFoundError):
        answer = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        if answer:
            return f"{name}{at}: {file} is not in the cache, and the hub answers with status {answer}: try again later"
        return (
            f"{name}{at}: {file} is not in the cache, and the hub can't be reached: check the connection "
            "(and HF_ENDPOINT and HF_HUB_OFFLINE, where they are set)"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return f"{name}{at} has no {file}, so it is no network of octvideo: octvideo card RUN --hub writes one"
    said = f"status {status}" if status else one_line(error)
    return f"{name}{at}: {file} can't be downloaded ({said}): try again later"

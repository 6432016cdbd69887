"""A checkpoint on the Hub: what can be checked before the work, and sending it."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ..errors import CheckpointError, OptionError, first_line
from .staging import CHECKPOINT_FILES


def check_push(repository: str) -> None:
    """Raise OptionError unless there is a token for the Hub, which the Hub knows, and the name may be a repository's.

    Called before any long work starts. Nothing is made on the Hub.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise OptionError("push_to_hub", repository, f"is no name of a repository: {first_line(error)}") from None
    if get_token() is None:
        raise OptionError("push_to_hub", repository, "there is no token for the Hub: hf auth login, or set HF_TOKEN")
    try:
        HfApi().whoami()
    except HfHubHTTPError as error:
        raise OptionError("push_to_hub", repository, f"the Hub refuses the token: {first_line(error)}") from None
    except Exception as error:  # of the connection; httpx, requests and offline mode have no common base
        raise OptionError("push_to_hub", repository, f"the Hub cannot be reached: {first_line(error)}") from None


def push(folder: str | os.PathLike[str], repository: str, *, private: bool | None = None) -> str:
    """Send the files of a checkpoint to a repository, which is made if need be; its address.

    private: of a new repository; None for what is usual where it is made.  Raises CheckpointError; the folder stays.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=Path(folder),
            allow_patterns=list(CHECKPOINT_FILES),
            commit_message="Upload a model pruned by optimum-grasprune",
        )
    except Exception as error:  # of the Hub, the connection or the file system
        again = f"hf upload {repository} {folder}"
        raise CheckpointError(
            f"the checkpoint is whole in {folder}, but cannot be sent to {repository}: {first_line(error)}; "
            f"{again} tries again"
        ) from None
    return str(address)

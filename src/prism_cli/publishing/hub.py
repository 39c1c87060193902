"""The hub: an export uploaded, private where it is new, never over another model."""

import json
import os
import re
from pathlib import Path
from typing import Any

from prism_cli.errors import PrismError, RecipeError

TOKEN = "HF_TOKEN"
# In an export, what it is of: the mark by which one is known.
ABOUT = "prism.json"


def check_push(repo: str) -> None:
    """Finds what would keep a push from working, without asking the hub.

    Raises:
        RecipeError: no token in the environment, or no repository's name.
    """
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo) is None:
        raise RecipeError(f"--push-to-hub: {repo!r} names no repository", "give OWNER/NAME")
    if not os.environ.get(TOKEN):
        raise RecipeError(
            f"--push-to-hub needs a token in ${TOKEN}, and there is none",
            f"export {TOKEN}=… (one that may write, from https://huggingface.co/settings/tokens)",
        )


def push(folder: Path, repo: str, about: dict[str, Any]) -> str:
    """Uploads an export and says where it is; a repository that is not there yet is made, private.

    Args:
        folder: The export.
        repo: `owner/name`.
        about: What the export is of.

    Raises:
        RecipeError: see `check_push`; or the repository holds another model.
        PrismError: the hub refuses, or can't be reached.
    """
    check_push(repo)
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi(token=os.environ[TOKEN], library_name="prism-cli")
    try:
        url = api.create_repo(repo, private=True, exist_ok=True)
        _refuse_another(api, repo, about)
        message = f"{about['run']['id']} ({about['run']['stage']}), made by prism"
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        private = api.repo_info(repo).private
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled) as error:
        # The first line only: the rest may quote the request.
        reason = str(error).strip().partition("\n")[0]
        raise PrismError(
            f"the hub did not take {repo}: {reason}",
            f"check that ${TOKEN} may write there; the export is kept in {folder}, and the same command pushes it",
        ) from None
    return f"pushed to {url} ({'private: only you and your organisation see it' if private else 'public'})"


def _refuse_another(api: Any, repo: str, about: dict[str, Any]) -> None:
    """Refuses a repository with files in it that are no export of this run.

    Raises:
        RecipeError: it is one.
    """
    files = set(api.list_repo_files(repo)) - {".gitattributes"}
    if not files:
        return
    known = json.loads(Path(api.hf_hub_download(repo, ABOUT)).read_text()) if ABOUT in files else {}
    if known.get("run") != about["run"]:
        raise RecipeError(f"{repo} on the hub holds another model", "give --push-to-hub another name")

"""Rows of a data set on the Hugging Face hub, streamed from one commit."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from prism_cli.errors import DataError

CURE = "check data.path or --data; a hub data set needs the network, and a private one `hf auth login`"


class HubName(NamedTuple):
    """A data set of the hub, its split, configuration or file.

    Attributes:
        name: Id of the data set.
        config: Its configuration, or None.
        split: Its split.
        file: One file of it, or None.
    """

    name: str
    config: str | None
    split: str
    file: str | None

    @classmethod
    def of(cls, text: str) -> "HubName":
        """From `name`, `name@split`, `name:config`, `name:config@split` or `name/file.parquet`.

        Raises:
            DataError: it names no data set.
        """
        whole = text
        text, _, split = text.partition("@")
        text, _, config = text.partition(":")
        if not text:
            raise DataError(
                f"{whole!r} names no data set", "give a file, a folder, or a hub id such as owner/name@split"
            )
        owner, *rest = PurePosixPath(text).parts
        if len(rest) > 1:
            return cls(f"{owner}/{rest[0]}", None, split or "train", "/".join(rest[1:]))
        return cls(text, config or None, split or "train", None)

    @property
    def shown(self) -> str:
        """As it is named beside a row."""
        return "/".join(filter(None, (self.name, self.file))) + (f":{self.config}" if self.config else "")


def hub_commit(hub: HubName) -> str:
    """The commit that the data set's main branch is at.

    Raises:
        DataError: no such data set, or the hub can't be reached.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(hub.name).sha or "main"
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        raise DataError(f"no file {hub.shown} here, nor on the hub: {_first_line(error)}", CURE) from None


def hub_rows(hub: HubName, commit: str | None) -> Iterator[dict[str, Any]]:
    """The rows, pictures as the bytes that are stored.

    Raises:
        DataError: no such configuration, split or file, or the hub can't be reached.
    """
    import httpx
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    options: dict[str, Any] = {"data_files": hub.file} if hub.file else {"name": hub.config}
    try:
        # A file named alone is its builder's only split, whatever it holds.
        split = "train" if hub.file else hub.split
        rows = load_dataset(hub.name, split=split, revision=commit, streaming=True, **options)
        yield from rows.decode(False)
    except (
        *(DatasetNotFoundError, DatasetGenerationError, HfHubHTTPError, httpx.HTTPError),
        *(OSError, ValueError, RuntimeError),  # the last for a set that is a script, which is never run
    ) as error:
        raise DataError(f"can't read {hub.shown}@{hub.split} from the hub: {_first_line(error)}", CURE) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

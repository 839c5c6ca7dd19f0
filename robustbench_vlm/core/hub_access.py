"""The Hugging Face hub: addresses, the login, the cache folder, and a check that the hub can be reached."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar
from urllib.parse import quote, urlsplit

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder
from robustbench_vlm.core.hosts import Hosts, unreachable_text

T = TypeVar("T")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def endpoint() -> str:
    """Return the address of the hub, or of its mirror in the environment variable HF_ENDPOINT."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_url(repository: str, file: str, revision: str = "main") -> str:
    """Return the address of a file on the hub, or on its mirror in the environment variable HF_ENDPOINT.

    `repository` is "owner/name" for a model and "datasets/owner/name" for a dataset.
    """
    return f"{endpoint()}/{quote(repository)}/resolve/{quote(revision, safe='')}/{quote(file)}"


def is_on_hub(url: str) -> bool:
    """Return whether an address has the protocol, host and port of the hub."""
    return urlsplit(url)[:2] == urlsplit(endpoint())[:2]


def login_headers(url: str) -> dict[str, str]:
    """Return an HTTP header with HF_TOKEN or the stored login if the address is on the hub, and {} if it is not."""
    if not is_on_hub(url):
        return {}
    from huggingface_hub import constants, get_token

    token = "" if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def explain_refusal(url: str, status: int, headers: Mapping[str, str]) -> str:
    """Return why the hub refuses a file, and the next step for the user. Return "" if the hub states no reason.

    The text continues a sentence that starts with the address. `headers` are the headers of the response.
    """
    if status not in (401, 403, 404) or not is_on_hub(url):
        return ""
    page = url.partition("/resolve/")[0]
    match headers.get("X-Error-Code"):
        case "GatedRepo":
            return f"requires permission: ask for access on {page}, then {_LOGIN}"
        case "RepoNotFound":
            return f"does not exist, or is private: check the name on {page}; if it is private, {_LOGIN}"
        case "RevisionNotFound":
            return f"does not exist: check the revision on {page}"
        case _ if status != 404:
            return f"requires a login: {_LOGIN}, and check on {page} whether it asks for a licence agreement"
    return ""


def lfs_sha256(url: str, headers: Mapping[str, str]) -> str:
    """Return the sha256 that the hub states for a large file (LFS). Return "" for other files and other hosts.

    `headers` are the headers of a response to a request of `url`. The hub sends these headers before it redirects to
    the host that stores the file.
    """
    tag = headers.get("X-Linked-ETag", "").strip('"')
    return tag if is_on_hub(url) and re.fullmatch(r"[0-9a-f]{64}", tag) else ""


def hub_cache() -> str | None:
    """Return the folder, inside VLMBENCH_CACHE, for files that other libraries download from the hub.

    Return None if VLMBENCH_CACHE is not set. The hub's client then uses its default cache.
    """
    return str(cache_folder() / "hub") if os.environ.get("VLMBENCH_CACHE") else None


def with_hub_files(what: str, load: Callable[[], T]) -> T:
    """Call `load`, which uses a library that downloads files from the hub, such as open_clip. Return its result.

    The files are stored in the folder that `hub_cache` returns. `load` is first called in offline mode, in which the
    hub's client reads only its cache. In online mode, the client would ask the hub about each file in the cache, and
    retry for a minute on a machine without a network. If a file is not in the cache, `load` is called again in online
    mode.

    Raises UserError if the files are not in the cache and the hub cannot be reached. All errors of `load` are also
    raised. `what` is the name of the files for the error message.
    """
    try:
        with _hub_client(offline=True):
            return load()
    except Exception as error:
        if not _lacks_file(error):
            raise
    expect_hub(what)
    with _hub_client(offline=False):
        return load()


@contextlib.contextmanager
def _hub_client(*, offline: bool) -> Iterator[None]:
    """Set the cache folder and the offline mode of the hub's client for the `with` block.

    Both are set globally, because libraries do not pass them on in every call.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE
    constants.HF_HUB_CACHE = hub_cache() or before[0]
    constants.HF_HUB_OFFLINE = offline or before[1]
    try:
        yield
    finally:
        constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = before


def _lacks_file(error: BaseException | None) -> bool:
    """Return whether an error was caused by a file that is not in the hub's cache."""
    while error is not None:
        if isinstance(error, OSError) or type(error).__name__ == "OfflineModeIsEnabled":
            return True
        error = error.__cause__ or error.__context__
    return False


def expect_hub(what: str) -> None:
    """Raise UserError if the hub cannot be reached within seconds, or if HF_HUB_OFFLINE is set.

    Without this check, the hub's client would retry for minutes. `what` names the needed files in the message.
    """
    expect_online(what)
    if down := Hosts().unreachable([endpoint()]):
        raise UserError(
            f"{what} is not in the cache, and it cannot be downloaded ({unreachable_text(down)}): check the network, or"
            " run `hf download` on a machine with a network and copy the cache"
        )


def expect_online(what: str) -> None:
    """Raise UserError if HF_HUB_OFFLINE is set. `what` names the needed files in the message."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{what} is not in the cache, and HF_HUB_OFFLINE is set: unset it, or fill the cache")

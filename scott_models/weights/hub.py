"""The Hugging Face Hub as a place weights come from: a pinned commit's file, or one sentence that says why not.

Downloading, caching, retries, resuming and tokens are huggingface_hub's. It checks no content: `weights` does.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..errors import WeightsError
from .entries import Entry

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def check_token(token: str | None) -> str | None:
    """A token as it is sent, without the line end of a file it came from; None for the one that is stored.

    Raises:
        WeightsError: one that no request could carry; it is not shown, as the error of the client's would.
    """
    token = token.strip() if token else None
    if token and not all("!" <= character <= "~" for character in token):
        raise WeightsError("token: expected letters, digits and signs alone, found others inside; copy it again")
    return token


def fetch(
    tag: str,
    entry: Entry,
    *,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    fresh: bool = False,
) -> Path:
    """The weight file of a published tag: from the Hub's cache without any request, or else downloaded into it.

    Args:
        cache_dir: by default the Hub's own, $HF_HUB_CACHE or $HF_HOME/hub.
        token: by default what `hf auth login` stored, or $HF_TOKEN.
        fresh: download it whatever the cache holds.

    Raises:
        WeightsError: it is not in the cache and cannot be downloaded, or not be stored.
    """
    import huggingface_hub  # where nothing is downloaded its import can be spared

    from .. import __version__

    repository = entry["repository"]
    assert repository is not None
    download = partial(
        huggingface_hub.hf_hub_download,
        repository,
        entry["file"],
        revision=entry["revision"],
        cache_dir=cache_dir,
        token=check_token(token),
        library_name="scott_models",
        library_version=__version__,
    )
    try:
        path = Path(download(force_download=fresh))
        if fresh and path.is_file() and not path.is_symlink():  # a copy, where no links are, which the client leaves
            path.unlink(missing_ok=True)
            path = Path(download())
    except Exception as error:  # the client has errors of its own, its HTTP library's, and the system's
        source = f"{tag}: {entry['file']} of {repository} at {entry['revision']}"
        cache = cache_dir or huggingface_hub.constants.HF_HUB_CACHE
        raise WeightsError(f"{source} {explain(error, tag, cache)}") from error
    if path.is_dir():
        raise WeightsError(f"{path}: expected the weight file of {tag}, found a folder; remove it")
    return path


def find_cached(entry: Entry) -> Path | None:
    """The file of a published tag in the Hub's own cache, not yet verified; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    if entry["repository"] is None:
        return None
    path = try_to_load_from_cache(entry["repository"], entry["file"], revision=entry["revision"])
    return Path(path) if isinstance(path, str) else None


def explain(error: BaseException, tag: str, cache: str | Path) -> str:
    """What went wrong and what to do, the end of a sentence; nothing of the request is quoted, so no token is.

    Args:
        cache: the folder that files were to be stored in.
    """
    from huggingface_hub import errors

    cache = str(cache).partition("/.partial-")[0]  # of a download into a folder, which has a cache in it for a while
    elsewhere = f"run `scott download {tag} --dir FOLDER` where there is a network, then set SCOTT_MODELS_DIR=FOLDER"
    kinds = {
        errors.GatedRepoError: f"is gated: accept its terms on the Hub's page, then {LOG_IN}",
        errors.RepositoryNotFoundError: f"is not to be had: no such repository, or a private one; {LOG_IN}",
        errors.RevisionNotFoundError: "is not to be had: the repository has no such commit; update scott_models",
        errors.OfflineModeIsEnabled: f"is not in {cache}, and HF_HUB_OFFLINE forbids downloads: {elsewhere}",
    }
    causes = list(iterate_causes(error))
    for cause in causes:
        if known := [advice for kind, advice in kinds.items() if isinstance(cause, kind)]:
            return known[0]
        if code := get_status(cause):
            return f"cannot be had: the Hub answered {_describe_answer(code)}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        other = "make room or choose another, by HF_HOME, cache_dir or --dir"
        return f"cannot be stored in {cache} ({error.strerror}): {other}"
    return f"cannot be downloaded ({shorten(causes[-1])}): try again, or {elsewhere}"


def shorten(error: BaseException) -> str:
    """The first line of a foreign error, unless it shows an address or a header, in which there may be a secret."""
    text = str(error).split("\n")[0]
    return type(error).__name__ if not text or "://" in text or "Bearer" in text else text


def get_status(error: BaseException) -> int | None:
    """Of an HTTP error, of the client or of one of the libraries it has used; None of anything else."""
    return getattr(getattr(error, "response", None), "status_code", None)


def iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, then what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _describe_answer(code: int) -> str:
    advice = {
        401: f"401, not logged in: {LOG_IN}",
        403: "403, forbidden: the token may not read this repository",
        404: "404, that commit has no such file: update scott_models",
        429: "429, too many requests: wait a few minutes and try again",
    }
    return advice.get(code, f"{code}, an error of its own: try again later")

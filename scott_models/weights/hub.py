"""Fetch weight files from the Hugging Face Hub at a pinned commit, or report in one sentence why that failed.

huggingface_hub downloads, caches, retries, resumes and handles tokens. This module does not verify content: `files`
does.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..errors import WeightsError
from ..writing import describe_failure
from .entries import Entry

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def check_token(token: str | None) -> str | None:
    """Return a token without surrounding white space, such as the line end of its file; None for no token.

    Raises:
        WeightsError: the token has characters that no request can carry. The message does not show the token, as the
            client's own error would.
    """
    token = token.strip() if token else None
    if token and not all("!" <= character <= "~" for character in token):
        raise WeightsError(
            "token: expected only letters, digits and signs, found other characters; copy the token again"
        )
    return token


def fetch(
    tag: str,
    entry: Entry,
    *,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    fresh: bool = False,
) -> Path:
    """Return the weight file of a published tag: from the Hub's cache without a request, or else downloaded into it.

    Args:
        cache_dir: by default the Hub's own cache, $HF_HUB_CACHE or $HF_HOME/hub.
        token: by default what `hf auth login` stored, or $HF_TOKEN.
        fresh: download the file even if it is in the cache.

    Raises:
        WeightsError: the file is not in the cache and cannot be downloaded or stored, or a folder is in its place.
    """
    import huggingface_hub  # a slow import, needed only for downloads

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
        if fresh and path.is_file() and not path.is_symlink():  # without links the client keeps an old copy
            path.unlink(missing_ok=True)
            path = Path(download())
    except Exception as error:  # errors of the client, of its HTTP library and of the system
        source = f"{tag}: {entry['file']} of {repository} at {entry['revision']}"
        cache = cache_dir or huggingface_hub.constants.HF_HUB_CACHE
        raise WeightsError(f"{source} {explain(error, tag, cache)}") from error
    if path.is_dir():
        raise WeightsError(f"{path}: expected the weight file of {tag}, found a folder; remove it")
    return path


def find_cached(entry: Entry) -> Path | None:
    """Find the file of a published tag in the Hub's default cache, not yet verified; return None if it is absent."""
    from huggingface_hub import try_to_load_from_cache

    if entry["repository"] is None:
        return None
    path = try_to_load_from_cache(entry["repository"], entry["file"], revision=entry["revision"])
    return Path(path) if isinstance(path, str) else None


def explain(error: BaseException, tag: str, cache: str | Path) -> str:
    """Return the end of a sentence that says what went wrong and what to do.

    The request is never quoted, so no token is shown.

    Args:
        cache: the folder in which the file was to be stored.
    """
    from huggingface_hub import errors

    cache = str(cache).partition("/.partial-")[0]  # a temporary cache of `scott download --dir`
    elsewhere = f"run `scott download {tag} --dir FOLDER` where there is a network, then set SCOTT_MODELS_DIR=FOLDER"
    kinds = {
        errors.GatedRepoError: f"is gated: accept its terms on the Hub's page, then {LOG_IN}",
        errors.RepositoryNotFoundError: f"was not found: the repository does not exist or is private; {LOG_IN}",
        errors.RevisionNotFoundError: "was not found: the repository has no such commit; update scott_models",
        errors.OfflineModeIsEnabled: f"is not in {cache}, and HF_HUB_OFFLINE forbids downloads: {elsewhere}",
    }
    causes = list(iterate_causes(error))
    for cause in causes:
        if known := [advice for kind, advice in kinds.items() if isinstance(cause, kind)]:
            return known[0]
        if code := get_status(cause):
            return f"cannot be downloaded: the Hub answered {_describe_answer(code)}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        other = "choose another folder with HF_HOME, cache_dir or --dir"
        return f"cannot be stored in {cache} {describe_failure(error, other)}"
    return f"cannot be downloaded ({shorten(causes[-1])}): try again, or {elsewhere}"


def shorten(error: BaseException) -> str:
    """Return the first line of a library's error, or the error's class if that line may show a secret.

    An address or a header may contain a secret.
    """
    text = str(error).split("\n")[0]
    return type(error).__name__ if not text or "://" in text or "Bearer" in text else text


def get_status(error: BaseException) -> int | None:
    """Return the status code of an HTTP error, whichever HTTP library raised it; None for other errors."""
    return getattr(getattr(error, "response", None), "status_code", None)


def iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then the error it was raised from, and so on."""
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
    return advice.get(code, f"{code}, an unexpected error: try again later")

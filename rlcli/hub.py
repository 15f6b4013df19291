"""From the name of a model or a data set to files on this machine, without loading a weight."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from rlcli.errors import DataError, DataNotFoundError, ModelError, ModelNotFoundError
from rlcli.models.weight_files import check_pointers, check_weight_files

Hub = Literal["hf", "modelscope"]
Kind = Literal["model", "dataset"]

BUILTIN = "builtin:"
ASSETS = Path(__file__).parent / "assets"
NEEDED_FILES = ("*.safetensors", "tokenizer*.json")
TOKENIZER_FILES = ("tokenizer*.json", "*.json", "*.model", "*.txt", "*.jinja", "*.py", "*.tiktoken")
FILES = (*TOKENIZER_FILES, "*.safetensors")
SECOND_COPIES = ("*/*", "consolidated*")
"""Weights again in another layout (original/, onnx/, consolidated.safetensors): never needed."""

ODD_ANSWER = (ValueError, KeyError, TypeError, AttributeError)
"""What the clients raise over JSON they do not expect: the address is no hub."""


class _UnavailableError(Exception):
    """A repository that cannot be had; the message says why, in one line."""


def find_model(path: str, *, hub: Hub = "hf", offline: bool = False) -> Path:
    """The folder of a model: built in, local, or downloaded from the hub (or its cache).

    offline: never ask the hub.

    Raises:
        ModelNotFoundError: there is no such folder, and the hub does not give it.
        ModelError: a folder that is not a whole model.
    """
    folder = find_local(path)
    if folder is not None:
        return _checked(folder)
    return _downloaded(path, fetch(path, FILES, hub=hub, kind="model", offline=offline))


def find_tokenizer(path: str, *, hub: Hub = "hf") -> Path:
    """The folder of a model's tokenizer; weights are neither needed nor downloaded.

    Raises: as `find_model`.
    """
    folder = find_local(path) or fetch(path, TOKENIZER_FILES, hub=hub, kind="model")
    check_pointers(folder)
    _check_tokenizer(folder)
    return folder


def find_model_config(path: str, *, hub: Hub = "hf", offline: bool = False) -> dict[str, Any]:
    """A model's config.json alone: built in, local, of the hub's cache, else from the hub.

    offline: never ask the hub.

    Raises: as `find_model`.
    """
    folder = find_local(path) or _cached_config(path, hub)
    if folder is None:
        folder = fetch(path, ["config.json"], hub=hub, kind="model", offline=offline)
    return read_config(folder)


def fetch(
    repo: str, patterns: Sequence[str], *, hub: Hub, kind: Kind, offline: bool = False
) -> Path:
    """A folder with the files of OWNER/NAME that match, downloaded or from the hub's cache.

    offline: only from the cache.

    Raises:
        ModelNotFoundError, DataNotFoundError (by `kind`): the hub does not give them.
        ModelError, DataError: the hub's client is not installed.
    """
    ignored = SECOND_COPIES if kind == "model" else ()
    download = _from_hf if hub == "hf" else _from_modelscope
    try:
        return download(repo, [*patterns], ignored=[*ignored], kind=kind, offline=offline)
    except _UnavailableError as error:
        if kind == "dataset":
            raise DataNotFoundError(
                f"{error}\nOr download its files where there is a network, and give their path."
            ) from error
        raise ModelNotFoundError(
            f"{error}\nOr give --model PATH of a local copy, or try --preset quickstart (no "
            "network needed)."
        ) from error


def list_files(repo: str, *, hub: Hub) -> list[str]:
    """Names of all files of a data set on the hub, sorted. Raises: DataNotFoundError."""
    list_all = _list_hf if hub == "hf" else _list_modelscope
    try:
        return sorted(list_all(repo))
    except _UnavailableError as error:
        raise DataNotFoundError(str(error)) from error


def find_local(path: str) -> Path | None:
    """A folder on this machine; None: `path` is the name of a model on a hub."""
    if path.startswith(BUILTIN):
        return _builtin(path.removeprefix(BUILTIN))
    folder = Path(os.path.expanduser(path))
    if folder.is_dir():
        return folder
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ModelNotFoundError(
            f"model {path} is not a directory. Give --model a directory with config.json, a hub "
            "name such as Qwen/Qwen2.5-0.5B, or try --preset quickstart."
        )
    return None


def _cached_config(name: str, hub: Hub) -> Path | None:
    try:
        folder = fetch(name, ["config.json"], hub=hub, kind="model", offline=True)
    except ModelNotFoundError:
        return None
    return folder if (folder / "config.json").is_file() else None


def _builtin(name: str) -> Path:
    folder = ASSETS / name
    known = sorted(p.parent.name for p in ASSETS.glob("*/config.json"))
    if name not in known:
        raise ModelError(f"no built-in model {name}; there is: {', '.join(known)}")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json in `folder` says. Raises: ModelError."""
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(
            f"model {folder} has no config.json: it is not a Hugging Face model directory.\n"
            "Give --model the folder that holds config.json, the weights and the tokenizer."
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} holds no JSON object: it is not the config of a model.")
    return config


def has_tokenizer(folder: Path) -> bool:
    """Whether the files of a tokenizer are in `folder`."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def _check_tokenizer(folder: Path) -> None:
    if not has_tokenizer(folder):
        raise ModelError(
            f"model {folder} has no tokenizer (tokenizer.json, tokenizer_config.json).\n"
            "Copy the tokenizer files of the model it comes from into it."
        )


def _checked(folder: Path) -> Path:
    _check_settings(folder)
    check_weight_files(folder)
    return folder


def _check_settings(folder: Path) -> None:
    """Raises: ModelError if config or tokenizer is missing, or a file is a git-lfs pointer."""
    check_pointers(folder)
    read_config(folder)
    _check_tokenizer(folder)


def _downloaded(name: str, folder: Path) -> Path:
    if not any(folder.glob("*.json")):
        raise ModelNotFoundError(f"model {name} is empty: no config.json is in the repository.")
    _check_settings(folder)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model {name} has no *.safetensors weights; pickled ones (*.bin) can run code and "
            "are not downloaded.\nIf you trust it: AutoModelForCausalLM.from_pretrained(NAME)"
            ".save_pretrained(DIR), copy its tokenizer to DIR, then --model DIR."
        )
    check_weight_files(folder)
    return folder


def _from_hf(
    repo: str, patterns: list[str], *, ignored: list[str], kind: Kind, offline: bool
) -> Path:
    _check_endpoint()

    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repo,
                repo_type=kind,
                allow_patterns=patterns,
                ignore_patterns=ignored,
                local_files_only=offline,
            )
        )
    except _hf_errors() as error:
        if offline:
            raise _UnavailableError(f"{kind} {repo} is not in the cache.") from error
        raise _UnavailableError(_hf_reason(error, repo, kind=kind)) from error


def _list_hf(repo: str) -> list[str]:
    _check_endpoint()

    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(repo, repo_type="dataset")
    except _hf_errors() as error:
        raise _UnavailableError(_hf_reason(error, repo, kind="dataset")) from error


def _hf_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises: its own errors, its transport's, and `ODD_ANSWER`."""
    # The transport is httpx or httpx2, by version; only this name is the same in both
    from huggingface_hub.errors import HTTPError

    return (HTTPError, OSError, *ODD_ANSWER)


def _check_endpoint() -> None:
    """Before huggingface_hub is imported: some wrong addresses break its import."""
    endpoint = os.environ.get("HF_ENDPOINT")
    if not endpoint:
        # It takes an empty variable for an address; everywhere else in rlcli empty is unset
        os.environ.pop("HF_ENDPOINT", None)
        return
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise _UnavailableError(
            f"HF_ENDPOINT={endpoint} is no address; expected one such as https://hf-mirror.com."
        )


def _hf_reason(error: Exception, repo: str, *, kind: Kind) -> str:
    """Why the Hugging Face hub or a mirror of it gave nothing, in one line, with the cure."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError

    hub = f"HF_ENDPOINT={constants.ENDPOINT}" if os.environ.get("HF_ENDPOINT") else "the hub"
    cause = error.__cause__ or error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(error, HFValidationError):
        return f"{kind} {repo} is no name on a hub: expected OWNER/NAME."
    if isinstance(error, GatedRepoError) or status == 403:
        return (
            f"{hub} does not give you {kind} {repo} ({status}): it is gated or private. Accept its "
            "terms on its page and set HF_TOKEN."
        )
    if status in (401, 404):
        return (
            f"{hub} has no {kind} {repo} for you ({status}). Check the name; for a private one "
            "set HF_TOKEN."
        )
    if constants.HF_HUB_OFFLINE:
        return f"{kind} {repo} is not whole in the cache, and HF_HUB_OFFLINE forbids a download."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{kind} {repo} cannot be written to {constants.HF_HUB_CACHE}: {error.strerror}."
    answer = f"it answers {status}" if status else type(cause).__name__
    return (
        f"{kind} {repo} is not on this machine and {hub} cannot be reached ({answer}). Check the "
        "network, set HF_ENDPOINT to a mirror, or use --hub modelscope."
    )


def _modelscope(kind: Kind) -> Any:
    """The SDK of ModelScope. Raises: ModelError or DataError when it is not installed."""
    try:
        import modelscope_hub
    except ImportError as error:
        failure = ModelError if kind == "model" else DataError
        raise failure(
            "hub modelscope needs the SDK of ModelScope, which is not installed.\n"
            "Type: pip install -e '.[modelscope]'"
        ) from error
    return modelscope_hub


def _from_modelscope(
    repo: str, patterns: list[str], *, ignored: list[str], kind: Kind, offline: bool
) -> Path:
    sdk = _modelscope(kind)
    wanted = {"allow_patterns": patterns, "ignore_patterns": ignored}
    try:
        api = sdk.HubApi()
        if offline or not _somebody_listens(sdk.HubConfig().endpoint):
            return _cached_modelscope(sdk, repo, patterns, kind=kind)
        endpoint = api.resolve_endpoint_for_read(repo, repo_type=kind)
        try:
            return Path(sdk.HubApi(endpoint=endpoint).download_repo(repo, kind, **wanted))
        except (sdk.NetworkError, sdk.ServerError):
            return _cached_modelscope(sdk, repo, patterns, kind=kind)
    except (sdk.HubError, OSError, *ODD_ANSWER) as error:
        if offline:
            raise _UnavailableError(f"{kind} {repo} is not in the cache.") from error
        raise _UnavailableError(_modelscope_reason(sdk, error, repo, kind=kind)) from error


def _cached_modelscope(sdk: Any, repo: str, patterns: list[str], *, kind: Kind) -> Path:
    """The SDK takes any folder that is not empty for the whole repository; this does not."""
    folder = Path(sdk.HubApi().download_repo(repo, kind, local_files_only=True))
    missing = [p for p in patterns if p in NEEDED_FILES and not any(folder.glob(p))]
    if missing:
        raise sdk.CacheNotFound(f"{missing[0]} is not in the cache")
    return folder


def _somebody_listens(endpoint: str) -> bool:
    """False where nothing can be reached: the SDK would find out after 16 s of retries."""
    if getproxies().keys() - {"no"}:
        return True
    parts = urlsplit(endpoint)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=10).close()
    except OSError:
        return False
    return True


def _list_modelscope(repo: str) -> list[str]:
    sdk = _modelscope("dataset")
    try:
        files = sdk.HubApi().list_repo_files(repo, "dataset")
    except (sdk.HubError, OSError, *ODD_ANSWER) as error:
        raise _UnavailableError(_modelscope_reason(sdk, error, repo, kind="dataset")) from error
    return [file.path for file in files if not file.is_dir]


def _modelscope_reason(sdk: Any, error: Exception, repo: str, *, kind: Kind) -> str:
    named = os.environ.get("MODELSCOPE_ENDPOINT")
    hub = f"MODELSCOPE_ENDPOINT={named}" if named else "ModelScope"
    status = getattr(error, "status_code", None)
    if isinstance(error, sdk.NotExistError):
        return f"{hub} has no {kind} {repo}. Check the name: it may differ from Hugging Face's."
    if isinstance(error, sdk.AuthenticationError | sdk.PermissionDeniedError):
        return (
            f"{hub} does not give you {kind} {repo} ({status}): set MODELSCOPE_API_TOKEN of an "
            "account that may read it."
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"{kind} {repo} cannot be written to ModelScope's cache: {error.strerror}."
    if isinstance(error, sdk.FileDownloadError):
        failed: dict[str, BaseException] = getattr(error, "failed_files", {})
        name, cause = next(iter(failed.items()), (repo, error))
        first = (str(cause).splitlines() or [type(cause).__name__])[0]
        return f"{kind} {repo} was not downloaded whole from {hub}: {name}: {first}"
    answer = f" (it answers {status})" if status else ""
    return (
        f"{kind} {repo} is not on this machine and {hub} cannot be reached{answer}. Check the "
        "network."
    )

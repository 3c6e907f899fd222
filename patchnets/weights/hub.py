"""Folders of weights of the Hugging Face hub: from its local cache without any library, else with huggingface_hub."""

import os
import pathlib
import re

from patchnets.errors import RunError, UserError, first_line

FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
PREFIXES = {"hf-hub:": "", "timm:": "timm/"}
ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


def is_id(source: str) -> bool:
    """Return whether a source is meant as an id of the hub."""
    return source.startswith(tuple(PREFIXES))


def parse_id(source: str) -> tuple[str, str]:
    """Return (ORG/NAME, revision) of hf-hub:ORG/NAME[@REVISION] or timm:NAME[@REVISION].

    Raises:
      UserError: it is neither.
    """
    prefix = next(start for start in PREFIXES if source.startswith(start))
    match = ID.fullmatch(PREFIXES[prefix] + source.removeprefix(prefix))
    parts = re.split("[/@]", match[0]) if match else [""]
    if match is None or not all(part.strip(".") for part in parts):
        raise UserError(f"{source!r} is no id of the hub; expected hf-hub:ORG/NAME[@REVISION] or timm:NAME[@REVISION]")
    return match["repo"], match["revision"] or "main"


def cache_folder() -> pathlib.Path:
    """Return the folder of the local cache: $HF_HUB_CACHE, else $HF_HOME/hub, else that in the home directory."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return pathlib.Path(cache).expanduser()
    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return pathlib.Path(os.environ.get("HF_HOME") or default).expanduser() / "hub"


def cached(repo: str, revision: str) -> pathlib.Path | None:
    """Return the folder of a revision (a branch, a tag or a commit) in the cache; None if its files are not there."""
    folder = cache_folder() / f"models--{repo.replace('/', '--')}"
    commit = revision
    if not COMMIT.fullmatch(revision):
        try:
            commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
    snapshot = folder / "snapshots" / commit
    complete = COMMIT.fullmatch(commit) and all((snapshot / name).is_file() for name in FILES[:2])
    return snapshot if complete else None


def fetch(source: str) -> pathlib.Path:
    """Return a folder with the files of an id of the hub: from the cache if they are there, else downloaded.

    Raises:
      UserError: it is no id, or its files are neither in the cache nor can be downloaded: what to put where.
      RunError: the download failed.
    """
    repo, revision = parse_id(source)
    if (folder := cached(repo, revision)) is not None:
        return folder
    missing = f"{source} is not in the cache {cache_folder()}"
    instead = f"download config.json and model.safetensors of https://huggingface.co/{repo} into a folder and name that"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(f"{missing}, and HF_HUB_OFFLINE is set; unset it, or {instead}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"{missing}; pip install 'patchnets[hub]' to download it, or {instead}") from error
    try:
        return pathlib.Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # of the network, of the hub, and of the library
        raise RunError(f"{missing}, and cannot be downloaded ({first_line(error, 150)}); {instead}") from error

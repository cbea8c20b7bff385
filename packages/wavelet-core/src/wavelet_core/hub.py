"""The Hugging Face hub: what its readers look for beside a checkpoint's own files, and the upload."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from wavelet_core.tensor_files import CheckpointError
from wavelet_core.tokenizers import END_OF_TEXT, FILE_NAME, Tokenizer, TokenizerError

CARD_FILE = "README.md"


def require_hub() -> Any:
    """The package huggingface_hub. Raises CheckpointError where it is not installed."""
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError("the Hugging Face hub needs an extra package: pip install 'wavelet-core[hub]'") from None
    return huggingface_hub


def add_hub_files(directory: Path, tokenizer: Tokenizer | None, card: str) -> None:
    """Put a model card into a checkpoint directory, and the tokenizer as `tokenizers` and transformers read it.

    Tokenizers without such a form are left as they are, in their folder.
    """
    (directory / CARD_FILE).write_text(card, "utf-8")
    if tokenizer is None:
        return
    end = tokenizer.end_of_text
    _write_json(directory / "generation_config.json", {"eos_token_id": end, "pad_token_id": end})
    with suppress(TokenizerError):
        _write_json(directory / FILE_NAME, tokenizer.tokenizers_file())
        special = {} if end is None else {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
        # Without `split_special_tokens` the name of one in a text would be the token itself.
        options = {"split_special_tokens": True, "padding_side": "left", "clean_up_tokenization_spaces": False}
        _write_json(directory / "tokenizer_config.json", {**special, **options})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def upload(directory: Path, name: str, private: bool = False, revision: str | None = None) -> str:
    """Upload a directory as the repository `owner/name`, which is made where there is none; the commit's address.

    revision: a branch, which is made where there is none; `main` by default.
    Raises CheckpointError that says what the hub refused.
    """
    hub = require_hub()
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(name, branch=revision, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=name, folder_path=directory, revision=revision, commit_message="Upload checkpoint"
        )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{name}: the hub did not take it: {reason}; `hf auth login` gives it your token"
        ) from error
    return str(getattr(commit, "commit_url", commit))

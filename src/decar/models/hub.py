"""Bundles on the Hugging Face hub: `hf://user/name[@revision]`. Weights and JSON go either way, never code."""

import json
import re
from pathlib import Path

from decar.errors import BundleError, printable

PREFIX = "hf://"  # no local path is taken for a repository, nor the other way round
WEIGHTS, FACTS, CARD = "encoder.safetensors", "decar.json", "README.md"

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def parse(address: str) -> tuple[str, str | None]:
    """`hf://user/name[@revision]`, with or without the prefix, as repository and revision.

    Raises:
        BundleError: It is no such address.
    """
    repo, _, revision = address.removeprefix(PREFIX).partition("@")
    if not _NAME.fullmatch(repo) or address.endswith("@"):
        raise BundleError(f"{address}: not an address on the hub; give {PREFIX}USER/NAME or {PREFIX}USER/NAME@REVISION")
    return repo, revision or None


def fetch(address: str) -> Path:
    """Download the bundle of an address, or find it in the hub's cache; only the safetensors file is fetched.

    Raises:
        BundleError: There is no such repository, revision or bundle, or the hub cannot be reached.
    """
    import huggingface_hub

    repo, revision = parse(address)
    try:
        return Path(huggingface_hub.hf_hub_download(repo, WEIGHTS, revision=revision))
    except (OSError, ValueError, huggingface_hub.errors.EntryNotFoundError) as error:
        raise BundleError(f"{address}: {_reason(error)}") from error


def push(bundle: str | Path, address: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload a bundle's file with a model card and its facts; the repository is made where there is none.

    Returns:
        The address to load it by.

    Raises:
        BundleError: It is no bundle, no token is set, or the hub refuses or cannot be reached.
    """
    import huggingface_hub

    from decar.models.bundle import bundle_file, load_encoder, read_facts

    repo, named = parse(address)
    revision = revision or named
    encoder, facts = load_encoder(bundle), read_facts(bundle)
    about = {"encoder": encoder.settings(), "encoder_hash": encoder.hash(), "facts": facts}
    where = PREFIX + repo + (f"@{revision}" if revision else "")
    card = model_card(where, encoder.description, encoder.sample_rate, encoder.dim, encoder.hash(), facts)
    contents = {
        WEIGHTS: bundle_file(bundle).read_bytes(),
        FACTS: json.dumps(about, indent=2).encode(),
        CARD: card.encode(),
    }
    operations = [huggingface_hub.CommitOperationAdd(name, content) for name, content in contents.items()]
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision:
            api.create_branch(repo_id=repo, branch=revision, exist_ok=True)
        api.create_commit(repo, operations, commit_message="A decar encoder", revision=revision)
    except (OSError, ValueError) as error:
        raise BundleError(f"{where}: not pushed, {_reason(error)}") from error
    return where


def model_card(where: str, network: str, rate: int, dim: int, encoder_hash: str, facts: dict[str, object]) -> str:
    """The README.md of the repository, made of what the bundle says; none of it can be Markdown, HTML or YAML."""
    told = "\n".join(f"| {as_text(key)} | {as_text(value)} |" for key, value in facts.items())
    return (
        "---\nlibrary_name: decar\ntags: [audio, audio-embedding, self-supervised]\n---\n\n"
        f"# {where.removeprefix(PREFIX)}\n\nAn audio encoder trained without labels by decar (arXiv 2110.08895).\n\n"
        f'```python\nimport decar\n\nencoder = decar.load_encoder("{where}")\n'
        f"embedding = encoder.embed(waveform)  # (B, T) at {rate} Hz to (B, {dim})\n```\n\n"
        f"| | |\n|---|---|\n| network | {as_text(network)} |\n| hash | {encoder_hash} |\n{told}\n"
    )


def as_text(value: object) -> str:
    """A value as text of a Markdown cell: each sign that Markdown or HTML could read is written by its number.

    >>> as_text("<b>"), as_text(0.5), as_text({"k": 3})
    ('&#60;b&#62;', '0.5', '&#123;&#34;k&#34;&#58; 3&#125;')
    """
    if value is None or isinstance(value, int | float):
        return json.dumps(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"[^\w \-]|_", lambda sign: f"&#{ord(sign[0])};", printable(text))


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "the repository is gated; ask for access on its page, then run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository, or a private one; check the name, or run `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision; leave @REVISION out for the latest"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return "the hub cannot be reached and the cache has no copy; go online, unset HF_HUB_OFFLINE, or give a file"
    if isinstance(error, errors.EntryNotFoundError):
        return f"the repository has no {WEIGHTS}; was it pushed with `decar push`?"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return "no token; run `hf auth login` or set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub refuses (status {status}); run `hf auth login` with a token that may write there"
    return f"the hub did not answer as it should ({' '.join(str(error).split())[:150]}); try again later"

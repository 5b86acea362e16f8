"""Where the configuration lies, values in it that only the machine knows, and the encoder and clips that it names."""

from __future__ import annotations

import hashlib
import logging
import netrc
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

import decar
from decar.errors import ConfigError, require
from decar.files import cache_home

if TYPE_CHECKING:  # torch takes seconds to import, --help and --cfg should not
    from decar.audio import Manifest
    from decar.models import Encoder

log = logging.getLogger(__name__)

OUR_NETWORK = "decar.models.build_network"  # `_target_` of the `encoder` group, unless it is a user's network
WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # the second is where wandb 0.31 logs in
WHOLE_MIN_FRAMES = 98  # 1 s: that a shortest clip is padded to where training has no crops (loader.crop_frames=null)
Groups = tuple[dict[str, Any], dict[str, Any]]
_PACKAGE = Path(decar.__file__).parent
_PLAIN = re.compile(r"(\.{0,2}/)?[A-Za-z_][\w./-]*", re.ASCII)  # needs no quotes, neither in Hydra nor in a shell
_WORDS = ("null", "true", "false", "nan", "inf")  # to Hydra no text


def conf_dir() -> Path:
    """The configuration: beside `src` in a checkout, inside the package when installed from a wheel."""
    installed, checkout = _PACKAGE / "conf", _PACKAGE.parents[1] / "conf"
    return installed if installed.is_dir() else checkout


def bundled(name: str = "") -> str:
    """Path of the bundled sounds, or of a file among them."""
    return str(_PACKAGE / "data" / "mini" / name)


def wandb_offline() -> bool:
    """Whether wandb has no login on this machine."""
    if os.environ.get("WANDB_API_KEY"):
        return False
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "")).netloc
    try:
        return not any(netrc.netrc().authenticators(host) for host in (*WANDB_HOSTS, server) if host)
    except (OSError, netrc.NetrcParseError):
        return True


def index_of(root: str | None) -> str | None:
    """The table of all clips of a folder of tasks, if there is one."""
    table = Path(root).expanduser() / "index.csv" if root else None
    return str(table) if table and table.is_file() else None


def table_of(root: str | None, name: str | None) -> str | None:
    """A task's table in a folder of tasks; None while either is not given."""
    return str(Path(root).expanduser() / "tasks" / f"{name}.csv") if root and name else None


def job_name(overrides: Iterable[str], *aside: str) -> str:
    """The name of a sweep's job, and of its folder, from its options: the same whatever its place in the sweep.

    Of a path only its end; no slashes and odd characters. Where that, or a bound on the length, has cost anything, a
    hash of the options keeps jobs apart. The options `aside`, and what is below them, are left out.

    >>> job_name(["k=512", "clusterer=pic", "resume=auto"])
    'clusterer=pic,k=512'
    >>> job_name(["k=512", "data.root=/my sounds/birds"])
    'data.root=birds,k=512-b06a23f4'
    """
    aside = ("resume", "cache_dir", "progress", "beside", *aside)
    options = sorted(word for word in overrides if re.split(r"[.=]", word, maxsplit=1)[0] not in aside)
    short = [re.sub(r"^([^=/]*=).*/(?=[^/]+/?$)", r"\1", word) for word in options]
    name = re.sub(r"[^\w=,.+-]", "_", ",".join(short))[:160] or "job"
    return name if name == ",".join(options) else f"{name}-{hashlib.sha256(repr(options).encode()).hexdigest()[:8]}"


def build_encoder(cfg: DictConfig) -> Encoder:
    """The untrained encoder of a configuration: its `encoder` group is a network, with three keys of every encoder."""
    from decar.models import Encoder
    from decar.models.networks import seeded

    options: Any = OmegaConf.to_container(cfg.encoder, resolve=True)
    seed = options.pop("seed")
    sizes = {key: options.pop(key) for key in ("min_frames", "max_frames")}
    sizes["min_frames"] = sizes["min_frames"] or WHOLE_MIN_FRAMES
    with seeded(seed):
        network = instantiate(options, _convert_="all")
    del options["_target_"]
    return Encoder(network, instantiate(cfg.frontend), **sizes, arguments=options)


def listed(cfg: DictConfig) -> Manifest:
    """The clips of which there is a store: all, or of a stream the sample."""
    from hydra.utils import instantiate

    from decar.pretrain.stream import sample_of

    made: Manifest = instantiate(cfg.data.manifest)
    return sample_of(made, cfg.labels.sample, cfg.seed) if cfg.data.get("stream") else made


def content_of(cfg: DictConfig, content: str) -> str:
    """What tells the sounds of a run from others: `Identity.content` of those that `listed` gives.

    Of a stream the other clips are not read, but which they are counts: others would come in its batches. Clips of a
    source of the user's own are not listed for that.
    """
    from hydra.utils import instantiate

    from decar.audio import Manifest

    made = instantiate(cfg.data.manifest) if cfg.data.get("stream") else None
    if not isinstance(made, Manifest):
        return content
    return hashlib.sha256(f"{content} {made.names_hash()}".encode()).hexdigest()


def length_of_stream(cfg: DictConfig) -> int:
    """Clips of a pass; of a stream of unknown length, those of the sample.

    Raises:
        ConfigError: The length is not known, and an option is to be picked from it.
    """
    from hydra.utils import instantiate

    made = instantiate(cfg.data.manifest)
    if isinstance(made, Sized):
        return len(made)
    picked = ("k", "sampler.every_n_steps", "trainer.max_epochs")
    needed = [key for key in picked if OmegaConf.select(cfg, key) is None]
    require(not needed, f"{' and '.join(needed)} cannot be picked for a stream of unknown length: pass a number")
    return int(cfg.labels.sample)


def take_over(cfg: DictConfig, typed: Iterable[str] = ()) -> None:
    """With `init`, give a configuration the network and the log-mel settings of that encoder.

    Args:
        cfg: The configuration.
        typed: The options of the command line.

    Raises:
        ConfigError: The encoder is not decar's, or an option of the command line says something else.
        BundleError: There is no such bundle, or it is damaged.
    """
    from decar.models import load_encoder
    from decar.models.other import is_other

    if not cfg.init:
        return
    require(not is_other(cfg.init), f"init={cfg.init}: only encoders of decar's own kind can be trained on")
    encoder = load_encoder(cfg.init, network=own_network(cfg))
    settings, frontend = groups_of(encoder)
    wrong = [
        word
        for word in typed
        if (
            re.match(r"\+*(encoder|frontend)\.", word)
            and not _agrees(word, {"encoder": settings, "frontend": frontend})
        )
        or (re.match(r"\+*(encoder|frontend)=", word) and settings["_target_"] == OUR_NETWORK)
    ]
    require(not wrong, f"{' '.join(wrong)}: init={cfg.init} brings its own network and log-mel settings; leave it out")
    _adopt(cfg, settings, frontend)
    cfg.init_hash = encoder.hash()
    log.info("init=%s: %s", cfg.init, encoder.description)


def stand_beside(cfg: DictConfig) -> None:
    """With `beside`, give `bundle=random` the network and log-mel settings of the encoders that it is compared with.

    Raises:
        ConfigError: Their networks or settings differ; names the first difference.
        BundleError: There is no such bundle, or it is damaged.
    """
    from decar.models import load_encoder

    names = [cfg.beside] if isinstance(cfg.beside, str) else list(cfg.beside or ())
    found = [groups_of(load_encoder(name, network=own_network(cfg))) for name in names]
    for name, groups in zip(names[1:], found[1:], strict=True):
        first, other = _flat(found[0]), _flat(groups)
        for key in sorted(first.keys() | other.keys()):
            require(
                first.get(key) == other.get(key),
                f"bundle=random: {names[0]} has {key}={first.get(key)}, {name} has {other.get(key)}; pass "
                "beside=BUNDLE, the one whose network random weights should have",
            )
    if found:
        _adopt(cfg, *found[0])


def _flat(groups: Groups) -> dict[str, Any]:
    named = zip(("encoder", "frontend"), groups, strict=True)
    return {f"{group}.{key}": value for group, settings in named for key, value in settings.items()}


def groups_of(encoder: Encoder) -> Groups:
    """The groups `encoder`, without its seed, and `frontend` that describe an encoder."""
    settings: dict[str, Any] = encoder.settings()
    frontend = settings.pop("frontend") | {"l2": encoder.frontend.l2}
    if "network" in settings:  # the user's own, with the arguments of its YAML
        settings = {**settings.pop("arguments"), **settings}
        settings["_target_"] = settings.pop("network")
    else:
        settings["_target_"] = OUR_NETWORK
    return settings, frontend


def _adopt(cfg: DictConfig, settings: Mapping[str, Any], frontend: Mapping[str, Any]) -> None:
    """Replace the groups `encoder`, but for its seed, and `frontend`."""
    with open_dict(cfg):
        cfg.encoder = {"seed": cfg.encoder.seed, **settings}
        cfg.frontend.update(frontend)


def _agrees(word: str, settings: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether an option of the command line says what the settings say."""
    key, _, text = word.lstrip("+").partition("=")
    group, _, name = key.partition(".")
    if name == "seed":
        return True
    found: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    return bool(settings[group].get(name) == found["value"])


def own_network(cfg: DictConfig) -> Callable[..., Any] | None:
    """The class of the user's own network, where the `encoder` group names one; None for decar's."""
    return None if cfg.encoder._target_ == OUR_NETWORK else named_class(cfg.encoder._target_)


def named_class(name: str, said: str = "") -> Callable[..., Any]:
    """Import a class by its full name; an error names it behind `said`.

    Raises:
        ConfigError: There is none, or its module cannot be imported.
    """
    try:
        found: Callable[..., Any] = get_object(name)
    except Exception as error:  # importing may raise anything
        raise ConfigError(f"{said}{name}: cannot be imported ({' '.join(str(error).split())})") from error
    return found


def walk(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A configuration as plain containers, and all that is in it, each with its dotted path."""
    yield path, tree
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from walk(value, f"{path}.{key}".lstrip("."))


def register_resolvers() -> None:
    """Make these values known to the configuration, as `${bundled:…}` and so on."""
    resolvers: dict[str, Callable[..., Any]] = {
        "bundled": bundled,
        "cache_home": cache_home,
        "wandb_offline": wandb_offline,
        "job_type": lambda name: "pretrain" if name == "train" else name,
        "index_of": index_of,
        "table_of": table_of,
        "basename": lambda path: Path(path).name,  # also of a folder with a slash behind
        "job_name": job_name,
        "is_terminal": lambda: sys.stderr.isatty(),  # of now: sys.stderr may be another one by then
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


register_resolvers()  # at import: a sweep's job may run in another process, which on its way to the job comes past here


def hydra_value(value: str) -> str:
    """Text in Hydra's grammar: as it is, or in single quotes where Hydra would read something else."""
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + m[2].replace("'", r"\'"), value)
    return "'" + escaped.replace("${", r"\${") + "'"

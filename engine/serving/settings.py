"""Settings of the server: typed here, composed by Hydra from conf/serve.yaml and the command line."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.consent.settings import ConsentSettings
from engine.errors import SettingsError

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "json", "console")


@dataclass
class TlsSettings:
    """PEM files of the server's certificate chain and private key; both or neither."""

    cert: str = ""
    key: str = ""


@dataclass
class LogSettings:
    """What is logged to standard error, and how."""

    level: str = "info"
    format: str = "auto"


@dataclass
class LiveSettings:
    """Today's events: where they are made durable, and what of them lists look at. conf/serve.yaml says what each is for."""

    enabled: bool = True
    folder: str = "${out}/live"
    log: str = "${out}/events"
    ship_seconds: float = 600.0
    hours: float = 48.0
    people: int = 200_000
    events_each: int = 200
    most_bytes: int = 2 * 2**30
    oldest_days: float = 30.0
    ahead_seconds: float = 300.0
    redis: str = ""
    served: str = "${out}/served"
    served_days: int = 90
    trust: float = 0.2
    half_life_hours: float = 6.0


@dataclass
class ServeSettings:
    """Everything that the server can be told. conf/serve.yaml has the values and says what each is for."""

    out: str = MISSING
    snapshots: str = MISSING
    ledger: str = MISSING  # SQLAlchemy URL
    keys: str = MISSING
    host: str = "127.0.0.1"
    port: int = 50051  # 0: any free one, printed at start
    default_surface: str = "home"
    watch_seconds: float = 1.0
    retry_seconds: float = 30.0
    consent_bound_seconds: float = 1.0
    consent_poll_seconds: float = 0.1
    ledger_patience_seconds: float = 3.0
    verify: bool = True
    cache: str = ""  # folder; "": hash at every start
    cache_gib: float = 64.0
    admin: bool | None = None  # None: on loopback only
    metrics_port: int = 0  # 0: none
    threads: int = 8
    concurrent_rpcs: int = 128
    max_message_bytes: int = 4 * 2**20
    max_metadata_bytes: int = 16 * 2**10
    drain_seconds: float = 10.0
    reflection: bool | None = None
    insecure: bool = False
    tls: TlsSettings = field(default_factory=TlsSettings)
    log: LogSettings = field(default_factory=LogSettings)
    live: LiveSettings = field(default_factory=LiveSettings)
    consent: ConsentSettings = field(default_factory=ConsentSettings)
    policy: dict[str, Any] = MISSING  # by surface

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def administered(self) -> bool:
        """Whether callers may change what is served."""
        return self.loopback if self.admin is None else self.admin

    def check(self) -> None:
        """Refuse what contradicts itself or would expose people's lists.

        Raises:
            SettingsError: names the setting and the remedy.
        """
        if bool(self.tls.cert) != bool(self.tls.key):
            raise SettingsError("Only one of tls.cert and tls.key is set.", "Set both, or neither.")
        for name, path in (("tls.cert", self.tls.cert), ("tls.key", self.tls.key)):
            if path and not Path(path).is_file():
                raise SettingsError(f"{name}: there is no file {path}.", "Name a PEM file.")
        if not self.loopback and not self.tls.cert and not self.insecure:
            raise SettingsError(
                f"host={self.host} can be reached from other machines, and there is no TLS.",
                "Set tls.cert and tls.key; or insecure=true where a mesh or proxy encrypts.",
            )
        for name, value, least, most in (
            ("port", self.port, 0, 65535),
            ("metrics_port", self.metrics_port, 0, 65535),
            ("threads", self.threads, 1, 1024),
            ("concurrent_rpcs", self.concurrent_rpcs, 1, 100_000),
            ("max_message_bytes", self.max_message_bytes, 1024, 64 * 2**20),
            ("max_metadata_bytes", self.max_metadata_bytes, 1024, 2**20),
            ("watch_seconds", self.watch_seconds, 0.01, 60),
            ("retry_seconds", self.retry_seconds, 0.01, 3600),
            ("consent_bound_seconds", self.consent_bound_seconds, 0.05, 60),
            ("consent_poll_seconds", self.consent_poll_seconds, 0.005, self.consent_bound_seconds / 2),
            ("ledger_patience_seconds", self.ledger_patience_seconds, 1, 60),
            ("drain_seconds", self.drain_seconds, 0, 3600),
            ("cache_gib", self.cache_gib, 0.001, 1_000_000),
            ("live.ship_seconds", self.live.ship_seconds, 0.1, 86_400),
            ("live.hours", self.live.hours, 0.1, 24 * 14),
            ("live.people", self.live.people, 1, 100_000_000),
            ("live.events_each", self.live.events_each, 1, 1000),
            ("live.most_bytes", self.live.most_bytes, 2**20, 2**44),
            ("live.oldest_days", self.live.oldest_days, 0.01, 36_500),
            ("live.ahead_seconds", self.live.ahead_seconds, 0, 86_400),
            ("live.served_days", self.live.served_days, 0, 36_500),
            ("live.trust", self.live.trust, 0, 100),
            ("live.half_life_hours", self.live.half_life_hours, 0.01, 24 * 14),
        ):
            if not least <= value <= most:
                raise SettingsError(f"{name}={value} lies outside {least}..{most}.", "Choose a value inside.")
        for name, word, known in (("log.level", self.log.level, LEVELS), ("log.format", self.log.format, FORMATS)):
            if word not in known:
                raise SettingsError(f"{name}={word} is unknown.{_near(word, known)}", f"Known: {', '.join(known)}.")
        if self.default_surface not in self.policy:
            raise SettingsError(
                f"default_surface={self.default_surface} has no policy.{_near(self.default_surface, self.policy)}",
                f"Known surfaces: {', '.join(self.policy)}.",
            )


def load(overrides: Sequence[str]) -> ServeSettings:
    """The settings that a command line asks for.

    Args:
        overrides: in Hydra's words, such as `out=DIR`, `port=50052`, `policy=default`.

    Raises:
        SettingsError: a key is unknown (with the nearest one that is known), mistyped, missing, or contradicts another.
    """
    composed = compose_config(overrides)
    if OmegaConf.is_missing(composed, "out"):
        raise SettingsError("The setting 'out' is missing.", "Give the folder of the deployment: out=DIR")
    try:
        settings = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise SettingsError(" ".join(str(error).split()), "See conf/serve.yaml.") from error
    if not isinstance(settings, ServeSettings):
        raise SettingsError("The server's settings lost their type.", "Keep serve_settings first in conf/serve.yaml.")
    settings.check()
    return settings


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The same as a tree that can be printed as YAML.

    Raises:
        SettingsError: a key is unknown or mistyped.
    """
    ConfigStore.instance().store(name="serve_settings", node=ServeSettings)
    try:
        with initialize_config_module("conf", version_base="1.3"):
            composed = compose("serve", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(*_explained(error)) from error
    for key in _keys(composed):  # a `+key` adds what the types do not have
        if key not in _known_keys():
            raise SettingsError(*_unknown(key))
    return composed


def _explained(error: Exception) -> tuple[str, str]:
    if isinstance(error, MissingConfigException) and error.options:
        wanted, known = str(error.missing_cfg_file), error.options
        return f"There is no {wanted}.{_near(wanted.rpartition('/')[2], known)}", f"Known: {', '.join(known)}."
    if found := re.match(r"Could not override '([^']+)'", str(error)):
        return _unknown(found.group(1))
    said = [str(error), str(error.__cause__ or "")]
    return " ".join(" ".join(said).split()), "See conf/serve.yaml for names, types and values."


def _unknown(key: str) -> tuple[str, str]:
    return f"There is no setting '{key}'.{_near(key, _known_keys())}", "See conf/serve.yaml for those there are."


def _known_keys() -> list[str]:
    return _keys(OmegaConf.structured(ServeSettings))


def _keys(tree: DictConfig) -> list[str]:
    """Keys of the tree and of its typed groups; what stands under `policy` is for the policies to judge."""
    keys = [str(key) for key in tree]
    for group in ("tls", "log", "live", "consent"):
        keys += [f"{group}.{key}" for key in tree[group]]
    return keys


def _near(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f" Did you mean '{near[0]}'?" if near else ""

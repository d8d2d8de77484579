"""One person's consent receipt, from the ledger and conf/consent. Reads alone; the user id goes no further than its key."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.consent import Ledger, RecordedChange, Standing
from engine.consent.looking import LedgerView
from engine.consent.mapping import terms_of
from engine.consent.receipt import check_controller, receipt_of
from engine.errors import LedgerUnavailable, SettingsError
from engine.identity import UserKeys
from jobs.launch import SCHEMA, typed
from jobs.settings import Settings

_PAGE = 1000
_TRIES = 5


def receipt(out: Path, overrides: Sequence[str], user: str) -> dict[str, Any]:
    """The receipt of one person, as JSON-LD.

    Args:
        out: the deployment's folder.
        overrides: settings of conf/nightly.yaml, such as `consent=team` or `store.ledger=...`.
        user: the user id, as in the logs.

    Raises:
        SettingsError: a setting is wrong, or there is no ledger or key. ConsentError: conf/consent does not say enough.
        RequestError: the user id cannot be one. LedgerUnavailable: the ledger cannot be read.
    """
    settings = composed(out, overrides)
    vocabulary = settings.consent.vocabulary()
    terms = terms_of(settings.consent.purposes, vocabulary)
    check_controller(settings.consent.controller)
    url = settings.store.ledger
    if url.startswith("sqlite:///") and not Path(path := url.removeprefix("sqlite:///")).is_file():
        raise SettingsError(f"There is no ledger at {path}.", "Name the deployment's folder with --out.")
    keys = UserKeys.load(settings.store.keys)
    key = keys.stable.derive(user)
    with contextlib.closing(LedgerView.open(url, vocabulary)) as ledger:
        ledger.check_key(keys.stable.key_id)  # or a receipt would deny what is recorded
        standing, history = known_of(ledger, key)
    return receipt_of(key, standing, history, vocabulary, terms, settings.consent.controller, datetime.now(UTC))


def composed(out: Path, overrides: Sequence[str]) -> Settings:
    """The settings of a night in this folder.

    Raises:
        SettingsError: a setting is unknown or of the wrong type.
    """
    from hydra import compose, initialize_config_module
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name=SCHEMA, node=Settings)
    try:
        with initialize_config_module("conf", version_base="1.3"):
            config = compose("nightly", overrides=list(overrides))
        config.out = str(out)  # not among the overrides: a path may hold what they cannot
    except (HydraException, OmegaConfBaseException) as error:
        said = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise SettingsError(
            f"The settings cannot be read: {said}", "See conf/nightly.yaml and conf/consent."
        ) from error
    made: Settings = typed(config, Settings)
    return made


def known_of(ledger: Ledger, key: bytes) -> tuple[Standing, list[RecordedChange]]:
    """What a person allows and all that led to it, of one moment."""
    for _ in range(_TRIES):
        standing = ledger.standing(key)
        history: list[RecordedChange] = []
        while page := ledger.changes(key, history[-1].sequence if history else 0, _PAGE):
            history += page
        if ledger.standing(key) == standing:
            return standing, history
    raise LedgerUnavailable("The person's consent changed all the time.", "Try again.")

"""What a running agent takes from its configuration anew, at SIGHUP: the TLS certificate and its key. All else waits for a
restart, which no machine notices; what has changed is told."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator

import msgspec

from castoff.agent.listen import tls_context
from castoff.config import Config
from castoff.errors import Invalid

__all__ = ["Reload"]

_ANEW = frozenset({"agent.tls_certificate", "agent.tls_key"})


class Reload:
    """Of one agent.

    Args:
        config: What it was started with.
        tls: What it serves with; None: it has no TLS.
        notice: Called with a line for people.
    """

    def __init__(self, config: Config, tls: ssl.SSLContext | None, notice: Callable[[str], None]) -> None:
        self._config = config
        self._tls = tls
        self._notice = notice

    def take(self, config: Config) -> None:
        """Takes what can be taken from ``config``. New connections get the new certificate, those that are open keep theirs.

        Raises:
            Invalid: Its certificate or key cannot be used; the old ones stay.
        """
        settings = config.agent
        checked = tls_context(settings)  # aside first: a pair that does not match would leave half of it in the live one
        waiting = {name for name in _changed(self._config, config) if name not in _ANEW}
        if (checked is None) != (self._tls is None):
            waiting |= _ANEW
        elif self._tls is not None and settings.tls_certificate is not None:
            try:
                self._tls.load_cert_chain(settings.tls_certificate, settings.tls_key)
            except OSError as error:  # changed since it was checked
                raise Invalid(f"agent.tls_certificate {settings.tls_certificate}: {error}", hint="send SIGHUP again") from error
            self._notice("reloaded: the TLS certificate and its key were read again")
        if waiting:
            self._notice(f"not reloaded, they need a restart of the agent: {', '.join(sorted(waiting))}")
        elif checked is None:
            self._notice("reloaded: nothing has changed")


def _changed(old: msgspec.Struct, new: msgspec.Struct, prefix: str = "") -> Iterator[str]:
    """Names of the settings in which two configurations differ."""
    for name in old.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, msgspec.Struct) and type(before) is type(after):
            yield from _changed(before, after, f"{prefix}{name}.")
        elif before != after:
            yield f"{prefix}{name}"

"""Who is a peer: whoever has a certificate of the fleet's own authority, as server and as client."""

from __future__ import annotations

import ssl

from castoff.errors import Invalid
from castoff.peers.settings import PeerSettings

__all__ = ["client_context", "server_context"]


def server_context(settings: PeerSettings) -> ssl.SSLContext | None:
    """Demands a certificate of every client; None where no files are set. Blocks.

    Raises:
        Invalid: A file is missing or broken, or not all three are set.
    """
    return _context(settings, ssl.PROTOCOL_TLS_SERVER)


def client_context(settings: PeerSettings) -> ssl.SSLContext | None:
    """Shows this host's certificate, and takes any of the authority's. Blocks; raises as :func:`server_context`.

    The name in it is not compared: an authority of the fleet alone says who belongs to it, and what a member sends is
    verified chunk by chunk.
    """
    return _context(settings, ssl.PROTOCOL_TLS_CLIENT)


def _context(settings: PeerSettings, protocol: int) -> ssl.SSLContext | None:
    certificate, key, authority = settings.certificate, settings.key, settings.authority
    if certificate is None and key is None and authority is None:
        return None
    if certificate is None or key is None or authority is None:
        raise Invalid("peers.certificate, peers.key and peers.authority belong together", hint="set all three, or none")
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise Invalid(
            f"peers.certificate {certificate}, peers.key {key} or peers.authority {authority} cannot be used: {error}",
            hint="PEM files, the key without a password",
        ) from error
    return context

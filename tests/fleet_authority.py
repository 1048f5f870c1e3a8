"""The certificate authority of one fleet, and its hosts' certificates."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from castoff.peers.settings import PeerSettings

__all__ = ["Authority"]


class Authority:
    """A certificate authority of one fleet."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(self._sign(self._name, self._key.public_key(), authority=True))

    def settings(self, host: str, listen: str = "", *, address: str = "127.0.0.1") -> PeerSettings:
        """A host of the fleet, whose certificate is good for ``address``."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate, secret = self._directory / f"{host}.crt", self._directory / f"{host}.key"
        certificate.write_bytes(self._sign(name, key.public_key(), authority=False, address=address))
        form = serialization.PrivateFormat.PKCS8
        secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        return PeerSettings(listen=listen, certificate=certificate, key=secret, authority=self.file)

    def _sign(self, name: x509.Name, key: ec.EllipticCurvePublicKey, *, authority: bool, address: str = "127.0.0.1") -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

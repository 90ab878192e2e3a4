"""Certificates for servers and clients on this machine."""

from __future__ import annotations

import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Authority:
    """Signs certificates."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an authority of these tests")])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = directory / "ca.pem"
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self._write(self.certificate, builder.add_extension(usage, critical=True))

    def sign(self, name: str, password: bytes = b"") -> tuple[Path, Path]:
        """Return the paths of a certificate for 127.0.0.1 and of its key, which is encrypted if there is a password."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        alternatives = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        paths = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        self._write(paths[0], self._builder(subject, key).add_extension(alternatives, critical=False))
        encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        paths[1].write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        )
        return paths

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.timezone.utc)
        issuer = self._key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        )

    def _write(self, path: Path, builder: x509.CertificateBuilder) -> None:
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def redis_options(self, name: str, **options: Any) -> dict[str, Any]:
        """Return redis-py's options for a client whose certificate has this name."""
        certificate, key = self.sign(name, options.get("ssl_password", "").encode())
        return {"ssl_ca_certs": self.certificate, "ssl_certfile": certificate, "ssl_keyfile": key, **options}

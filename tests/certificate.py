"""A certificate of the progress receiver, in files."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

LOOPBACK = ipaddress.ip_address("127.0.0.1")


def write_certificate(folder: Path) -> dict[str, str]:
    """A self-signed certificate for 127.0.0.1, as the chart makes one for its Service."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    addresses = [x509.IPAddress(LOOPBACK)]
    write_self_signed(folder / "tls.crt", folder / "tls.key", key, "finetune-operator-progress", addresses)
    return {
        "FINETUNE_PROGRESS_CERT": str(folder / "tls.crt"),
        "FINETUNE_PROGRESS_KEY": str(folder / "tls.key"),
        "FINETUNE_PROGRESS_CA": str(folder / "tls.crt"),
        "FINETUNE_PROGRESS_URL": "https://127.0.0.1:1",
    }


def write_self_signed(
    certificate: Path,
    private: Path,
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    common_name: str,
    names: Sequence[x509.GeneralName],
) -> None:
    """A certificate of the key for these names, good from an hour ago for a day, and the key, in PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    certificate.write_bytes(made.public_bytes(pem))
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))

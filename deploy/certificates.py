"""TLS for a broker beyond loopback: the plant's own certificate authority, and the server's certificate from it.

tls/ca.key          ECDSA P-256, mode 0600; offline once the server has its certificate
tls/ca.crt          what devices check the server against; constrained to end entities
tls/server.key      mode 0600
tls/server.crt      for the name and addresses by which the broker is reached (RFC 5280)
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lineside.clock import NS, Clock
from lineside.errors import ConfigError
from lineside.files import write_atomic

FOLDER = "tls"
CA_DAYS = 3650
SERVER_DAYS = 825
CURVE = ec.SECP256R1()
HERE = ("localhost", "127.0.0.1", "::1")


def create(folder: Path, site: str, names: tuple[str, ...], clock: Clock) -> None:
    """Make what is missing in `folder`: authority, then the server's key and certificate for `names` and this machine.

    To renew the server's, remove server.crt. Raises ConfigError when the authority's key is not here for that.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    now = datetime.fromtimestamp(clock.now_ns() / NS, timezone.utc).replace(microsecond=0)
    if not (folder / "ca.crt").exists():
        key = _key(folder / "ca.key")
        _put(folder / "ca.crt", _authority(key, f"lineside {site}", now))
    if not (folder / "server.crt").exists():
        if not (folder / "ca.key").exists():
            raise ConfigError(str(folder / "ca.key"), "is not here", "bring it from where it is kept, for this once")
        authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        every = tuple(dict.fromkeys((*names, *HERE)))
        _put(
            folder / "server.crt", _server(_key(folder / "server.key"), _key(folder / "ca.key"), authority, every, now)
        )


def _authority(key: ec.EllipticCurvePrivateKey, name: str, now: datetime) -> x509.Certificate:
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    usage = _usage(signs_certificates=True)
    return (
        _begun(named, named, key, now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _server(
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    names: tuple[str, ...],
    now: datetime,
) -> x509.Certificate:
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return (
        _begun(named, authority.subject, key, now, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(by, critical=False)
        .sign(signer, hashes.SHA256())
    )


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    """Valid from a day before: clocks differ."""
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number())
    return made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=days))


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    """An address or a name, as a certificate tells it.

    >>> _general("10.0.0.7"), _general("plant-1")
    (<IPAddress(value=10.0.0.7)>, <DNSName(value='plant-1')>)
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in a file, made if it is not there."""
    if path.exists():
        found = serialization.load_pem_private_key(path.read_bytes(), None)
        if not isinstance(found, ec.EllipticCurvePrivateKey):
            raise ConfigError(str(path), "is no key that we made", "move it away")
        return found
    made = ec.generate_private_key(CURVE)
    kind = serialization.PrivateFormat.PKCS8
    write_atomic(path, made.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()), mode=0o600)
    return made


def _put(path: Path, certificate: x509.Certificate) -> None:
    write_atomic(path, certificate.public_bytes(serialization.Encoding.PEM))

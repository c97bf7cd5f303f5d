"""Content credentials (C2PA) in finished videos and clips: made by a model, by which one, from what.

Signed offline, with the operator's certificate, or with one that is made at first use and kept in storage.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from contract.frozen import Frozen
from contract.job import utcnow
from contract.settings import Settings
from contract.state import Job
from contract.version import installed_version
from jobs.artifacts import ArtifactStore

if TYPE_CHECKING:
    import c2pa
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

log = logging.getLogger(__name__)
PROGRAM: Final = "CoInteract Server"
SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's word for what a trained model has made."""
JOB_ASSERTION: Final = "io.cointeract.job"
_SECRET: Final = "provenance.secret"
_LASTS: Final = timedelta(days=3650)
_DOCUMENT_SIGNING: Final = "1.3.6.1.5.5.7.3.36"


class Credentials(Frozen):
    """A private key with its certificates, the signing one first, all as PEM."""

    algorithm: str
    key: str
    chain: str


@dataclass
class Provenance:
    """Signs the files of jobs. Nothing is signed if a setting says so, or the package is not installed."""

    store: ArtifactStore
    settings: Settings

    def check(self) -> None:
        """Find out whether videos can be signed, before one is made. Raises OSError, ValueError."""
        if not self.settings.provenance:
            return
        if find_spec("c2pa") is None:
            log.error("videos carry no content credentials: the package c2pa-python is not installed")
            return
        import c2pa

        sample, signed = BytesIO(), BytesIO()
        Image.new("RGB", (8, 8)).save(sample, "PNG")
        sample.seek(0)
        try:
            trial = c2pa.Builder(_manifest("trial", "image/png", {}))
            trial.sign(self._signer, "image/png", sample, signed)  # it verifies what it has signed
        except c2pa.C2paError as error:
            raise ValueError(f"COINTERACT_PROVENANCE_KEY or _CERTIFICATE cannot be used: {error}") from error

    def sign(self, path: Path, job: Job, what: str) -> str | None:
        """Put a manifest into an MP4, in place. Returns the SHA-256 of the file without it; None if it gets
        none.

        Raises OSError, and RuntimeError if it cannot be signed.
        """
        if not self.settings.provenance or find_spec("c2pa") is None or not _is_mp4(path):
            return None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        import c2pa

        signed = path.with_suffix(".signed")
        try:
            with path.open("rb") as source, signed.open("w+b") as target:
                c2pa.Builder(manifest_of(job, what)).sign(self._signer, "video/mp4", source, target)
        except c2pa.C2paError as error:
            raise RuntimeError(f"the video cannot be signed: {error}") from error
        signed.replace(path)
        return digest

    @cached_property
    def _signer(self) -> c2pa.Signer:
        import c2pa

        known = credentials_of(self.store, self.settings)
        info = c2pa.C2paSignerInfo(
            alg=known.algorithm.encode(),
            sign_cert=known.chain.encode(),
            private_key=known.key.encode(),
            ta_url=None,
        )
        return c2pa.Signer.from_info(info)


def manifest_of(job: Job, what: str) -> dict[str, Any]:
    """The claims about a file of a job, `what` being the video or a clip."""
    submitted, params = job.submitted, job.submitted.params
    inputs = submitted.inputs
    files = {name: getattr(inputs, name) for name in type(inputs).model_fields}
    told: dict[str, Any] = {
        "job": job.id,
        "file": what,
        "model": submitted.checkpoint,
        "inputs": {
            name: {"sha256": file.sha256, "received_sha256": submitted.received.get(name)}
            for name, file in files.items()
            if file is not None
        },
        "params": json.loads(params.model_dump_json()),
    }
    if submitted.consent is not None:
        told["consent"] = submitted.consent
    return _manifest(f"{job.id} {what}", "video/mp4", told)


def _manifest(title: str, media_type: str, told: dict[str, Any]) -> dict[str, Any]:
    agent = {"name": PROGRAM, "version": installed_version()}
    created = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": agent}
    return {
        "claim_generator_info": [agent],
        "title": title,
        "format": media_type,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": JOB_ASSERTION, "data": told},
        ],
    }


def credentials_of(store: ArtifactStore, settings: Settings) -> Credentials:
    """The operator's key and certificates, or those in storage, which are made at first use.

    Raises OSError, ValueError.
    """
    if settings.provenance_key is not None and settings.provenance_certificate is not None:
        key = settings.provenance_key.read_text(encoding="ascii")
        chain = settings.provenance_certificate.read_text(encoding="ascii")
        return Credentials(algorithm=_algorithm_of(key), key=key, chain=chain)
    if (kept := store.read(_SECRET)) is None:
        store.create(_SECRET, _new_credentials().model_dump_json().encode())
        kept = store.read(_SECRET)
    assert kept is not None
    return Credentials.stored(kept)


def _is_mp4(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8)[4:] == b"ftyp"


def _algorithm_of(pem: str) -> str:
    """C2PA's name of what a private key signs with. Raises ValueError."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    match serialization.load_pem_private_key(pem.encode(), None):
        case ed25519.Ed25519PrivateKey():
            return "ed25519"
        case rsa.RSAPrivateKey():
            return "ps256"
        case ec.EllipticCurvePrivateKey() as key if key.curve.key_size in (256, 384):
            return f"es{key.curve.key_size}"
    raise ValueError("COINTERACT_PROVENANCE_KEY must be a P-256, P-384, Ed25519 or RSA key")


def _new_credentials() -> Credentials:
    """A key, and a certificate that an authority of our own vouches for: C2PA takes no self-signed one."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    authority, signer = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    chain = _certificate(signer, authority, is_authority=False) + _certificate(
        authority, authority, is_authority=True
    )
    key = signer.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Credentials(algorithm="ed25519", key=key.decode(), chain=chain)


def _certificate(key: Ed25519PrivateKey, issuer: Ed25519PrivateKey, is_authority: bool) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(what: str) -> x509.Name:
        organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, PROGRAM)
        return x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, what)])

    now = utcnow()
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    ) | {"encipher_only": False, "decipher_only": False}
    builder = (
        x509.CertificateBuilder()
        .subject_name(name("authority" if is_authority else "signer"))
        .issuer_name(name("authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + _LASTS)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=is_authority, crl_sign=is_authority, **usage),
            True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), False)
    )
    if not is_authority:
        purposes = [ExtendedKeyUsageOID.EMAIL_PROTECTION, x509.ObjectIdentifier(_DOCUMENT_SIGNING)]
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), False)
    return builder.sign(issuer, None).public_bytes(Encoding.PEM).decode()

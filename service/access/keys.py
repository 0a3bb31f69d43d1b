"""The keys that access tokens are signed with: reading them, and what each algorithm wants of its keys.

Owns the two spellings of keys, base64url secrets and PEM, and their least strength. Several keys are one ring: the
first that can sign signs, all verify, so that keys rotate without a moment in which tokens fail. No mistake quotes
one.
"""

import re
from typing import Literal

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from events.errors import Misconfigured
from events.ids import from_b64url

Algorithm = Literal["HS256", "RS256", "EdDSA"]
SECRET_BYTES_MIN = 32
RSA_BITS_MIN = 2048
KEYS_MAX = 8

PublicKey = bytes | RSAPublicKey | Ed25519PublicKey
PrivateKey = bytes | RSAPrivateKey | Ed25519PrivateKey

_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_WANTED = {"RS256": "an RSA", "EdDSA": "an Ed25519"}


class Keys(msgspec.Struct, frozen=True):
    """``signing`` is None where only public keys were given. Its repr shows no key."""

    algorithm: Algorithm
    verifying: tuple[PublicKey, ...]
    signing: PrivateKey | None

    def __repr__(self) -> str:
        return f"<{len(self.verifying)} {self.algorithm} keys>"


def read_keys(algorithm: Algorithm, text: str, *, setting: str) -> Keys:
    """The keys that a setting's value, or its file's text, spells. Raises: Misconfigured naming ``setting``."""
    read = _secrets(text, setting) if algorithm == "HS256" else _pem(algorithm, text, setting)
    if not 1 <= len(read) <= KEYS_MAX:
        raise Misconfigured(f"{setting} holds {len(read)} keys, not 1 to {KEYS_MAX}")
    signing = next((private for _, private in read if private is not None), None)
    return Keys(algorithm, tuple(public for public, _ in read), signing)


def _secrets(text: str, setting: str) -> list[tuple[PublicKey, PrivateKey | None]]:
    read: list[tuple[PublicKey, PrivateKey | None]] = []
    for number, spelled in enumerate(re.split(r"[,\s]+", text.strip()), 1):
        try:
            secret = from_b64url(spelled.rstrip("="))
        except ValueError:
            # Not "from exc": the cause could quote the secret.
            raise Misconfigured(f"key {number} of {setting} is not base64url, as HS256 wants it") from None
        if len(secret) < SECRET_BYTES_MIN:
            raise Misconfigured(
                f"key {number} of {setting} has {len(secret)} bytes; HS256 wants at least {SECRET_BYTES_MIN}"
            )
        read.append((secret, secret))
    return read


def _pem(algorithm: Algorithm, text: str, setting: str) -> list[tuple[PublicKey, PrivateKey | None]]:
    read: list[tuple[PublicKey, PrivateKey | None]] = []
    for number, block in enumerate(_PEM.finditer(text), 1):
        private: object = None
        try:
            if "PRIVATE" in block[1]:
                private = load_pem_private_key(block[0].encode(), password=None)
            else:
                public: object = load_pem_public_key(block[0].encode())
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # Not "from exc": the cause could quote the key.
            raise Misconfigured(f"key {number} of {setting} cannot be read as an unencrypted PEM key") from None
        if isinstance(private, RSAPrivateKey | Ed25519PrivateKey):
            public = private.public_key()
        fits = isinstance(public, RSAPublicKey) if algorithm == "RS256" else isinstance(public, Ed25519PublicKey)
        if not fits:
            raise Misconfigured(f"key {number} of {setting} is not {_WANTED[algorithm]} key, as {algorithm} wants it")
        if isinstance(public, RSAPublicKey) and public.key_size < RSA_BITS_MIN:
            raise Misconfigured(
                f"key {number} of {setting} has {public.key_size} bits; {algorithm} wants at least {RSA_BITS_MIN}"
            )
        read.append((public, private))  # type: ignore[arg-type]  # of the kinds that were just looked at
    return read

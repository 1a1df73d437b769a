"""Provenance: an author signs what it has written (Ed25519), and a reader checks that. No statistics, so no rate that grows with imitation.

What a signature does not do: say anything of a text without one (who does not sign has no defence), of one whose key was stolen, or of a
signed message that is shown again somewhere else, which is a genuine one.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lab.ground.errors import RecipeError


class Signed(NamedTuple):
    author: int
    text: str
    signature: bytes


def _ed25519() -> Any:
    if importlib.util.find_spec("cryptography") is None:
        raise RecipeError("signatures need the package cryptography: pip install 'isthmus[privacy]'")
    from cryptography.hazmat.primitives.asymmetric import ed25519

    return ed25519


def _bytes(author: int, text: str) -> bytes:
    """What is signed: whose it is, and every byte of it."""
    return f"{author}\0{text}".encode()


@dataclass(frozen=True)
class Signer:
    """An author with a private key, which stays here; by default a new one from the system's generator."""

    author: int
    key: Any = field(default_factory=lambda: _ed25519().Ed25519PrivateKey.generate(), repr=False)

    @property
    def public(self) -> bytes:
        """32 bytes, for readers."""
        return bytes(self.key.public_key().public_bytes_raw())

    def sign(self, text: str) -> Signed:
        return Signed(self.author, text, bytes(self.key.sign(_bytes(self.author, text))))


def accepted(message: Signed, public: bytes) -> bool:
    """Whether the owner of this public key has signed every byte of it.

    Raises RecipeError for a key that is none, and where the package ``cryptography`` is not installed.
    """
    made = _ed25519()
    from cryptography.exceptions import InvalidSignature

    try:
        key = made.Ed25519PublicKey.from_public_bytes(public)
    except ValueError as error:
        raise RecipeError(f"a public key of {len(public)} bytes: give the 32 of Signer.public") from error
    try:
        key.verify(message.signature, _bytes(message.author, message.text))
    except InvalidSignature:
        return False
    return True

"""Who may talk to the API server: static tokens, kubeconfigs, and the key for service account tokens."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa


@dataclass(frozen=True)
class User:
    """A user of the API server, with a token made up on the spot."""

    name: str
    groups: tuple[str, ...] = ()
    user: str = ""
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    @property
    def username(self) -> str:
        """The name that RBAC sees."""
        return self.user or self.name


ADMIN = "admin"
DEVELOPER = "developer"


def standard_users() -> tuple[User, ...]:
    """`admin`, who may do everything, and `developer`, who may do nothing until a test binds a role."""
    return (User(ADMIN, ("system:masters",)), User(DEVELOPER, ("developers",)))


def write_token_file(path: Path, users: Sequence[User]) -> None:
    """The file for --token-auth-file."""
    lines = (f'{user.token},{user.username},{user.name},"{",".join(user.groups)}"\n' for user in users)
    path.write_text("".join(lines))
    path.chmod(0o600)


def write_kubeconfig(path: Path, url: str, ca: Path, user: User) -> None:
    """A kubeconfig for one user (as JSON, which is YAML too)."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": str(ca)}}],
        "users": [{"name": user.name, "user": {"token": user.token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user.name}}],
    }
    path.write_text(json.dumps(config, indent=1))
    path.chmod(0o600)


def write_signing_key(path: Path) -> None:
    """An RSA key, with which service account tokens are signed."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    path.chmod(0o600)

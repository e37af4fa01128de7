"""Seed files of nkeys: made, read, and the public key that follows. A seed is a private key; nothing here shows one.

The one module that knows the library, and only where somebody presents a key: most programs never load it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from faas.errors import ConfigInvalid

VARIABLE = "FAAS_NKEY"
"""A path, for whoever is given none."""
SEED_BYTES = 32
FILE_BYTES = 4096
_USER = b"SU"
"""What the seed of a user begins with; other lines of a file are its frame, as `nsc` and `nk` write one."""


def read_seed(path: Path) -> str:
    """The seed in a file. Raises ConfigInvalid, which shows nothing of it."""
    try:
        with path.open("rb") as file:
            lines = [line.strip() for line in file.read(FILE_BYTES).splitlines()]
    except OSError as error:
        raise ConfigInvalid(f"the nkey {path} cannot be read: {error.strerror}") from error
    for line in lines:
        if line.startswith(_USER) and line.isalnum() and line.isascii():
            seed = line.decode()
            public_key(seed, where=str(path))
            return seed
    raise ConfigInvalid(f"{path} holds no seed of a user, which begins with SU; `faas nats-config` writes some")


def seed_of(given: Path | None) -> str:
    """The seed in the file that was given, else in that of FAAS_NKEY, else "". Raises ConfigInvalid."""
    path = given or (Path(named) if (named := os.environ.get(VARIABLE)) else None)
    return read_seed(path) if path is not None else ""


def public_key(seed: str, *, where: str = "it") -> str:
    """What the server knows the holder of a seed by. Raises ConfigInvalid."""
    import nkeys

    try:
        prefix, raw = nkeys.decode_seed(seed.encode())
        if nkeys.encode_seed(bytes(raw), prefix).decode() != seed:  # the library does not look at its checksum
            raise ValueError("mistyped")
        return bytes(nkeys.from_seed(bytearray(seed.encode())).public_key).decode()
    except (nkeys.NkeysError, ValueError) as error:
        raise ConfigInvalid(f"{where} holds no seed that can be used; `faas nats-config` writes some") from error


def new_seed() -> str:
    """A user that nobody knows yet."""
    import nkeys

    return bytes(nkeys.encode_seed(secrets.token_bytes(SEED_BYTES), nkeys.PREFIX_BYTE_USER)).decode()


def write_seed(path: Path, seed: str) -> None:
    """Readable by its owner alone from its first moment, and whole or as it was before. Raises OSError."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(f"{seed}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def inbox_of(seed: str) -> str:
    """What the inboxes of a caller with this seed begin with: nobody else may listen there."""
    return f"_INBOX_{public_key(seed)}"

"""A function version as one run of bytes, and back: what a node that has no folder needs to serve it.

The same version makes the same bytes, so that they can be named by their digest. Knows no bus; the limits of profiles are those of whoever unpacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from faas.errors import SpecInvalid
from faas.model import FunctionSpec, FunctionVersion, MountedFolder, RuntimeProfile, SourceFile
from faas.registry.bundle import SPEC_FILE, Bundle, Declaration
from faas.registry.lines import line_of
from faas.registry.mounts import find_mounts
from faas.registry.spec import assemble, parse, spec_of


class _Packed(Struct, frozen=True, kw_only=True):
    file: str
    declaration: bytes
    files: tuple[SourceFile, ...]
    lock: bytes = b""
    example: bytes = b""
    inside: Mapping[str, str] = {}  # target -> digest of a mount inside of the function's folder


_DECODER = msgspec.msgpack.Decoder(_Packed)  # made here: threads that meet a type for the first time together end the process


def pack(function: FunctionVersion) -> bytes:
    """Declaration, code, lock and example of a version; of its mounts the digests alone."""
    return msgspec.msgpack.encode(
        _Packed(
            file=function.file,
            declaration=function.declaration,
            files=function.files,
            lock=function.lock,
            example=function.example,
            inside={mount.target: mount.digest for mount in function.mounts if mount.copied},
        )
    )


def unpack_for(
    key: tuple[str, str], data: bytes, version: str, *, profiles: Mapping[str, RuntimeProfile], mounts: Sequence[str]
) -> FunctionVersion:
    """As `unpack`, of a function that must be this one: who may deploy for one tenant would else have the secrets of another. Raises SpecInvalid."""
    function = unpack(data, version, profiles, mounts=mounts)
    if function.key != key:
        tenant, name = function.key
        raise SpecInvalid(
            function.file, "", f"its bundle is of {name} of tenant {tenant}, and not of {key[1]} of {key[0]}; deploy it again"
        )
    return function


def unpack(data: bytes, version: str, profiles: Mapping[str, RuntimeProfile], *, mounts: Sequence[str]) -> FunctionVersion:
    """The version that `pack` was given, under the profiles and the allowed `mounts` of this node.

    A mount inside of the function's folder has no source here, only its digest. Raises SpecInvalid where this node cannot serve it.
    """
    try:
        packed = _DECODER.decode(data)
    except msgspec.DecodeError as error:
        raise SpecInvalid(version, "", f"its bundle cannot be read: {error}; deploy the function again") from error
    declaration = _declaration(packed)
    table = parse(declaration)
    try:
        spec = spec_of(declaration, table, profiles)
        folders = _folders(declaration, spec, inside=packed.inside, mounts=mounts)
        bundle = Bundle(packed.files, packed.lock, packed.example)
        function = assemble(declaration, bundle, spec, python=profiles[spec.runtime].python, folders=folders)
    except SpecInvalid as error:
        if error.line or not error.key:
            raise
        line = line_of(declaration.text.decode(), table, error.key)
        raise SpecInvalid(error.file, error.key, error.problem, line=line) from error
    if function.version != version:
        raise SpecInvalid(declaration.file, "", f"its bundle makes the version {function.version} and not {version}; deploy it again")
    return function


def _declaration(packed: _Packed) -> Declaration:
    entry, _, inside = packed.file.partition("/")
    if inside == SPEC_FILE:
        return Declaration(file=packed.file, text=packed.declaration, name=entry, handler="handler:handle", entry=Path(entry))
    name = Path(packed.file).stem
    return Declaration(file=packed.file, text=packed.declaration, name=name, handler=f"{name}:handle", entry=Path(packed.file))


def _folders(
    declaration: Declaration, spec: FunctionSpec, *, inside: Mapping[str, str], mounts: Sequence[str]
) -> tuple[MountedFolder, ...]:
    """Those of the node are looked for; of those inside of the function's folder the digest is known."""
    found: list[MountedFolder] = []
    for index, mount in enumerate(spec.mounts):
        if mount.source.startswith("/"):
            alone = msgspec.structs.replace(spec, mounts=(mount,))
            try:
                found += find_mounts(declaration, alone, mounts)
            except SpecInvalid as error:
                raise SpecInvalid(error.file, f"mount[{index}].source", error.problem) from error
        elif mount.target in inside:
            found.append(MountedFolder(target=mount.target, source="", digest=inside[mount.target], copied=True))
        else:
            raise SpecInvalid(declaration.file, f"mount[{index}].source", "is not in its bundle; deploy it again")
    return tuple(found)

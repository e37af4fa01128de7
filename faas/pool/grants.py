"""What workers are told in confidence: the secrets that their function names, their version, and what hides them in all that is said.

Reads the provider at each use, so that a worker whose secrets have changed since is known as such. Keeps no value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from faas.config import SecretsConfig
from faas.errors import SecretMissing
from faas.model import FunctionSpec
from faas.security.secrets import Secret, Secrets
from faas.units import format_size
from faas.worker import wire
from faas.worker.redaction import NOTHING, Redactor

Answer = wire.Loaded | wire.LoadFailed | wire.Result | wire.Failed


@dataclass(slots=True, frozen=True)
class Granted:
    """What one worker gets. `version` is that of all of them together; "" where its function has none."""

    version: str = ""
    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    redactor: Redactor = NOTHING


NOTHING_GRANTED = Granted()


class Grants:
    """The secrets of one node as functions get them: each those that it names, of its own tenant."""

    def __init__(self, secrets: Secrets | None = None) -> None:
        self._secrets = secrets if secrets is not None else Secrets(SecretsConfig())

    def granted(self, spec: FunctionSpec) -> Granted:
        """What a worker of the function gets now. Raises SecretMissing."""
        if not spec.secrets:
            return NOTHING_GRANTED
        secrets = self._of(spec)
        values: dict[str, str] = {}
        left_bytes = wire.SECRETS_BYTES
        for secret in secrets:
            left_bytes -= len(secret.value) + len(secret.name)
            if left_bytes < 0:
                limit = format_size(wire.SECRETS_BYTES)
                raise SecretMissing(secret.name, f"the secrets of {spec.name} have more than {limit} together; mount what is large")
            try:
                values[secret.name] = secret.value.decode()
            except UnicodeDecodeError:
                raise SecretMissing(secret.name, "is no UTF-8 text, as which functions get it; write it as base64") from None
        return Granted(_version(secrets), values, Redactor({secret.name: secret.values for secret in secrets}))

    def version(self, spec: FunctionSpec) -> str:
        """What `granted` would have as its version. Raises SecretMissing where one is not there."""
        return _version(self._of(spec)) if spec.secrets else ""

    def is_current(self, spec: FunctionSpec, version: str) -> bool:
        """Whether a worker that was granted this version has what it would be granted now."""
        try:
            return self.version(spec) == version
        except SecretMissing:
            return False  # it was taken away: nobody goes on with it

    def told(self, spec: FunctionSpec) -> dict[str, str]:
        """For whoever looks: by name "version …", or why it is missing."""
        told = {}
        for name in spec.secrets:
            try:
                told[name] = f"version {self._secrets.get(name, spec.tenant).version}"
            except SecretMissing as error:
                told[name] = f"missing: {error}"
        return told

    def _of(self, spec: FunctionSpec) -> list[Secret]:
        return [self._secrets.get(name, spec.tenant) for name in spec.secrets]


def _version(secrets: list[Secret]) -> str:
    return ",".join(f"{secret.name}={secret.version}" for secret in secrets)


def hidden(answer: Answer, redactor: Redactor) -> Answer:
    """What a worker says of a failure, and of its types, without the values of its secrets. A result is its author's own."""
    if not redactor:
        return answer
    if isinstance(answer, wire.LoadFailed | wire.Failed):
        return msgspec.structs.replace(answer, detail=redactor.text(answer.detail), traceback=redactor.text(answer.traceback))
    if isinstance(answer, wire.Loaded):
        schemas = redactor.text(answer.input_schema), redactor.text(answer.output_schema)
        return msgspec.structs.replace(answer, input_schema=schemas[0], output_schema=schemas[1])
    return answer

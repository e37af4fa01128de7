"""What functions print, and how building goes: where it is told. Knows neither who prints nor who reads."""

from __future__ import annotations

import structlog

from faas.bus.logs import LogLines, rfc3339
from faas.environments.build import BuildProgress
from faas.pool.output import Line
from faas.pool.worker import Worker
from faas.runs import LogLine

log = structlog.get_logger()


def tell_output(lines: LogLines, worker: Worker, line: Line) -> None:
    """A line of a function onto the bus; into the node's own log only where there is no function yet, or someone looks closely."""
    speaker = line.speaker
    if speaker.function:
        lines.add(
            speaker.tenant,
            speaker.function,
            LogLine(
                time=rfc3339(line.at),
                level=line.level,
                stream=line.stream,
                message=line.text,
                invocation=speaker.invocation_id,
                attempt=speaker.attempt,
                logger=line.logger,
                fraction=line.fraction,
            ),
        )
    write = log.debug if speaker.function else log.info
    write("function.printed", function=speaker.function, worker=worker.id, stream=line.stream, level=line.level, line=line.text)


def tell_build(progress: BuildProgress) -> None:
    """A step of building an environment, into the node's log."""
    whose = {"function": progress.function} if progress.function else {"profile": progress.profile}
    log.info("environment.building", **whose, phase=progress.phase, download_bytes=progress.download_bytes)

"""How a node logs: readable lines on a terminal, JSON lines elsewhere, always to stderr. Knows no part of the node."""

from __future__ import annotations

import logging
import sys

import structlog


def set_up_logging(*, debug: bool = False, quiet: bool = False, json: bool = False) -> None:
    """Configure structlog once, for the whole process. `quiet` leaves errors alone; `json` writes JSON lines on a terminal too."""
    level = logging.ERROR if quiet else logging.DEBUG if debug else logging.INFO
    terminal = sys.stderr.isatty() and not json
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if terminal
        else structlog.processors.JSONRenderer()
    )
    processors: list[structlog.types.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *([] if terminal else [structlog.processors.format_exc_info]),
        renderer,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def without_token(url: str) -> str:
    """The addresses of a NATS URL alone, for lines that people and log collectors see; several are joined by commas."""
    return ",".join(f"nats://{address.rpartition('://')[2].rpartition('@')[2]}" for address in url.split(","))

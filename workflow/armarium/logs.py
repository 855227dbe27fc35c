"""``resources/log.config``: what steps and commands log, and how. No torch.

It has the form of Python's ``fileConfig`` and MMAR's ``log.config``, but fileConfig evaluates ``args`` and
``class``; here both are compared with what is allowed, and a file may come from strangers.
"""

from __future__ import annotations

import configparser
import logging
import re
import sys
from pathlib import Path

from . import layout
from .errors import UserError
from .files import read_text, write_text

DEFAULT = """\
[loggers]
keys=root,armarium

[handlers]
keys=console

[formatters]
keys=plain

[logger_root]
level=WARNING
handlers=console

[logger_armarium]
level=INFO
handlers=
qualname=armarium

[handler_console]
class=StreamHandler
level=NOTSET
formatter=plain
args=(sys.stderr,)

[formatter_plain]
format=%(asctime)s %(levelname)s %(message)s
"""
LEVELS = ("NOTSET", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
CLASSES = {
    "handler": ("StreamHandler", "logging.StreamHandler", "NullHandler", "logging.NullHandler"),
    "formatter": ("", "logging.Formatter"),
}
STREAMS = {"": "stderr", "()": "stderr", "(sys.stderr,)": "stderr", "(sys.stdout,)": "stdout"}
_configured: list[logging.Logger] = []
LARGEST = 1 << 16
"""Bytes of a configuration of logging."""


class Console(logging.StreamHandler):
    """Writes to ``sys.stderr`` or ``sys.stdout`` as it is when something is logged: a step's log takes its place."""

    def __init__(self, name: str, level: str):
        logging.Handler.__init__(self, level)
        self.to = name

    @property
    def stream(self):
        return getattr(sys, self.to)


def write_log_config(archive: str) -> list[str]:
    """Write the default; return its path."""
    write_text(layout.log_config(archive), DEFAULT)
    return [layout.log_config(archive)]


def configure_logging(archive: str) -> None:
    """Log as the archive's ``log.config`` says, or by default where it has none yet.

    Raises
    ------
    UserError
        If it is no such file, or asks for anything else than a stream and a format.
    """
    path = layout.log_config(archive)
    _apply(_File(read_text(path, LARGEST) if Path(path).is_file() else DEFAULT, path))


class _File:
    """A configuration that is read by its sections; nothing in it is evaluated."""

    def __init__(self, text: str, path: str):
        self.path, self.parser = path, configparser.RawConfigParser()
        try:
            self.parser.read_string(text)
        except configparser.Error as error:
            raise UserError(f"{path}: {str(error).splitlines()[0]}; wanted the form of Python's fileConfig") from None

    def names(self, kind: str) -> list[str]:
        return _words(self.value(f"{kind}s", "keys"))

    def value(self, section: str, key: str, default: str | None = None) -> str:
        found = self.parser.get(section, key, fallback=default)
        if found is None:
            raise UserError(f"{self.path}: [{section}] has no {key}; put it in, or delete the file to have the default")
        return found.strip()

    def one_of(self, section: str, key: str, allowed, default: str | None = None) -> str:
        found = self.value(section, key, default)
        if found not in allowed:
            raise UserError(
                f"{self.path}: [{section}] {key} is {found[:100]!r}; nothing in this file is run, wanted one of {', '.join(filter(None, allowed))}"
            )
        return found


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,]+", text) if word]


def _apply(file: _File) -> None:
    formatters = {name: _formatter(file, f"formatter_{name}") for name in file.names("formatter")}
    handlers = {name: _handler(file, f"handler_{name}", formatters) for name in file.names("handler")}
    loggers = [_logger(file, name, handlers) for name in file.names("logger")]
    # Only once all of the file is known to be right; what an earlier file said of others no longer counts.
    for logger in _configured:
        logger.handlers[:] = [h for h in logger.handlers if not isinstance(h, Console)]
        logger.setLevel("WARNING" if logger is logging.root else "NOTSET")
        logger.propagate = True
    _configured[:] = [logger for logger, *_ in loggers]
    for logger, level, own, propagate in loggers:
        logger.handlers[:] = [h for h in logger.handlers if not isinstance(h, Console)] + own
        logger.setLevel(level)
        logger.propagate = propagate


def _formatter(file: _File, section: str) -> logging.Formatter:
    file.one_of(section, "class", CLASSES["formatter"], "")
    file.one_of(section, "style", ("%",), "%")
    try:
        text, date = file.value(section, "format", "%(message)s"), file.value(section, "datefmt", "")
        formatter = logging.Formatter(text, date or None)
        formatter.format(logging.makeLogRecord({}))
        return formatter
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file.path}: [{section}] format: {error}; wanted such as %(asctime)s %(message)s") from None


def _handler(file: _File, section: str, formatters: dict) -> logging.Handler:
    kind = file.one_of(section, "class", CLASSES["handler"])
    stream = STREAMS[file.one_of(section, "args", STREAMS, "()")]
    level = file.one_of(section, "level", LEVELS, "NOTSET")
    handler = logging.NullHandler(level) if kind.endswith("NullHandler") else Console(stream, level)
    if name := file.one_of(section, "formatter", ("", *formatters), ""):
        handler.setFormatter(formatters[name])
    return handler


def _logger(file: _File, name: str, handlers: dict) -> tuple[logging.Logger, str, list[logging.Handler], bool]:
    section = f"logger_{name}"
    level = file.one_of(section, "level", LEVELS, "NOTSET")
    words = _words(file.value(section, "handlers", ""))
    if unknown := [word for word in words if word not in handlers]:
        raise UserError(
            f"{file.path}: [{section}] handlers: no handler {unknown[0]!r}; wanted one of {', '.join(handlers)}"
        )
    logger = logging.getLogger(None if name == "root" else file.value(section, "qualname"))
    propagate = file.one_of(section, "propagate", ("0", "1"), "1") == "1"
    return logger, level, [handlers[word] for word in words], propagate

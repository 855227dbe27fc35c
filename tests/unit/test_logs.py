"""resources/log.config: it says what is logged and how, and runs nothing."""

from __future__ import annotations

import logging
import logging.config
import re
from pathlib import Path

import pytest
from armarium import layout, logs
from armarium.errors import UserError
from armarium.files import write_text
from armarium.provenance import step

MMAR = """\
[loggers]
keys=root,modelLogger

[handlers]
keys=consoleHandler

[formatters]
keys=fullFormatter

[logger_root]
level=ERROR
handlers=consoleHandler

[logger_modelLogger]
level=DEBUG
handlers=consoleHandler
qualname=armarium.model
propagate=0

[handler_consoleHandler]
class=StreamHandler
level=DEBUG
formatter=fullFormatter
args=(sys.stdout,)

[formatter_fullFormatter]
format=%(name)s - %(levelname)s - %(message)s
"""
"""In the form of Clara Train's own."""


@pytest.fixture
def archive(tmp_path):
    yield str(tmp_path / "a")
    logs.configure_logging(str(tmp_path / "none"))


def config(archive: str, text: str) -> str:
    write_text(layout.log_config(archive), text)
    return archive


def test_the_default_is_a_file_that_logging_itself_reads(archive):
    logging.config.fileConfig(logs.write_log_config(archive)[0], disable_existing_loggers=False)


def test_messages_of_the_package_are_told_by_default_and_those_of_others_when_they_warn(archive, capsys):
    logs.configure_logging(archive)
    logging.getLogger("armarium.training").info("an epoch")
    logging.getLogger("monai").info("chatter")
    logging.getLogger("monai").warning("a warning")
    told = capsys.readouterr().err.splitlines()
    assert [re.sub(r"^[\d :,-]+ ", "", line) for line in told] == ["INFO an epoch", "WARNING a warning"]


def test_an_edit_changes_what_is_logged_and_how(archive, capsys):
    logs.configure_logging(config(archive, MMAR))
    logging.getLogger("armarium.training").info("an epoch")
    logging.getLogger("armarium.training").error("a fault")
    logging.getLogger("armarium.model").debug("a detail")
    told = capsys.readouterr()
    assert told.out.splitlines() == ["armarium.training - ERROR - a fault", "armarium.model - DEBUG - a detail"]
    assert not told.err


def test_every_step_logs_as_its_archive_says(archive, capsys):
    for text, expected in ((logs.DEFAULT, []), (logs.DEFAULT.replace("level=INFO", "level=DEBUG"), ["begins", "done"])):
        with step(config(archive, text), "a_step", "a_rule", [], []):
            pass
        told = capsys.readouterr().err.splitlines()
        assert [word for line in told for word in expected if f"a_step: {word}" in line] == expected
        assert bool(told) == bool(expected)


HOSTILE = {
    "args=(open('ran', 'w'),)": "[handler_consoleHandler] args is \"(open('ran', 'w'),)\"",
    "args=(sys.stdout,);open('ran', 'w')": "[handler_consoleHandler] args is",
    "class=handlers.SocketHandler": "[handler_consoleHandler] class is 'handlers.SocketHandler'",
    "class=FileHandler": "[handler_consoleHandler] class is 'FileHandler'",
    "class=__import__('os').system": "[handler_consoleHandler] class is",
    "level=LOUD": "[handler_consoleHandler] level is 'LOUD'",
    "formatter=other": "[handler_consoleHandler] formatter is 'other'",
}


@pytest.mark.parametrize("line", HOSTILE)
def test_nothing_in_the_file_is_run(archive, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    key = line.partition("=")[0]
    before, section, after = MMAR.partition("[handler_consoleHandler]")
    text = before + section + re.sub(f"^{key}=.*$", lambda _: line, after, flags=re.M)
    with pytest.raises(UserError, match=re.escape(HOSTILE[line])) as told:
        logs.configure_logging(config(archive, text))
    assert str(told.value).startswith(layout.log_config(archive)) and not Path("ran").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no section", "File contains no section headers"),
        (MMAR.replace("handlers=consoleHandler", "handlers=other"), "no handler 'other'"),
        (MMAR.replace("qualname=armarium.model\n", ""), "[logger_modelLogger] has no qualname"),
        (MMAR.replace("[formatter_fullFormatter]\n", "[formatter_fullFormatter]\nclass=os.system\n"), "class is 'os.system'"),
        (MMAR.replace("%(message)s", "%(message"), "[formatter_fullFormatter] format"),
        (MMAR.replace("[formatter_fullFormatter]\n", "[formatter_fullFormatter]\nstyle={\n"), "style is '{'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_with_the_place(archive, text, told):
    with pytest.raises(UserError, match=re.escape(told)):
        logs.configure_logging(config(archive, text))

"""`faas --install-completion`: completion of verbs and options in a shell. Knows where shells look for it, and no verb by name."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

from faas.cli.options import Json, print_json
from faas.errors import ConfigInvalid

Shell = Literal["bash", "zsh", "fish"]


def install(
    *,
    shell: Annotated[Shell | None, Parameter(help="Default: the shell that this is typed in.")] = None,
    show: Annotated[bool, Parameter(negative="", help="Print the script, and install nothing.")] = False,
    json: Json = False,
) -> int:
    """Install completion of verbs and options, or print its script."""
    from cyclopts.completion.detect import ShellDetectionError, detect_shell

    from faas.cli.verbs import application

    chosen = shell
    with suppress(ShellDetectionError):
        chosen = chosen or _supported(detect_shell())
    if chosen is None:
        raise ConfigInvalid("which shell this is cannot be told, or there is no completion for it; give --shell bash, zsh or fish")
    app = application()
    if show:
        print(app.generate_completion(shell=chosen))
        return 0
    try:
        path = app.install_completion(shell=chosen)
    except OSError as error:
        raise ConfigInvalid(
            f"{error.filename} cannot be written: {error.strerror}; print the script with --show and put it where you like"
        ) from error
    if json:
        print_json({"shell": chosen, "path": str(path)})
    else:
        print(f"{path}: completion for {chosen}; start a new shell to use it")
    return 0


def _supported(shell: str) -> Shell | None:
    return next((name for name in get_args(Shell) if name == shell), None)

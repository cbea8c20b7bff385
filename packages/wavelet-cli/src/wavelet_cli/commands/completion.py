"""`wavelet completion`: the script that makes a shell complete the arguments of `wavelet`."""

from __future__ import annotations

import click


@click.command("completion", short_help="Print the script that completes arguments in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete the arguments of `wavelet`: commands, options, presets, runs, and
    the fields and components of --set.

    \b
    Examples, for the shell that is open:
      eval "$(wavelet completion bash)"
      eval "$(wavelet completion zsh)"
      wavelet completion fish | source

    \b
    For every one that is started:
      wavelet completion bash >> ~/.bashrc
      wavelet completion zsh >> ~/.zshrc      (below `autoload -U compinit && compinit`)
      wavelet completion fish > ~/.config/fish/completions/wavelet.fish
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(ctx.find_root().command, {}, "wavelet", "_WAVELET_COMPLETE").source())

"""`wavelet config`: presets, resolved configurations, and their schema."""

from __future__ import annotations

import click

from wavelet_cli.output import print_json, print_report
from wavelet_cli.shared_options import config_argument, json_option, set_option
from wavelet_train.tables import table


@click.group("config")
def command() -> None:
    """List presets, show a configuration in full, print the schema."""


@command.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the presets.

    \b
    Examples:
      wavelet config list
      wavelet config list --json
    """
    from wavelet_train.run_config import list_presets

    print_report(list_presets(), as_json, lambda presets: table(list(presets.items())))


@command.command("show")
@config_argument
@set_option
@click.option("--parameters", is_flag=True, help="Count the model's parameters, part by part, instead.")
@json_option
def show_command(config: str, overrides: tuple[str, ...], parameters: bool, as_json: bool) -> None:
    """Print CONFIG, a preset or a YAML or JSON file, with every field that it leaves to its default.

    What is printed is a configuration file itself.

    \b
    Examples:
      wavelet config show demo
      wavelet config show demo --set model.width=128 > my.yaml
      wavelet config show wikitext-103 --parameters
    """
    from wavelet_cli.run_configuration import load_configuration
    from wavelet_train.run_config import dump

    run = load_configuration(config, overrides, model_only=parameters)
    if parameters:
        from wavelet_cli.parameter_table import parameter_report, parameter_table, vocabulary_resolved

        print_report(parameter_report(vocabulary_resolved(run)), as_json, parameter_table)
    else:
        print_report(run.model_dump(mode="json"), as_json, lambda _: dump(run).rstrip())


@command.command("memory")
@config_argument
@set_option
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="That train together.")
@json_option
def memory_command(config: str, overrides: tuple[str, ...], processes: int, as_json: bool) -> None:
    """Print what a training step of CONFIG needs of memory, and of arithmetic for a token.

    It is found by tensors without content, so a model may be larger than this machine. docs/scaling.md says how close
    it comes.

    \b
    Examples:
      wavelet config memory demo
      wavelet config memory wikitext-103 --set train.batch_size=32
      wavelet config memory b200 --processes 8 --set train.parallel=fsdp
    """
    from wavelet_cli.parameter_table import vocabulary_resolved
    from wavelet_cli.run_configuration import load_configuration
    from wavelet_train.training_memory import training_memory

    run = load_configuration(config, overrides, model_only=True)
    memory = training_memory(run.model_copy(update={"model": vocabulary_resolved(run)}), processes)
    print_report(memory.as_dict(), as_json, lambda _: str(memory))


@command.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of configuration files, for completion and checks in an editor.

    The components of all installed plugins are part of it.

    \b
    Examples:
      wavelet config schema > wavelet.schema.json
    """
    from wavelet_train.run_config import RunConfig

    print_json(RunConfig.model_json_schema())


@command.command("reference")
def reference_command() -> None:
    """Print docs/configuration.md: every field of a configuration, and where each key of the original went.

    \b
    Examples:
      wavelet config reference > docs/configuration.md
    """
    from wavelet_cli.reference import configuration_reference

    click.echo(configuration_reference(), nl=False)

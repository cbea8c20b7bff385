"""`wavelet`, which is `python -m wavelet_cli`."""

from wavelet_cli.signals import handle_signals, leave, report


def main() -> None:
    """Entry point of the `wavelet` script."""
    handle_signals()
    try:
        from wavelet_cli.main import main as run  # takes long enough for a Ctrl-C

        run()
    except KeyboardInterrupt as interrupt:
        leave(report(interrupt))


if __name__ == "__main__":
    main()

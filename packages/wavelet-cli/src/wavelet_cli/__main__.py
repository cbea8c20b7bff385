"""`python -m wavelet_cli` is `wavelet`."""

from wavelet_cli.main import main

if __name__ == "__main__":
    main()

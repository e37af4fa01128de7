"""`python -m faas`: the command line, for where the script `faas` is not on PATH."""

from faas.cli.main import main

if __name__ == "__main__":
    main()

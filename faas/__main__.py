"""`python -m faas`: the command line."""

from faas.cli.main import main

if __name__ == "__main__":
    main()

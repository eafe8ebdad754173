"""The command `roi`, also as `python -m experiments`.

A worker process imports the module that its parent was started as: this one, which brings the command line along only where
it runs.
"""


def main() -> None:
    """See :func:`experiments.cli.main`."""
    from experiments.cli import main as run

    run()


if __name__ == "__main__":
    main()

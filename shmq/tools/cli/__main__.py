"""`python -m shmq.tools.cli`: the command line where it is not installed as `shmq`."""

from shmq.tools.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()

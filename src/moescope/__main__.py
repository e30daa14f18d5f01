"""`python -m moescope`: the same commands as the `moescope` script."""

from moescope.profiler.commands.main import main

if __name__ == "__main__":
    main()

"""`python -m codling`."""

from codling.cli.main import run

if __name__ == "__main__":
    run()

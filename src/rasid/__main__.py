"""`python -m rasid`: the command line, for a process that knows its own interpreter."""

from rasid.cli.main import app

if __name__ == "__main__":
    app(prog_name="rasid")

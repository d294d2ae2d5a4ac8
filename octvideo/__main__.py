"""`python -m octvideo`: the command `octvideo`."""

from octvideo.cli import program

if __name__ == "__main__":
    program()

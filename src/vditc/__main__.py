"""`python -m vditc`, which torchrun can start."""

from vditc.cli import main

if __name__ == "__main__":
    main()

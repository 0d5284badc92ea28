"""`python -m captionmill` is the `captionmill` command."""

from captionmill.cli import main

if __name__ == "__main__":
    main()

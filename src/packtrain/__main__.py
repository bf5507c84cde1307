"""`python -m packtrain`, which is what torchrun starts."""

from packtrain.cli.entry import main

if __name__ == "__main__":
    main()

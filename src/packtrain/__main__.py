"""`python -m packtrain`, which is what torchrun starts."""

from packtrain.cli.main import main

if __name__ == "__main__":
    main()

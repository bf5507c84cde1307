"""The command line: `main.py` lists the verbs, each in a file of its own that imports what it needs when it runs."""

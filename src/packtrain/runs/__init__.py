"""What a run leaves on disk. Read `layout.py` first: it names every file."""

"""The verbs as Python functions, which the command line calls too; `import packtrain` offers them. Read `settings.py` first,
then `data.py`, `training.py` and `models.py`."""

"""A model as the files of llama2.c. Read `write.py` first; `reader.py` reads them again as run.c does, knowing nothing of our model."""
